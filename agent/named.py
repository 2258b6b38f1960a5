"""What the rules say of one name below the root: those of the scan, and those of the opener.

Looks at this one name only. Opens the file as the agent does, and so with the rights of whoever
asks.
"""

import os
import stat
from fnmatch import translate
from pathlib import Path
from re import compile as compiled

from agent.config import Config
from agent.core.discovery import client_of
from agent.core.explaining import Named
from agent.opener import Descriptor, Refused, open_beneath


def look(config: Config, path: str, wall_s: float) -> tuple[Named, Descriptor | None]:
    """Return what is so of ``path``, relative to the root, and the open file if it may be read.

    The caller closes it. ``wall_s``: now, for ``source.ignore_older_s``.
    """
    source = config.source
    named = Named(path=path, client=source.client or client_of(path, source.client_depth))
    try:
        root = os.open(source.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return _not(named, "root", error.strerror or ""), None
    try:
        return _look(config, named, root, wall_s)
    finally:
        os.close(root)


def beneath(root: Path, given: str) -> str | None:
    """Return ``given`` relative to ``root``, or None where it does not lie below it.

    A relative path may be one from here, or one below the root as /status has it.
    """
    for top in (str(root.absolute()), os.path.realpath(root)):
        # Only the directory is resolved: the name itself may be a link, and that is worth saying.
        for one in (os.path.abspath(given), _resolved(given)):  # noqa: PTH100 - text, maybe hostile
            if one.startswith(f"{top}/"):
                return one[len(top) + 1 :]
    if given.startswith("/"):
        return None
    inside = os.path.normpath(given)
    return None if inside.split("/")[0] == ".." else inside


def _resolved(given: str) -> str:
    directory, name = os.path.split(os.path.abspath(given))  # noqa: PTH100
    return os.path.join(os.path.realpath(directory), name)  # noqa: PTH118


def _look(
    config: Config, named: Named, root: int, wall_s: float
) -> tuple[Named, Descriptor | None]:
    why = _by_name(config, named.path)
    opened = open_beneath(root, named.path, links_max=None)
    if isinstance(opened, Refused):
        link = _link(root, named.path)
        if opened.reason == "gone":
            return _not(named, "missing", named.path), None
        if link is not None:
            return _not(named, "symlink", link), None
        return _not(named, *(why or (opened.reason, opened.detail and f"({opened.detail})"))), None
    status = os.stat(named.path, dir_fd=root, follow_symlinks=False)
    named = Named(
        path=named.path,
        client=named.client,
        size=opened.size(),
        mtime_ns=status.st_mtime_ns,
        inode=opened.birth.inode,
    )
    why = why or _by_content(config, opened, status, wall_s)
    return (named if why is None else _not(named, *why)), opened


def _by_name(config: Config, path: str) -> tuple[str, str] | None:
    source, name = config.source, path.rpartition("/")[2]
    if path.count("/") > source.depth_max:
        return "too_deep", str(source.depth_max)
    if not any(_matches(pattern, name) for pattern in source.include):
        return "not_included", ", ".join(source.include)
    excluding = [pattern for pattern in source.exclude if _matches(pattern, name)]
    return ("excluded", excluding[0]) if excluding else None


def _by_content(
    config: Config, file: Descriptor, status: os.stat_result, wall_s: float
) -> tuple[str, str] | None:
    if (links := file.links()) > 1:
        return "links", f"({links} names)"
    older_s, age_s = config.source.ignore_older_s, wall_s - status.st_mtime
    if older_s is not None and age_s > older_s:
        return "old", f"{age_s:.0f} s"
    return None


def _matches(pattern: str, name: str) -> bool:
    return compiled(translate(pattern)).match(name) is not None


def _link(root: int, path: str) -> str | None:
    """Return the first part of ``path`` that is a link."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        part = "/".join(parts[:count])
        try:
            if stat.S_ISLNK(os.stat(part, dir_fd=root, follow_symlinks=False).st_mode):
                return part
        except OSError:
            return None
    return None


def _not(named: Named, why: str, detail: str = "") -> Named:
    return Named(
        path=named.path,
        client=named.client,
        why_not=why,
        detail=detail,
        size=named.size,
        mtime_ns=named.mtime_ns,
        inode=named.inode,
    )
