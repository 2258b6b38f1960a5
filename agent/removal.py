"""Deletes a file or a directory beneath the root, and nothing else that may lie at its name.

Apps rename their files while we look. So a file is first moved to a name that nobody else uses,
looked at there, and moved back if it is not the one that was meant. A crash in between leaves it
under that name, where the next scan finds it: it is the same file.
"""

import ctypes
import errno
import os
import platform
import stat
from pathlib import PurePosixPath

from agent.core.identity import Birth
from agent.opener import Refused, birth_of, open_directory_beneath, refusal

SUFFIX = ".deleting"

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}.get(platform.machine())
_RENAME_NOREPLACE = 1
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_long = ctypes.c_long


def remove_file(root_fd: int, path: str, birth: Birth, size: int) -> Refused | None:
    """Delete the file ``path`` if it is the one born so, has one name and is that long.

    Return why it was not deleted. A directory that may not be written to is ``permission``.
    """
    at = PurePosixPath(path)
    parent = open_directory_beneath(root_fd, str(at.parent))
    if isinstance(parent, Refused):
        return parent
    try:
        name, aside = os.fsencode(at.name), os.fsencode(f".{at.name}{SUFFIX}")
        _rename(parent, name, aside)
        if not _is(parent, aside, birth, size):
            _rename(parent, aside, name)
            return Refused("gone", "another file, or a longer one, lies there")
        os.unlink(aside, dir_fd=parent)
    except OSError as error:
        return refusal(error)
    finally:
        os.close(parent)
    return None


def remove_directory(root_fd: int, path: str, before_s: float) -> bool:
    """Delete the directory ``path`` if it is empty and nothing changed in it since ``before_s``."""
    at = PurePosixPath(path)
    parent = open_directory_beneath(root_fd, str(at.parent))
    if isinstance(parent, Refused):
        return False
    try:
        if os.stat(at.name, dir_fd=parent, follow_symlinks=False).st_mtime >= before_s:
            return False
        os.rmdir(at.name, dir_fd=parent)
    except OSError:
        return False
    finally:
        os.close(parent)
    return True


def _is(parent: int, name: bytes, birth: Birth, size: int) -> bool:
    try:
        fd = os.open(name, _FLAGS, dir_fd=parent)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        whole = stat.S_ISREG(status.st_mode) and (status.st_nlink, status.st_size) == (1, size)
        return whole and birth_of(fd) == birth
    finally:
        os.close(fd)


def _rename(parent: int, old: bytes, new: bytes) -> None:
    """Rename within one directory, never over what is there. Raises ``OSError``."""
    if _RENAMEAT2 is None:
        raise OSError(errno.ENOSYS, "no renameat2 on this machine")
    at, flag = _long(parent), _long(_RENAME_NOREPLACE)
    if _syscall(_long(_RENAMEAT2), at, old, at, new, flag) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
