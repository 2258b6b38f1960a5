"""Which shipped files may be deleted. Pure."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from agent.core.discovery import Seen
from agent.core.identity import Checkpoint


def rotated(name: str, include: Iterable[str]) -> bool:
    """Return whether the base name ``name`` is one that rotation gave.

    A file that is written has a name that ends as a pattern does (``*.jsonl``); what follows the
    end of such a name is rotation's (``*.jsonl.*``). A pattern that ends in ``*`` is of the latter.
    """
    return not any(fnmatchcase(name, p) for p in include if not p.endswith("*"))


def deletable(
    seen: Seen, row: Checkpoint, include: Iterable[str], *, wall_s: float, after_s: float
) -> bool:
    """Return whether all of a file is settled, and it is rotated away and old enough.

    A file with a time in the future is not old, whatever the clock was when it was written.
    """
    return (
        row.watermark == seen.size
        and wall_s - seen.mtime_ns / 1e9 >= after_s
        and rotated(seen.path.rpartition("/")[2], include)
    )


def childless(directories: Iterable[str], files: Iterable[str]) -> set[str]:
    """Return the directories, relative to the root, in which a scan met neither file nor directory.

    The root, which is "", is never one of them.
    """
    every = set(directories)
    parents = {path.rpartition("/")[0] for path in (*every, *files)}
    return every - parents - {""}
