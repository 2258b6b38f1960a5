"""The safe way to a descriptor: whatever a path says, only a regular file beneath the root.

Clients own their directories and may swap any name for a link, a FIFO or a device between a scan
and an open. openat2(2) resolves the whole path in the kernel and refuses links in every component;
where it is missing (before Linux 5.6) or forbidden (seccomp of some container runtimes answers
EPERM) the path is walked component by component with O_NOFOLLOW. What was opened is then checked
on the descriptor, never by name. Nothing is mapped: a truncation would be a SIGBUS.

Python has neither openat2 nor statx; both go through syscall(2), 64-bit x86 and ARM.
"""

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
from typing import Literal, Self

from msgspec import Struct

from agent.core.identity import Birth, one_device

Reason = Literal[
    "symlink",
    "not_regular",
    "gone",
    "permission",
    "outside",
    "links",
    "other_device",
    "corrupt",
    "error",
]

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# linux/openat2.h: NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08
_HOW = struct.pack("=QQQ", _FLAGS, 0, _RESOLVE)
_OPENAT2 = 437  # the same on every machine
_STATX = {"x86_64": 332, "aarch64": 291}.get(platform.machine())
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_STATX_BTIME_AT = 80  # struct statx: stx_btime, s64 seconds and u32 nanoseconds
_FS_IOC_GETVERSION = 0x80087601  # _IOR('v', 1, long); file systems write 32 bits of it
_RACES_MAX = 8
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long  # syscall(2) is variadic: without a type the upper half is anyone's guess

_BY_ERRNO: dict[int, Reason] = {
    errno.ELOOP: "symlink",
    errno.EXDEV: "other_device",  # a way out of the root was refused by its spelling before
    errno.ENOENT: "gone",
    errno.ENOTDIR: "gone",
    errno.ENAMETOOLONG: "gone",
    errno.ESTALE: "gone",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
    errno.ENXIO: "not_regular",  # a socket, or a device without a driver
    errno.ENODEV: "not_regular",
    errno.EISDIR: "not_regular",
}


class Refused(Struct, frozen=True):
    """Why a path gave no descriptor. ``reason`` is a label; ``detail`` never quotes the path."""

    reason: Reason
    detail: str = ""


class Descriptor:
    """An open regular file, owned by whoever holds this; see ``core.identity.Readable``.

    ``birth`` is read once, on the descriptor. A read of a file on a failing disk or a vanished
    mount raises ``OSError``; all calls are short but may wait for the disk.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.birth = birth_of(fd)

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def beyond_hole(self, offset: int) -> int:
        """Return where the file system has stored something next; the size if it has nothing."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return offset  # this file system does not tell
            return max(offset, self.size())

    def disk_bytes(self) -> int:
        """Return how much room it takes up on the disk, no more than its size."""
        status = os.fstat(self._fd)
        return min(status.st_size, status.st_blocks * _BLOCK_BYTES)

    def links(self) -> int:
        """Return the number of names; 0 once the file is deleted."""
        return os.fstat(self._fd).st_nlink

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Opened = Descriptor | Refused


def open_beneath(
    root_fd: int, relative: bytes | str, *, links_max: int | None = 1, walk: bool = False
) -> Opened:
    """Open the regular file ``relative``, read-only, beneath the directory ``root_fd``.

    Never blocks on a FIFO, follows no link, crosses no mount, leaves no descriptor behind when it
    refuses, and raises nothing about the file. A file with more than ``links_max`` names is
    refused as ``links``: one of them may be another client's. ``walk`` forces the fallback.
    """
    path = os.fsencode(relative)
    if b"\0" in path or any(part in {b"", b".", b".."} for part in path.split(b"/")):
        return Refused("outside", "not a plain relative path")
    try:
        fd = _open_by_walk(root_fd, path) if walk else _open_resolved(root_fd, path)
    except OSError as error:
        return refusal(error)
    try:
        refused = _judge(root_fd, fd, links_max)
        opened = refused or Descriptor(fd)
    except OSError as error:
        opened = refusal(error)
    if isinstance(opened, Refused):
        os.close(fd)
    return opened


def open_directory_beneath(root_fd: int, relative: str) -> int | Refused:
    """Open the directory ``relative`` beneath ``root_fd``, crossing no link; "." is the root."""
    path = os.fsencode(relative)
    parts = [] if path == b"." else path.split(b"/")
    if any(part in {b"", b".", b".."} for part in parts):
        return Refused("outside", "not a plain relative path")
    held = os.dup(root_fd)
    try:
        for part in parts:
            below = _open_directory(held, part)
            os.close(held)
            held = below
    except OSError as error:
        os.close(held)
        return refusal(error)
    return held


def birth_of(fd: int) -> Birth:
    """Say who the file behind ``fd`` is; parts its file system does not tell are 0."""
    status = os.fstat(fd)
    return Birth(status.st_ino, _born_ns(fd), _inode_generation(fd), one_device(status.st_dev))


def refusal(error: OSError) -> Refused:
    """Say in the closed words what the kernel answered about a path."""
    code = error.errno or 0
    return Refused(_BY_ERRNO.get(code, "error"), errno.errorcode.get(code, str(code)))


def _judge(root_fd: int, fd: int, links_max: int | None) -> Refused | None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return Refused("not_regular", stat.filemode(status.st_mode)[0])
    if status.st_dev != os.fstat(root_fd).st_dev:
        return Refused("other_device")
    if status.st_nlink == 0:
        return Refused("gone")
    if links_max is not None and status.st_nlink > links_max:
        return Refused("links", f"{status.st_nlink} names")
    return None


def _open_resolved(root_fd: int, path: bytes) -> int:
    for _ in range(_RACES_MAX):
        fd = _openat2(root_fd, path)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code in {errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG}:  # its 4096 bytes: all of it
            return _open_by_walk(root_fd, path)
        if code not in {errno.EAGAIN, errno.EINTR}:  # EAGAIN: a rename raced with the resolution
            raise OSError(code, os.strerror(code))
    raise OSError(errno.EAGAIN, "the path kept changing")


def _openat2(root_fd: int, path: bytes) -> int:
    return int(_syscall(_long(_OPENAT2), _long(root_fd), path, _HOW, _long(len(_HOW))))


def _open_by_walk(root_fd: int, path: bytes) -> int:
    *parents, name = path.split(b"/")
    held = root_fd
    try:
        for parent in parents:
            below = _open_directory(held, parent)
            if held != root_fd:
                os.close(held)
            held = below
        return os.open(name, _FLAGS, dir_fd=held)
    finally:
        if held != root_fd:
            os.close(held)


def _open_directory(above: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY_FLAGS, dir_fd=above)
    except NotADirectoryError:
        # The kernel says the same of a link and of a file; the reason is worth one more look.
        status = os.stat(name, dir_fd=above, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "symlink") from None
        raise


def _born_ns(fd: int) -> int:
    if _STATX is None:
        return 0
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    asked = _long(_AT_EMPTY_PATH), _long(_STATX_BTIME)
    if _syscall(_long(_STATX), _long(fd), b"", *asked, answer) != 0:
        return 0
    (told,) = struct.unpack_from("=I", answer)
    if not told & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", answer, _STATX_BTIME_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _inode_generation(fd: int) -> int:
    answer = array.array("L", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _FS_IOC_GETVERSION, answer)
    return answer[0] & 0xFFFFFFFF
