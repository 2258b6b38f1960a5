"""Begins a file anew at another place, because an operator wants it: always as a new generation.

The stored checkpoint of one generation never goes back (invariant 2), so the old one ends where it
is and what is pending of it settles alone. Lives in the worker thread.
"""

from collections.abc import Callable
from contextlib import closing

from msgspec import Struct
from msgspec.structs import replace

from agent.core.discovery import Seen, file_key
from agent.core.identity import Change, Checkpoint, Held
from agent.errors import AgentError
from agent.harvester import Followed
from agent.met import Met
from agent.opened import Opened
from agent.opener import Descriptor, Refused
from agent.positions import offset_of
from agent.registry import Registry
from agent.unpacking import is_compressed, is_content

COMPRESSED = (
    "is compressed: its content cannot be begun anew at another place; `feedback-agent backfill "
    "--force` ships all of it again"
)


class Reset(Struct, frozen=True, kw_only=True):
    """What a reset does, or would do.

    Attributes:
        generation: The new one; the present one where nothing changes.
        before: The watermark of the generation that ends.
        at: Where the new one begins.
        again_bytes: Settled already, and sent once more.
        skipped_bytes: Not settled, and passed over: they are never sent.
    """

    path: str
    client: str
    source: str
    generation: int
    before: int
    at: int
    size: int
    again_bytes: int
    skipped_bytes: int
    changed: bool


def outcome(row: Checkpoint, path: str, at: int, size: int, *, generation: int) -> Reset:
    """Say what it means for ``row`` to begin at ``at`` as ``generation``."""
    return Reset(
        path=path,
        client=row.client,
        source=row.source_id,
        generation=generation,
        before=row.watermark,
        at=at,
        size=size,
        again_bytes=max(0, row.watermark - at),
        skipped_bytes=max(0, at - row.watermark),
        changed=generation != row.generation,
    )


class Resetting:
    """Resets files that are followed.

    Args:
        open_file: Open a path beneath the root, or say why not.
        put_by: Let a file be opened again at its checkpoint, when there is room.
    """

    def __init__(
        self,
        open_file: Callable[[str], Descriptor | Refused],
        registry: Registry,
        *,
        met: Met,
        opened: Opened,
        put_by: Callable[[Followed], None],
    ) -> None:
        self._open_file = open_file
        self._registry = registry
        self._met = met
        self._opened = opened
        self._put_by = put_by

    def reset(self, path: str, wanted: str | int, *, dry_run: bool) -> Reset:
        """Begin the file at ``path`` anew; see ``positions.offset_of``. Raises ``AgentError``."""
        followed = self._met.at(path)
        if followed is None or followed.seen is None:
            raise AgentError(
                f"{path}: is not being followed; `feedback-agent explain` says why. An agent that "
                "is stopped can be told where to begin"
            )
        try:
            if followed.harvester is not None:
                file = followed.harvester.file
                return self._reset(followed, followed.seen, file, wanted, dry_run=dry_run)
            with closing(self._opened_again(followed, followed.seen)) as file:
                return self._reset(followed, followed.seen, file, wanted, dry_run=dry_run)
        except OSError as error:
            raise AgentError(f"{path}: {error.strerror}") from None

    def _opened_again(self, followed: Followed, seen: Seen) -> Descriptor:
        file = self._open_file(seen.path)
        if isinstance(file, Refused):
            raise AgentError(f"{seen.path}: cannot be opened: {file.reason}")
        same = file_key(file.birth.device, file.birth.inode) == seen.key
        if not same or file.birth != followed.birth:
            file.close()
            raise AgentError(f"{seen.path}: another file lies there now; try again in a moment")
        return file

    def _reset(
        self, followed: Followed, seen: Seen, file: Held, wanted: str | int, *, dry_run: bool
    ) -> Reset:
        packed = isinstance(file, Descriptor) and is_compressed(seen.path, file)
        if packed or is_content(followed.birth):
            raise AgentError(f"{seen.path}: {COMPRESSED}")
        at, before, reader = offset_of(wanted, file), followed.latest(), followed.harvester
        reached = before.watermark if reader is None else reader.cursor.at
        stands = at == before.watermark == reached
        if stands or dry_run:
            after = before.generation + (not stands)
            return outcome(before, seen.path, at, file.size(), generation=after)
        base = self._registry.supersede(followed, Change("reset", at), file)
        if reader is not None:
            self._opened.follow(followed, base, file)
        else:
            followed.checkpoint = base
            self._registry.rows.append(base)
            self._put_by(followed)
        made = outcome(before, seen.path, at, file.size(), generation=base.generation)
        return replace(made, source=base.source_id, changed=True)
