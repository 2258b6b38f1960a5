"""What is packed in a compressed file, read like a file: gzip (RFC 1952) and zstd (RFC 8878).

Lives in the worker thread. Offsets are those of the content. It is read forward only; what was
read is forgotten behind the offset that was asked for last, and going back further starts over.
"""

from collections.abc import Generator
from typing import Any, Literal, Protocol

from isal import igzip_lib
from msgspec.structs import replace

from agent.core.identity import ANCHOR_BYTES, FINGERPRINT_BYTES, Birth
from agent.opener import Descriptor

COMPRESSED = (".gz", ".zst")
WINDOW_BITS = 23
"""The largest window of a zstd frame, 8 MiB: what every decoder must support at least."""
PACKED = 1 << 32
"""In the inode generation of a content's birth: file systems write 32 bits of it."""

End = Literal["complete", "short", "corrupt", "window"]
"""How a stream ends: at the end of a member, before it, or because it cannot be read further."""

_IN_BYTES = 64 << 10
_OUT_BYTES = 256 << 10
_LINE_SHOWN_BYTES = 64 << 10
_MAGIC_BYTES = 4
_ZSTD = (0xFD2FB528, *range(0x184D2A50, 0x184D2A60))
"""A frame's first bytes, little endian; or a skippable one's."""


