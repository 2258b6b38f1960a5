"""What of this node the agent reads from and runs within. Only looks; opens files, reads none."""

import errno
import grp
import os
import pwd
import resource
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from agent import inotify
from agent.assembly import descriptors_within, scanner
from agent.clock import Clock
from agent.config import Config
from agent.core.discovery import Scan, Seen
from agent.logs import escaped
from agent.opener import Refused, birth_of, open_beneath
from agent.operator.doctor.finding import About, Finding
from agent.operator.screen import counted

OPENED_MAX = 2000
"""Files that are opened to see whether they can be: those of a node rarely differ."""
INOTIFY = Path("/proc/sys/fs/inotify")
INSTANCES = 2
"""The agent's own, and watchdog's of the root."""
WATCHES_SHARE_MAX = 0.8
SKIPPED_SAID = {
    "symlink": "links are never followed: let apps write files",
    "not_regular": "only regular files are read",
    "other_device": "what is mounted below the root is not read: set source.root to it",
    "too_deep": "raise source.depth_max",
    "too_many": "raise source.client_files_max, or have shipped files deleted",
    "old": "as source.ignore_older_s says",
}


def who() -> str:
    """Return this process's user and groups, as they count for files."""
    groups = ", ".join(str(gid) for gid in sorted({os.getegid(), *os.getgroups()}))
    return f"uid {os.geteuid()}, gid {groups}"


def owned(status: os.stat_result) -> str:
    """Return mode and owner as ``ls -l`` has them."""
    user, group = str(status.st_uid), str(status.st_gid)
    try:
        user = f"{pwd.getpwuid(status.st_uid).pw_name}({user})"
        group = f"{grp.getgrgid(status.st_gid).gr_name}({group})"
    except KeyError:
        pass  # no name on this node
    return f"{stat.filemode(status.st_mode)} {user}:{group}"


def of_source(config: Config, clock: Clock, shown: Callable[[str], str]) -> Iterator[Finding]:
    """Yield what there is to say; ``shown`` is what may be said of a name."""
    root = config.source.root
    found = source_root(root)
    yield found
    if found.verdict == "fail":
        for check in ("source.filesystem", "source.permissions", "source.files"):
            yield About(check, root).unknown("the root cannot be read")
        directories, files = 1, tuple[Seen, ...]()
    else:
        scan = scanner(config, clock).scan()
        yield source_filesystem(root)
        yield source_permissions(root, scan, shown)
        yield source_files(root, scan)
        directories, files = len(scan.directories) + len(scan.unreadable), scan.files
    yield inotify_instances()
    yield inotify_watches(directories)
    yield process_descriptors(config, len(files))
    yield clock_files(root, files, clock.wall())


def source_root(root: Path) -> Finding:
    about = About("source.root", root)
    try:
        os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        status = root.stat()
    except OSError as error:
        return _root_problem(about, root, error)
    if not os.access(root, os.X_OK, effective_ids=True):
        return _root_problem(about, root, PermissionError(errno.EACCES, ""))
    return about.ok(f"a directory, {owned(status)}; this is {who()}")


def _root_problem(about: About, root: Path, error: OSError) -> Finding:
    match error.errno:
        case errno.ENOENT:
            return about.fail(
                "does not exist", "mount the apps' directory there, or set source.root"
            )
        case errno.ENOTDIR:
            return about.fail("is no directory", "set source.root to the directory of the apps")
        case errno.EACCES | errno.EPERM:
            mode = "a directory above it is closed"
            if os.access(root, os.F_OK):
                mode = f"it is {owned(root.stat())}"
            advice = "give read and search (r-x): chmod or chgrp it, or run as its owner or group"
            return about.fail(f"may not be read by {who()}: {mode}", advice)
        case _:
            advice = "look at the kernel's log and the mount"
            return about.fail(f"cannot be read: {error.strerror}", advice)


def source_filesystem(root: Path) -> Finding:
    about, kind = About("source.filesystem", root), filesystem(root)
    if inotify.is_remote(root):
        found = f"{kind}: others may write to it without this kernel knowing"
        advice = "use a disk of the node; else lines wait for the scan: set source.scan_s lower"
        return about.warn(found, advice)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        born = birth_of(fd).born_ns
    finally:
        os.close(fd)
    if not born:
        advice = "ext4, XFS and Btrfs tell it; without it files are told apart by content alone"
        return about.warn(f"{kind}: does not tell when a file was made", advice)
    return about.ok(f"{kind}, of this node, tells when files were made")


