"""What stands in files and is in force: read anew when they change, kept while they are bad.

A change is one of content: Kubernetes swaps a link (``..data``) beneath which each file of a
ConfigMap or Secret is another one, an editor writes into the file itself. It counts once two looks
in a row have seen the same, so that half of a file is never taken for all of it.
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from heapq import nsmallest
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from agent.errors import ConfigError
from agent.regular import problem, read

FILE_BYTES_MAX: Final = 4 << 20
FILES_MAX: Final = 1000
"""In one directory."""

T = TypeVar("T")
Outcome = Literal["unchanged", "unsettled", "adopted", "refused"]


class Files:
    """Files, and directories of files, and what they held when this was made.

    Names in a directory that begin with a dot are left out: ``..data`` is Kubernetes' own.
    """

    def __init__(self, *paths: Path | None) -> None:
        self._paths = tuple(path for path in paths if path is not None)
        self.first = self.fingerprint()

    def fingerprint(self) -> bytes:
        """Return what tells one content from another, and each from none."""
        digest = blake2b(digest_size=32)
        for path in self._paths:
            for file in _files(path):
                digest.update(bytes(file) + b"\0" + _state(file))
        return digest.digest()


class Reloaded(Generic[T]):
    """One value out of files: the last good one.

    Args:
        what: It is called so in logs, metrics and ``/status``: one of ``telemetry.RELOADED``.
        files: Made before ``value`` was loaded, so that no change falls between.
        load: Return what the files hold. Raises ``ConfigError``. Runs in a thread.
        version: What may be shown of a value, if anything.

    Attributes:
        value: What is in force. To be read from any thread.
        problem: Why the files as they are now are not.
    """

    def __init__(
        self,
        what: str,
        files: Files,
        load: Callable[[], T],
        *,
        value: T,
        version: Callable[[T], str | None] = lambda _: None,
    ) -> None:
        self.what = what
        self.value = value
        self.problem: ConfigError | None = None
        self._files = files
        self._load = load
        self._version = version
        self._judged = self._seen = files.first

    @property
    def version(self) -> str | None:
        return self._version(self.value)

    def look(self, *, at_once: bool = False) -> Outcome:
        """Look at the files; take what is new and good. ``at_once``: it need not stand still."""
        found = self._files.fingerprint()
        before, self._seen = self._seen, found
        if found == self._judged:
            return "unchanged"
        if found != before and not at_once:
            return "unsettled"
        wrong: ConfigError | None = None
        try:
            value = self._load()
        except ConfigError as error:
            value, wrong = self.value, error
        if self._files.fingerprint() != found:
            return "unsettled"  # it may be half of what is being written
        self._judged, self.value, self.problem = found, value, wrong
        return "adopted" if wrong is None else "refused"

    def status(self) -> dict[str, str | None]:
        return {
            "version": self.version,
            "problem": None if self.problem is None else str(self.problem),
        }


def _files(path: Path) -> Iterator[Path]:
    try:
        names = nsmallest(FILES_MAX, (p for p in path.iterdir() if p.name[0] != "."))
    except OSError:  # not a directory, or one that cannot be read
        names = [path]
    yield from names


def _state(file: Path) -> bytes:
    try:
        content = read(file, FILE_BYTES_MAX).content
    except (OSError, ValueError) as error:
        return b"-" + problem(error).encode()
    return b"+" + blake2b(content, digest_size=32).digest()
