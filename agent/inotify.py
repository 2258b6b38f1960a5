"""inotify(7) and statfs(2) through ctypes: what the kernel says, and nothing of what it means."""

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

DRAIN_BYTES = 64 * 1024
DRAINS_MAX = 16
"""Reads of one drain: more than the kernel's default queue of 16,384 events of short names."""

# linux/inotify.h
IN_MODIFY = 0x002
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_DONT_FOLLOW = 0x02000000
IN_EXCL_UNLINK = 0x04000000
IN_ISDIR = 0x40000000
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_EVENT_BYTES_MAX = _EVENT.size + 255 + 1  # NAME_MAX

# linux/magic.h and the file systems' own headers: NFS, SMB, CIFS, SMB2, 9p, FUSE, Ceph.
REMOTE = {0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997, 0x65735546, 0x00C36400}
_STATFS_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)


def opened() -> int:
    """Return a new inotify descriptor that never blocks. Raises ``OSError``."""
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise _last_error()
    return fd


def add_watch(fd: int, directory: Path, mask: int) -> int:
    """Return the watch descriptor; the one it has for a directory known. Raises ``OSError``."""
    added = int(_libc.inotify_add_watch(fd, os.fsencode(directory), ctypes.c_uint32(mask)))
    if added < 0:
        raise _last_error()
    return added


def remove_watch(fd: int, watch: int) -> None:
    """Drop a watch; it is no error where the kernel was first."""
    _libc.inotify_rm_watch(fd, watch)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def pending(fd: int) -> Iterator[tuple[int, int, str]]:
    """Yield (watch descriptor, mask, name) of what the kernel holds, bounded; never blocks."""
    for _ in range(DRAINS_MAX):
        try:
            events = os.read(fd, DRAIN_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            wd, mask, _cookie, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size
            yield wd, mask, os.fsdecode(events[at : at + length].rstrip(b"\0"))
            at += length
        if len(events) < DRAIN_BYTES - _EVENT_BYTES_MAX:
            return  # one more would have had room


def is_remote(directory: Path) -> bool:
    """Return whether others may write here without this kernel noticing."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(directory), answer) != 0:
        return False
    (kind,) = struct.unpack_from("l", answer)  # struct statfs: f_type
    return kind & 0xFFFFFFFF in REMOTE
