"""Reads the audit log from behind as it is written, from one record on, through its rotations.

Every method blocks; one thread at a time. ``read`` may raise ``OSError``; the next one goes on
where the last one was.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from agent.audit_file import TAIL_BYTES, identity, lines, opened
from agent.core.auditing import Head, parsed


class Line(NamedTuple):
    """A record as it stands in the file, without its LF."""

    text: bytes
    head: Head


class Tail:
    """Returns the records behind ``after``; all that are kept, where that is not among them.

    A line that is no record, or not the one that its hash says, is passed over: who may write the
    file could put anything there.
    """

    def __init__(self, path: Path, after: Head | None) -> None:
        self.after = after
        """The last record that was read."""
        self._path = path
        self._file: BinaryIO | None = None
        self._at = 0

    def read(self, durable: Head) -> list[Line]:
        """Return the next records, ``TAIL_BYTES`` at most; nothing where there are no more.

        ``durable``: the newest record that the disk has. Those behind it are left for later: a
        power cut may take them, and then others come in their place.
        """
        if self._file is not None and os.fstat(self._file.fileno()).st_size < self._at:
            self.close()  # somebody cut it: where we were is to be looked for
        while self._file is not None or self._begin():
            newest = self._is_newest()  # before it is read: after that something may be added
            before = self._at
            found = self._take_lines(durable if newest else None)
            if found:
                self.after = found[-1].head
                return found
            if self._at == before and (newest or not self._next()):
                break
        return []

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _take_lines(self, durable: Head | None) -> list[Line]:
        assert self._file is not None
        block = os.pread(self._file.fileno(), TAIL_BYTES, self._at)
        *whole, rest = block.split(b"\n")
        if not whole and len(rest) == TAIL_BYTES:
            self._at += TAIL_BYTES  # a part of something that is longer than any record
        found: list[Line] = []
        for text in whole:
            record = parsed(text)
            if record is not None and record.sound:
                if durable is not None and record.seq > durable.seq:
                    break
                found.append(Line(text, record.head))
            self._at += len(text) + 1
        return found

    def _is_newest(self) -> bool:
        assert self._file is not None
        try:
            return identity(self._path.stat()) == identity(os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False  # within a rotation

    def _begin(self) -> bool:
        """Find ``after``, the newest file first. Return whether there is a log at all."""
        with ExitStack() as keep:
            files = opened(self._path, keep)
            for file in reversed(files):
                at = None if self.after is None else _behind(self.after, file)
                if at is not None:
                    self._take(file, at)
                    return True
            if files:
                self._take(files[0], 0)
            return bool(files)

    def _next(self) -> bool:
        """Go on with the file that was made after this one. Return whether there is one."""
        assert self._file is not None
        mine = identity(os.fstat(self._file.fileno()))
        with ExitStack() as keep:
            files = opened(self._path, keep)
            at = [identity(os.fstat(file.fileno())) for file in files]
            following = files[at.index(mine) + 1 :] if mine in at else files
            if following:
                self._take(following[0], 0)
            return bool(following)

    def _take(self, file: BinaryIO, at: int) -> None:
        self.close()
        self._file, self._at = os.fdopen(os.dup(file.fileno()), "rb", buffering=0), at


def _behind(head: Head, file: BinaryIO) -> int | None:
    """Return where the record after ``head`` begins; None if ``head`` is not in ``file``."""
    at, end = 0, f'"hash":"{head.hash}"}}\n'.encode()
    for line in lines(file):
        at += len(line)
        if line.endswith(end):
            return at
    return None
