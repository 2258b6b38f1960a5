"""What is validated, opened as the agent reads it: a file, the content of one, or stdin."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent.core.identity import Birth, Held
from agent.opener import Descriptor
from agent.survey import DAMAGE
from agent.unpacking import Unpacked, is_compressed

STDIN = "-"
NOWHERE = Birth(0, 0, 0, 0)
"""Of standard input: ids that are derived from the place are not those that the agent gives."""


class Unusable(Exception):
    """It cannot be read. ``str()`` is for people."""


class Input(Struct):
    """One input. ``whole``: its end is the end of its last line, for nothing can follow."""

    name: str
    file: Held
    birth: Birth
    whole: bool

    @property
    def damage(self) -> str | None:
        """Return why a compressed file was not read to its end."""
        end = self.file.end if isinstance(self.file, Unpacked) else None
        return DAMAGE.get(end) if end is not None else None


@contextmanager
def opened(name: str, stdin: BinaryIO) -> Iterator[Input]:
    """Open ``name``; ``-`` is ``stdin``. Raises ``Unusable``."""
    try:
        file = _kept(stdin) if name == STDIN else _descriptor(Path(name))
    except OSError as error:
        raise Unusable((error.strerror or str(error)).lower()) from None
    with file:
        if name == STDIN:
            yield Input(name, file, NOWHERE, whole=False)
        elif is_compressed(name, file):
            content = Unpacked(file)
            yield Input(name, content, content.birth, whole=True)
        else:
            yield Input(name, file, file.birth, whole=False)


def _descriptor(path: Path) -> Descriptor:
    # Not blocking: a FIFO must not hold it up.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unusable("not a regular file")
    return Descriptor(fd)


def _kept(stdin: BinaryIO) -> Descriptor:
    """Put by what comes, in a file without a name: the agent's reader looks back."""
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(stdin, kept)
        kept.flush()
        return Descriptor(os.dup(kept.fileno()))
