"""The files of the audit log: ``audit.jsonl``, and beside it ``.1`` (newer) to ``.n`` (older).

Every method may raise ``OSError``; then ``close`` and ``open`` again, which finds out how far the
disk got.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import aiofiles

from agent.core.auditing import BEGINNING, START, Head, last, sealed

BYTES_MAX = 16 * 1024 * 1024
FILES_MAX = 8
TAIL_BYTES = 256 * 1024
"""Looked at for the last record; one is far shorter."""


class Entry(NamedTuple):
    at: str
    event: str
    fields: Mapping[str, object]


class Found(NamedTuple):
    """What ``open`` found.

    Attributes:
        arrived: Records of an ``append`` that failed which are in the file all the same.
        torn: Bytes of a record that a crash or a full disk had cut short; they are gone now.
    """

    arrived: int
    torn: int


def rotated(path: Path) -> Iterator[Path]:
    """Yield where the older files are, the newest of them first, without an end."""
    number = 1
    while True:
        yield path.with_name(f"{path.name}.{number}")
        number += 1


def opened(path: Path, keep: ExitStack) -> list[BinaryIO]:
    """Open all files to be read, oldest first; none where there is no log.

    The newest is opened first: one that is rotated meanwhile is met again, none is missed.
    """
    files: dict[tuple[int, int], BinaryIO] = {}
    for name in chain.from_iterable((iter([path]), _older(path))):
        with suppress(FileNotFoundError):
            file = keep.enter_context(name.open("rb"))
            files.setdefault(identity(os.fstat(file.fileno())), file)
    return [*reversed(files.values())]


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines with their LF. One that is longer than any record comes in parts."""
    while line := file.readline(TAIL_BYTES):
        yield line


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _older(path: Path) -> Iterator[Path]:
    """Yield the rotated files, newest first; one in the middle may be missing."""
    suffixes = (p.name.removeprefix(f"{path.name}.") for p in path.parent.iterdir())
    for number in sorted(int(suffix) for suffix in suffixes if suffix.isdecimal()):
        yield path.with_name(f"{path.name}.{number}")


class AuditFile:
    """Appends records to the chain that is on disk.

    Args:
        bytes_max: A file that would be larger is rotated.
        files_max: How many are kept, at least 2.
    """

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX, files_max: int = FILES_MAX) -> None:
        assert files_max > 1, "rotation would forget everything"
        self.path = path
        self.head: Head | None = None
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._file: Any = None
        self._size = 0
        self.unsynced = False

    @property
    def is_open(self) -> bool:
        return self._file is not None

    async def open(self) -> Found:
        """Open or create the file and go on with its chain, or that of the last rotated one.

        A file that is no audit log, or no longer, is rotated away as it is, and a chain begins.
        """
        self._file = await _opened(self.path)
        end = await _end_of(self._file)
        head, torn = last(end)
        self._size = await self._file.seek(0, os.SEEK_END) - torn
        if head is None and (self._size or not end.startswith(BEGINNING[: len(end)])):
            await self._rotate()
            torn = 0
        if torn:
            await self._file.truncate(self._size)
        if not self._size:
            head = await _head_of_rotated(next(rotated(self.path)))
        head = head or START
        self.unsynced = True  # what a life before this one wrote may not be on the disk yet
        arrived = 0 if self.head is None else max(0, head.seq - self.head.seq)
        self.head = head
        return Found(arrived, torn)

    async def append(self, entries: Sequence[Entry]) -> int:
        """Write the first of ``entries``, at least one; return how many. Rotate where due."""
        assert self.head is not None, "not open"
        lines, head, written = bytearray(), self.head, 0
        for entry in entries:
            line, following = sealed(head, *entry)
            if not written and self._size and self._size + len(line) > self._bytes_max:
                await self._rotate()
            if written and self._size + len(lines) + len(line) > self._bytes_max:
                break
            lines += line
            head, written = following, written + 1
        self.unsynced = True
        rest = memoryview(lines)
        while rest:
            rest = rest[await self._file.write(rest) :]
        self._size += len(lines)
        self.head = head
        return written

    async def sync(self) -> None:
        """Wait until the disk has it."""
        if self.unsynced:
            await asyncio.to_thread(os.fsync, self._file.fileno())
            self.unsynced = False

    async def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()

    async def _rotate(self) -> None:
        await self.sync()
        await self.close()
        await asyncio.to_thread(_shift, self.path, self._files_max)
        self._file = await _opened(self.path)
        self._size = 0


async def _opened(path: Path) -> Any:
    return await aiofiles.open(path, "a+b", buffering=0, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _shift(path: Path, files_max: int) -> None:
    """Rename every file to the next number, up to the first free one; the last one is replaced."""
    names = [path]
    for name, _ in zip(rotated(path), range(files_max - 1), strict=False):
        names.append(name)
        if not name.exists():
            break
    for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
        newer.replace(older)


async def _end_of(file: Any) -> bytes:
    size = await file.seek(0, os.SEEK_END)
    await file.seek(max(0, size - TAIL_BYTES))
    end: bytes = await file.read(TAIL_BYTES)
    return end


async def _head_of_rotated(path: Path) -> Head | None:
    try:
        async with aiofiles.open(path, "rb", buffering=0) as file:
            return last(await _end_of(file))[0]
    except FileNotFoundError:
        return None
