"""What a scan means: what to open, in which order; what is gone. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

DEFAULT_CLIENT = "default"

FileKey = tuple[int, int]
"""(device, inode): enough to recognise a file from one scan to the next, not after a restart."""

SkipReason = Literal[
    "symlink",
    "not_regular",
    "compressed",
    "other_device",
    "permission",
    "gone",
    "too_deep",
    "error",
]


class Seen(Struct, frozen=True, gc=False):
    """A regular file that one scan met. ``path`` is relative to the root, surrogate-escaped."""

    path: str
    client: str
    inode: int
    device: int
    size: int
    mtime_ns: int

    @property
    def key(self) -> FileKey:
        return self.device, self.inode


class Skipped(Struct, frozen=True):
    """A name that will not be read, or a directory that could not be, and why."""

    path: str
    reason: SkipReason


class Scan(Struct, frozen=True):
    """What one walk met. It says so when it did not see everything.

    ``root_problem`` is one word for logs and status, None when the root was read. ``over_limit``
    counts the unknown files beyond ``source.files_max``; known ones are always in ``files``.
    ``skipped`` and ``unreadable`` end at a bound of the scanner's, the rest is in their ``_cut``.
    ``directories`` are those that were read, relative to the root, which is "".
    """

    files: tuple[Seen, ...] = ()
    directories: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unreadable: tuple[Skipped, ...] = ()
    root_problem: str | None = None
    over_limit: int = 0
    skipped_cut: int = 0
    unreadable_cut: int = 0


Why = Literal["new", "grown", "shrunk", "touched", "renamed"]


class Found(Struct, frozen=True):
    """A file to open, and what made it worth it.

    ``shrunk`` and ``touched`` (another mtime, the same size) are suspicions of truncation or
    replacement: the content decides. ``before`` is where a known file was when last seen.
    """

    seen: Seen
    why: Why
    before: Seen | None = None


class Plan(Struct, frozen=True):
    """``open`` is in reading order. ``linked`` are further names of a file that has one already."""

    open: tuple[Found, ...] = ()
    gone: tuple[Seen, ...] = ()
    linked: tuple[Seen, ...] = ()


def plan(known: Mapping[FileKey, Seen], scan: Scan) -> Plan:
    """Compare a scan with what earlier ones met. Oldest first, so that rotated files finish first.

    Nothing is called gone on half the truth: not what lies in an unreadable directory, and
    nothing at all after a scan that did not see the whole tree.
    """
    names: defaultdict[FileKey, list[Seen]] = defaultdict(list)
    for seen in scan.files:
        names[seen.key].append(seen)
    found, linked = [], []
    for key, same in names.items():
        before = known.get(key)
        # A file with several names keeps the one we know; of unknown ones the first.
        same.sort(key=lambda s: (before is None or s.path != before.path, s.path))
        linked += same[1:]
        if why := _why(before, same[0]):
            found.append(Found(same[0], why, before))
    found.sort(key=lambda f: (f.seen.mtime_ns, f.seen.path))
    gone = [before for key, before in known.items() if key not in names and _missed(before, scan)]
    return Plan(tuple(found), tuple(gone), tuple(linked))


def _why(before: Seen | None, now: Seen) -> Why | None:
    if before is None:
        return "new"
    if now.size < before.size:
        return "shrunk"
    if now.path != before.path:
        return "renamed"
    if now.size > before.size:
        return "grown"
    return "touched" if now.mtime_ns != before.mtime_ns else None


def _missed(before: Seen, scan: Scan) -> bool:
    if scan.root_problem is not None or scan.unreadable_cut:
        return False
    return not any(before.path.startswith(f"{d.path}/") for d in scan.unreadable)


def client_of(path: str, depth: int) -> str:
    """Name the client that writes ``path``: its first ``depth`` directories, printable."""
    directories = path.split("/")[:-1][:depth]
    return "/".join(map(printable, directories)) or DEFAULT_CLIENT


def printable(name: str) -> str:
    """Escape what no log, header or label should carry. Two names never become one."""
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(character) for character in name)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