def source_permissions(root: Path, scan: Scan, shown: Callable[[str], str]) -> Finding:
    """Open what the scan met, as the agent does, and close it again."""
    about, denied = About("source.permissions", root), _denied(root, scan)
    closed = sum(one.reason == "permission" for one in scan.unreadable)
    if denied or closed:
        one = f" ({escaped(shown(denied[0]))} for one)" if denied else ""
        directories = f"{closed} director{'y' if closed == 1 else 'ies'}"
        found = f"{who()} may not read {counted(len(denied), 'file')}{one} and {directories}"
        advice = "let apps write with a common group and mode 0640 (umask 027), directories 2750"
        if os.geteuid() == 0:
            advice += "; or leave CAP_DAC_READ_SEARCH to the agent"
        return about.fail(found, advice)
    opened = min(len(scan.files), OPENED_MAX)
    return about.ok(f"{who()} may read all that were tried, {opened}")


def _denied(root: Path, scan: Scan) -> list[str]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    denied = []
    with ExitStack() as keep:
        keep.callback(os.close, fd)
        for seen in scan.files[:OPENED_MAX]:
            opened = open_beneath(fd, seen.path, links_max=None)
            if not isinstance(opened, Refused):
                opened.close()
            elif opened.reason == "permission":
                denied.append(seen.path)
    return denied


def source_files(root: Path, scan: Scan) -> Finding:
    about = About("source.files", root)
    clients = len({seen.client for seen in scan.files})
    found = f"files: {len(scan.files)}, clients: {clients}"
    left_out = Counter[str](dict(scan.skipped_counts.items()))
    left_out.update(one.reason for one in scan.unreadable if one.reason != "permission")
    left_out["too_many"] += sum(scan.over_limit.values())
    said = [f"{count} {reason}" for reason, count in sorted(left_out.items()) if count]
    if not said:
        return about.ok(found)
    known = [SKIPPED_SAID[reason] for reason, count in left_out.items()
             if count and reason in SKIPPED_SAID]  # fmt: skip
    return about.warn(
        f"{found}; left out: {', '.join(said)}", "; ".join(known) or "look at the names"
    )


def inotify_instances() -> Finding:
    about = About("inotify.instances", INOTIFY / "max_user_instances")
    with ExitStack() as keep:
        try:
            for _ in range(INSTANCES):
                keep.callback(os.close, inotify.opened())
        except OSError as error:
            found = f"the kernel gives this user no {INSTANCES} more: {error.strerror}"
            advice = "sysctl fs.inotify.max_user_instances=1024; else lines wait for the scan"
            return about.warn(found, advice)
    return about.ok(f"{INSTANCES} more are to be had")


def inotify_watches(directories: int) -> Finding:
    about, limit = About("inotify.watches", INOTIFY / "max_user_watches"), _watches_max()
    wanted = 2 * directories + 2  # the root's own are watchdog's too
    if limit is not None and wanted > WATCHES_SHARE_MAX * limit:
        found = f"directories: {directories}, which want {wanted}; all of this user have {limit}"
        advice = f"sysctl fs.inotify.max_user_watches={max(65536, 4 * wanted)}"
        return about.warn(found, advice)
    return about.ok(
        f"directories: {directories}, which want {wanted} of {limit or 'a number unknown'}"
    )


def _watches_max() -> int | None:
    return _number(INOTIFY / "max_user_watches")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def process_descriptors(config: Config, files: int) -> Finding:
    about, configured = About("process.descriptors", "RLIMIT_NOFILE"), config.source.descriptors_max
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    within = descriptors_within(configured, limit)
    if within < configured:
        found = (
            f"{limit} allow {within} open source files, not the {configured} of the configuration"
        )
        advice = "ulimit -n (LimitNOFILE=), or set source.descriptors_max lower"
        return about.warn(found, advice)
    return about.ok(f"{limit}, enough for {configured} open source files; {files} are there")


def clock_files(root: Path, files: tuple[Seen, ...], wall_s: float) -> Finding:
    """A file of the future: this clock is behind the one that wrote it."""
    about = About("clock.files", root)
    newest_s = max((seen.mtime_ns / 1e9 for seen in files), default=0.0)
    if not files:
        return about.ok("no files to compare with")
    if newest_s > wall_s + 2.0:
        found = f"the newest file was written {newest_s - wall_s:.0f} s in the future"
        return about.warn(
            found, "set this node's clock (chrony, ntpd), and that of the file server"
        )
    return about.ok("no file is from the future")


def filesystem(path: Path) -> str:
    """Return what the kernel calls the kind of file system at ``path``."""
    real, best, kind = os.path.realpath(path), "", "an unknown file system"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        below = real == point or real.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind
