"""Which followed file a scan met where. Lives in the worker thread."""

from collections.abc import Iterable

from msgspec.structs import replace

from agent.core.discovery import FileKey, Seen
from agent.harvester import Followed


class Met:
    """Followed files that are there, by what a scan knows of them: key and path."""

    def __init__(self) -> None:
        self.by_key: dict[FileKey, Followed] = {}
        self._by_path: dict[str, Followed] = {}

    def at(self, path: str) -> Followed | None:
        return self._by_path.get(path)

    def get(self, key: FileKey, /) -> Seen | None:
        """Return the file of that key as it was met last. From any thread."""
        followed = self.by_key.get(key)
        return None if followed is None else followed.seen

    def see(self, followed: Followed, seen: Seen) -> None:
        """Note where ``followed`` was met."""
        self._leave(followed)
        path = followed.checkpoint.path
        if path is not seen.path and path == seen.path:  # one text for both, after a restart too
            seen = replace(seen, path=path)
        followed.seen = seen
        self.by_key[seen.key] = followed
        self._by_path[seen.path] = followed
        if followed.harvester is not None:
            followed.harvester.path = seen.path

    def lose(self, key: FileKey) -> Followed:
        """Forget where a file was that is there no more, and return it."""
        followed = self.by_key.pop(key)
        self._leave(followed)
        return followed

    def sightings(self) -> dict[FileKey, Seen]:
        return {key: f.seen for key, f in self.by_key.items() if f.seen is not None}

    def files(self) -> Iterable[Followed]:
        return self.by_key.values()

    def _leave(self, followed: Followed) -> None:
        if followed.seen is not None and self._by_path.get(followed.seen.path) is followed:
            del self._by_path[followed.seen.path]
