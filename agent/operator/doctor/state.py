"""Where the agent keeps what it must not lose, and the clock of this node. Only looks."""

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from agent import inotify
from agent.config import Config
from agent.core.policy import GIB, MIB
from agent.operator.doctor.finding import About, Finding
from agent.operator.doctor.node import filesystem, owned, who
from agent.queue import BYTES_SHARE
from agent.state_owner import owner

MEMORY = {"tmpfs", "ramfs"}
"""File systems that a reboot empties."""
BYTES_FREE_MIN = 64 * MIB
INODES_FREE_MIN = 1000
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_TIMEX_BYTES = 256


def of_state(config: Config) -> Iterator[Finding]:
    directory = config.agent.state_dir
    yield state_directory(directory)
    yield state_lock(directory)
    yield state_disk(config)
    yield audit_log(config)
    yield clock_kernel()


def state_directory(directory: Path) -> Finding:
    about, there = About("state.directory", directory), _nearest(directory)
    status = there.stat()
    if not stat.S_ISDIR(status.st_mode):
        return about.fail(f"{there} is no directory", "set agent.state_dir to one")
    closed = there if not _writable(there) else _alien(directory)
    if closed is not None:
        found = f"{who()} may not write to {closed}, {owned(closed.stat())}"
        return about.fail(found, f"chown -R {os.geteuid()}:{os.getegid()} {there}")
    return _kept(about, directory, there, status)


def _kept(about: About, directory: Path, there: Path, status: os.stat_result) -> Finding:
    """Judge whether what is written there lasts, and who else may read it."""
    kind = filesystem(there)
    if kind in MEMORY:
        found = f"{kind}: a reboot empties it, and every file is sent again"
        return about.warn(found, "use a disk: a hostPath, or a local volume of the node")
    if inotify.is_remote(there):
        return about.fail(f"{kind}: SQLite's locks and fsync do not hold there", "use a local disk")
    if there != directory:
        return about.ok(f"will be made below {there}, on {kind}")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return about.warn(f"on {kind}, {owned(status)}: others may look in", "chmod 0700 it")
    return about.ok(f"on {kind}, {owned(status)}")


def _there(path: Path) -> bool:
    """Return whether it can be seen; ``Path.exists`` raises where it is closed to us."""
    return os.access(path, os.F_OK)


def _writable(path: Path) -> bool:
    mode = os.W_OK | os.X_OK if path.is_dir() else os.W_OK
    return os.access(path, mode, effective_ids=True)


def _nearest(path: Path) -> Path:
    """Return ``path``, or what there is above it."""
    while not _there(path) and path != path.parent:
        path = path.parent
    return path


def _alien(directory: Path) -> Path | None:
    """Return a file of the state that this process may not write to: made by another user."""
    names = ("lock", "checkpoints.db", "spool.db", "audit.jsonl")
    for path in (directory / name for name in names):
        if _there(path) and not _writable(path):
            return path
    return None


def state_lock(directory: Path) -> Finding:
    about = About("state.lock", directory / "lock")
    pid = owner(directory)
    if pid is None:
        return about.ok("free: no agent runs over this directory")
    found = f"held by a running agent, pid {pid}"
    return about.warn(
        found, "right if that is yours; a second one over this directory would exit 75"
    )


def state_disk(config: Config) -> Finding:
    spool, there = config.spool, _nearest(config.agent.state_dir)
    about, disk = About("state.disk", there), os.statvfs(there)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    found = f"{free / GIB:.1f} of {size / GIB:.1f} GiB free"
    if free < BYTES_FREE_MIN or (disk.f_files and disk.f_favail < INODES_FREE_MIN):
        found += f", {disk.f_favail} inodes" if disk.f_files else ""
        return about.fail(found, "free space: checkpoints must be written, or the agent exits 74")
    if not spool.enabled:
        return about.ok(f"{found}; spool.enabled is false")
    if free < spool.disk_free_min * size:
        advice = (
            "free space, or lower spool.disk_free_min: as it is, an outage stops reading at once"
        )
        return about.warn(
            f"{found}: less than spool.disk_free_min ({spool.disk_free_min:.0%})", advice
        )
    wanted = spool.bytes_max or min(GIB, int(BYTES_SHARE * size))
    room = free - int(spool.disk_free_min * size)
    if room < wanted:
        advice = "free space, or lower spool.bytes_max or spool.disk_free_min"
        return about.warn(
            f"{found}: the spool may have {wanted >> 20} MiB, and {room >> 20} fit", advice
        )
    return about.ok(f"{found}: room for a spool of {wanted >> 20} MiB")


def audit_log(config: Config) -> Finding:
    path = config.audit_path
    about, there = About("audit.log", path), _nearest(path.parent)
    if not config.audit.enabled:
        return about.ok("not wanted: audit.enabled is false")
    target = path if _there(path) else there
    if not _writable(target):
        advice = f"chown {os.geteuid()}:{os.getegid()} {target}, or set audit.path"
        return about.fail(f"{who()} may not write to {target}, {owned(target.stat())}", advice)
    return about.ok("may be written")


def clock_kernel() -> Finding:
    """Ask the kernel whether something keeps its clock right; adjtimex(2) changes nothing so."""
    about = About("clock.kernel", "adjtimex")
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _TIME_ERROR:
        advice = "run chrony or ntpd on the node: timestamps and token lifetimes rely on its clock"
        return about.warn("nothing keeps this clock in step", advice)
    if state < 0:
        return about.unknown("the kernel does not say", "look at chronyc tracking on the node")
    return about.ok("kept in step with others")