class Decoder(Protocol):
    """Of one gzip member or one zstd frame; like ``bz2.BZ2Decompressor``."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, packed: bytes, max_length: int = ..., /) -> bytes: ...


def content_birth(birth: Birth) -> Birth:
    """Say who the content of a compressed file is: a source of its own, with its own offsets."""
    return replace(birth, inode_generation=birth.inode_generation | PACKED)


def is_content(birth: Birth) -> bool:
    return bool(birth.inode_generation & PACKED)


def file_birth(birth: Birth) -> Birth:
    """Return the birth of the file itself."""
    return replace(birth, inode_generation=birth.inode_generation & ~PACKED)


def is_compressed(path: str, file: Descriptor) -> bool:
    """Return whether name and first bytes are those of a compressed file, or it is too short."""
    return path.endswith(COMPRESSED) and _is_packed(file.pread(_MAGIC_BYTES, 0))


def _is_packed(first: bytes) -> bool:
    return len(first) < _MAGIC_BYTES or _decoder(first) is not None


def _decoder(first: bytes) -> Decoder | None:
    if first.startswith(b"\x1f\x8b"):
        gzip: Any = igzip_lib.IgzipDecompressor
        made: Decoder = gzip(flag=igzip_lib.DECOMP_GZIP)
        return made
    return _zstd() if int.from_bytes(first[:_MAGIC_BYTES], "little") in _ZSTD else None


def _zstd() -> Decoder:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # 3.14
    except ImportError:
        from backports import zstd
    made: Decoder = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: WINDOW_BITS}
    )
    return made


class Unpacked:
    """The content of ``packed``, which it owns; see ``core.identity.Readable``.

    Memory is bounded whatever the content is: a decoder, and what one ``pread`` asks for.

    Attributes:
        limit: Nothing is read beyond it; the size, once a survey has found it out.
        damage_at: Where in the file it is damaged, at the earliest: from there on it is read byte
            by byte, for a decoder that fails keeps what it has unpacked of its last bytes.
        end: How the stream ended, None while it has not.
    """

    def __init__(
        self, packed: Descriptor, limit: int | None = None, damage_at: int | None = None
    ) -> None:
        self.packed = packed
        self.birth = content_birth(packed.birth)
        self.limit = limit
        self.damage_at = damage_at
        self._head = b""
        self._line: tuple[int, bytes] | None = None  # the beginning of one longer than a read
        self._line_over = False
        self.start_over()

    @property
    def reached(self) -> int:
        """Return how far it was unpacked."""
        return self._at + len(self._window)

    def size(self) -> int:
        return self.reached if self.limit is None else self.limit

    def links(self) -> int:
        return self.packed.links()

    def disk_bytes(self) -> int:
        return self.packed.disk_bytes()

    def beyond_hole(self, offset: int) -> int:
        return offset

    def close(self) -> None:
        self.packed.close()

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to ``length`` bytes at ``offset``; fewer only where the content ends."""
        if self.limit is not None:
            length = min(length, self.limit - offset)
        if length <= 0:
            return b""
        for start, kept in ((0, self._head), self._line or (0, b"")):
            if start <= offset and offset + length <= start + len(kept):
                return kept[offset - start : offset - start + length]
        for _ in self.forward(offset):
            pass
        while self.reached < offset + length and (more := self._more()):
            self._window += more
        got = bytes(self._window[offset - self._at : offset - self._at + length])
        self._keep_line(offset, got)
        return got

    def forward(self, offset: int) -> Generator[int]:
        """Go to ``offset``, or to the end; yields the bytes that were unpacked, in small steps."""
        if offset < self._at:
            self.start_over()
        while self.reached < offset and (more := self._more()):
            self._at += len(self._window)
            self._window[:] = more
            yield len(more)
        behind = min(offset, self.reached) - self._at
        del self._window[:behind]
        self._at += behind

    def start_over(self) -> None:
        self.end: End | None = None
        self._at = 0
        self._window = bytearray()
        self._decoder: Decoder | None = None
        self._fed = b""  # read, and not taken by the decoder
        self._read_at = 0
        self._tried_at = 0  # the last bytes that the decoder was given

    def _more(self) -> bytes:
        """Unpack the next bytes; none at the end."""
        while self.end is None:
            if self._decoder is None and not self._next_member():
                break
            assert self._decoder is not None
            packed = self._feed() if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                self.end = "short"
                break
            try:
                more = self._decoder.decompress(packed, _OUT_BYTES)
            except Exception as error:  # noqa: BLE001 - each library's own, below Exception only
                self.end = "window" if "too much memory" in str(error) else "corrupt"
                if self.damage_at is None:
                    self.damage_at = self._tried_at
                break
            if self._decoder.eof:
                self._fed = self._decoder.unused_data + self._fed
                self._decoder = None
            if more:
                if len(self._head) < FINGERPRINT_BYTES and self.reached == len(self._head):
                    self._head += more[: FINGERPRINT_BYTES - len(self._head)]
                return more
        return b""

    def _next_member(self) -> bool:
        """Begin the next member; a file may hold several. False at the end."""
        while True:
            first = self._fed or self._read(_IN_BYTES)
            self._fed = first.lstrip(b"\0") if self._read_at else first  # gzip(1) pads with zeros
            if self._fed or not first:
                break
        if len(self._fed) < _MAGIC_BYTES:
            self._fed += self._read(_IN_BYTES)
        if not self._fed:
            self.end = "complete" if self._read_at else "short"
            return False
        self._decoder = _decoder(self._fed)
        if self._decoder is None:
            self.end = "short" if len(self._fed) < _MAGIC_BYTES else "corrupt"
        return self._decoder is not None

    def _feed(self) -> bytes:
        packed, self._fed = self._fed or self._read(_IN_BYTES), b""
        self._tried_at = self._read_at - len(packed)
        if self.damage_at is not None:
            sound = max(1, self.damage_at - self._tried_at)
            packed, self._fed = packed[:sound], packed[sound:]
        return packed

    def _read(self, length: int) -> bytes:
        got = self.packed.pread(length, self._read_at)
        self._read_at += len(got)
        return got

    def _keep_line(self, offset: int, got: bytes) -> None:
        """Keep the beginning of a line that is passed over: it is shown once its end was found."""
        if b"\n" in got[ANCHOR_BYTES if offset else 0 :]:
            self._line = None if self._line_over else self._line
            self._line_over = True
        elif self._line is None or self._line_over:
            self._line = offset, got[: ANCHOR_BYTES + _LINE_SHOWN_BYTES]
            self._line_over = False
