"""One pass over what is packed in a file: its size, whether it is whole, and a few of its bytes.

Lives in the worker thread. A compressed stream cannot be asked about its middle, so what the
evidence of ``core.identity`` will need is kept on the way.
"""

from collections.abc import Generator, Iterable

from agent.core.identity import ANCHOR_BYTES, FINGERPRINT_BYTES, Birth, Range
from agent.opener import Refused
from agent.studies import READ_BYTES
from agent.unpacking import End, Unpacked

DAMAGE: dict[End, str] = {
    "short": "ends before its end",
    "corrupt": "cannot be unpacked to its end",
    "window": "needs a window above 8 MiB",
}


class Unsurveyed(Exception):
    """A range is wanted that the pass over the content did not keep."""

    def __init__(self, wanted: Range) -> None:
        self.wanted = wanted


class Surveyed:
    """What one pass found out about a content; stands for it as a ``core.identity.File``."""

    def __init__(self, file: Unpacked, size: int, found: dict[Range, bytes]) -> None:
        self.birth: Birth = file.birth
        self.end: End | None = file.end
        self.damage_at = file.damage_at
        self._size = size
        self._found = found

    @property
    def refused(self) -> Refused | None:
        """Return why it could not be read to its end, None where it could."""
        why = None if self.end is None else DAMAGE.get(self.end)
        return None if why is None else Refused("corrupt", why)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        pass

    def pread(self, length: int, offset: int) -> bytes:
        """Raises ``Unsurveyed``."""
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        for kept, content in self._found.items():
            if kept.start <= offset and end <= kept.start + len(content):
                return content[offset - kept.start : end - kept.start]
        raise Unsurveyed(Range(offset, end))


def survey(file: Unpacked, wanted: Iterable[Range]) -> Generator[int, None, Surveyed]:
    """Go through all of ``file``; a second time where it is damaged, for all that is sound."""
    while True:
        kept = {r: bytearray() for r in {*wanted, Range(0, FINGERPRINT_BYTES)}}
        at, tail, again = 0, b"", file.damage_at is None
        while piece := file.pread(READ_BYTES, at):
            end = at + len(piece)
            for start, stop in kept:
                if start < end and at < stop:
                    kept[Range(start, stop)] += piece[max(0, start - at) : stop - at]
            tail = (tail + piece)[-ANCHOR_BYTES:]
            at = end
            yield len(piece)
        if file.end != "corrupt" or not again:
            break
        file.start_over()
    found = {r: bytes(content) for r, content in kept.items()}
    return Surveyed(file, at, found | {Range(at - len(tail), at): tail})
