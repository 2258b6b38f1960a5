"""What a scan means: what to open, in which order; what is gone. Pure."""

from collections import defaultdict
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from msgspec import Struct

DEFAULT_CLIENT = "default"

FileKey = int
"""Device and inode: enough to recognise a file from one scan to the next, not after a restart."""


def file_key(device: int, inode: int) -> FileKey:
    """Return one number for both: every known file has it, and a pair would take more memory."""
    return device << 64 | inode


_INODE = (1 << 64) - 1

SkipReason = Literal[
    "symlink",
    "not_regular",
    "other_device",
    "permission",
    "gone",
    "too_deep",
    "too_many",
    "old",
    "error",
]


class Seen(Struct, frozen=True, gc=False):
    """A regular file that one scan met. ``path`` is relative to the root, surrogate-escaped."""

    path: str
    client: str
    key: FileKey
    size: int
    mtime_ns: int

    @property
    def inode(self) -> int:
        return self.key & _INODE


class Skipped(Struct, frozen=True):
    """A name that will not be read, or a directory that could not be, and why."""

    path: str
    reason: SkipReason


class Scan(Struct, frozen=True):
    """What one walk met. It says so when it did not see everything.

    ``root_problem`` is one word for logs and status, None when the root was read. ``over_limit``
    counts the unknown files beyond what the limits allow, by client; known ones are always in
    ``files``. ``skipped`` names a few of each client and reason, ``skipped_counts`` has them all.
    What lies below a directory among ``unreadable`` was not seen, or not all of it; a client with
    too many of them is there once, as ``too_many``. ``directories`` are those that were read,
    relative to the root, which is "".
    """

    files: tuple[Seen, ...] = ()
    directories: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unreadable: tuple[Skipped, ...] = ()
    root_problem: str | None = None
    over_limit: dict[str, int] = {}
    skipped_counts: dict[SkipReason, int] = {}


class Sightings(Protocol):
    """The files that are followed, as they were seen last. May change meanwhile."""

    def get(self, key: FileKey, /) -> Seen | None: ...


NONE_SEEN: Sightings = MappingProxyType[FileKey, Seen]({})


class Looking(Protocol):
    """Says which files there are, and raises nothing about them: see ``Scan``."""

    def scan(self, known: Sightings = NONE_SEEN, remembered: Container[int] = ()) -> Scan:
        """Look once. ``known`` are followed by now, ``remembered`` the inodes of what was."""


class Limits(Struct, frozen=True):
    """How much one scan may take in of files that nobody knows yet."""

    files_max: int = 50_000
    """Of all clients together, the known ones included."""
    client_files_max: int = 10_000
    """Of one client, likewise: none uses up the room of the others alone."""


class Admission:
    """Chooses among the files of one scan: all that are known, of the others what has room.

    Holds at most ``client_files_max`` unknown files of a client, whatever is offered.

    Args:
        known: Of a file that is as it says, a scan has the very ``Seen`` that it holds: ten
            thousand files at rest would otherwise take their memory twice.
        remembered: Inodes of files that were followed once, before a restart too: none of them is
            too old, and they come first where room is short.
        oldest_ns: An unknown file that was last written before is passed over; None: none is.
        lately: The unknown ones of the scan before, to be shared as the known ones are: of a large
            tree most wait to be opened.
    """

    def __init__(
        self,
        limits: Limits,
        known: Sightings,
        remembered: Container[int] = (),
        oldest_ns: int | None = None,
        lately: Mapping[FileKey, Seen] = MappingProxyType({}),
    ) -> None:
        self._limits = limits
        self._known = known
        self._remembered = remembered
        self._oldest_ns = oldest_ns
        self._lately = lately
        self._taken: list[Seen] = []
        self._taken_of: defaultdict[str, int] = defaultdict(int)
        self._new: defaultdict[str, list[Seen]] = defaultdict(list)
        self._over: defaultdict[str, int] = defaultdict(int)
        self.unknown: dict[FileKey, Seen] = {}
        """Those of ``result`` that nobody knew."""

    def offer(self, seen: Seen) -> bool:
        """Take note of ``seen``; return False if it is too old to begin with."""
        before = self._known.get(seen.key)
        if before is not None:
            self._taken.append(before if before == seen else seen)
            self._taken_of[seen.client] += 1
            return True
        remembered = seen.inode in self._remembered
        if self._oldest_ns is not None and seen.mtime_ns < self._oldest_ns and not remembered:
            return False
        new = self._new[seen.client]
        if remembered or len(new) < self._limits.client_files_max:
            before = self._lately.get(seen.key)
            new.append(before if before == seen else seen)
        else:
            self._over[seen.client] += 1
        return True

    def result(self) -> tuple[tuple[Seen, ...], dict[str, int]]:
        """Return the files to take, and by client how many others there are.

        Where ``files_max`` is short, clients with few files get them all, the others as many each.
        """
        taken, over = [*self._taken], self._over.copy()
        room, clients = self._limits.files_max - len(taken), len(self._new)
        for client, new in sorted(self._new.items(), key=lambda item: len(item[1])):
            own = self._limits.client_files_max - self._taken_of[client]
            share = max(0, min(own, room // clients))
            if share < len(new):
                new.sort(key=lambda s: s.inode not in self._remembered)
                over[client] += len(new) - share
            chosen = new[:share]
            taken += chosen
            self.unknown.update((seen.key, seen) for seen in chosen)
            room, clients = room - len(chosen), clients - 1
        return tuple(taken), dict(over)


Why = Literal["new", "grown", "shrunk", "touched", "renamed"]


class Found(Struct, frozen=True, gc=False):
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


def plan(
    known: Mapping[FileKey, Seen],
    scan: Scan,
    settled: Mapping[int, int] = MappingProxyType({}),
) -> Plan:
    """Compare a scan with what earlier ones met. Oldest first, so that rotated files finish first;
    but last those that are ``settled`` to their end, by inode, as far as anybody remembers: they
    are opened to see that they are still who they were.

    Nothing is called gone on half the truth: not what lies in an unreadable directory, and
    nothing at all after a scan that did not see the whole tree.
    """
    met: dict[FileKey, Seen] = {}
    linked = []
    for seen in scan.files:
        key = seen.key
        other = met.setdefault(key, seen)
        if other is not seen:
            met[key], further = _by_rank(known.get(key), other, seen)
            linked.append(further)
    found = []
    for key, seen in met.items():
        before = known.get(key)
        if why := _why(before, seen):
            found.append(Found(seen, why, before))
    found.sort(key=lambda f: f.seen.path)  # by what matters least first: that takes no memory
    found.sort(key=lambda f: f.seen.mtime_ns)
    found.sort(key=lambda f: settled.get(f.seen.inode) == f.seen.size)
    gone = [before for key, before in known.items() if key not in met and _missed(before, scan)]
    return Plan(tuple(found), tuple(gone), tuple(linked))


def _by_rank(before: Seen | None, one: Seen, other: Seen) -> list[Seen]:
    """Order two names of one file: it keeps the one we know, of unknown ones the first."""
    return sorted([one, other], key=lambda s: (before is None or s.path != before.path, s.path))


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
    if scan.root_problem is not None:
        return False
    return not any(is_below(before.path, directory.path) for directory in scan.unreadable)


def is_below(path: str, directory: str) -> bool:
    """Return whether ``path`` lies in ``directory``, however deep; the root is ""."""
    return not directory or path.startswith(f"{directory}/")


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
