"""From a name that a scan met to a file that is read, or to the reason why not.

Lives in the worker thread. Who a file is, the registry says; of a compressed one, ``packed``.
"""

from collections.abc import Callable

from agent.core.auditing import Note, unheard
from agent.core.discovery import Seen, file_key
from agent.met import Met
from agent.opened import Opened
from agent.opener import Descriptor, Refused
from agent.packed import Packed
from agent.refusals import Refusals
from agent.registry import Registry
from agent.turns import Turns
from agent.unpacking import COMPRESSED, content_birth, is_compressed


class Adoption:
    """Opens files and begins to follow them.

    Args:
        open_file: Open a path beneath the root, or say why not.
        lose: Say that what was at that sighting is there no more.
        note: Of the audit log.
    """

    def __init__(
        self,
        open_file: Callable[[str], Descriptor | Refused],
        registry: Registry,
        packed: Packed,
        *,
        met: Met,
        opened: Opened,
        turns: Turns,
        lose: Callable[[Seen], None],
        refusals: Refusals,
        note: Note = unheard,
    ) -> None:
        self._open_file = open_file
        self._registry = registry
        self._packed = packed
        self._met = met
        self._opened = opened
        self._turns = turns
        self._lose = lose
        self._refusals = refusals
        self._note = note

    def wake(self, seen: Seen) -> None:
        """Make a file that the scan or a hint named ready to be read, if it can be opened."""
        followed = self._met.by_key.get(seen.key)
        if followed is not None and followed.harvester is not None:
            self._met.see(followed, seen)
            self._turns.add(followed)
            return
        file = self._open_file(seen.path)
        if isinstance(file, Refused):
            self._refuse(seen, file)
            return
        if file_key(file.birth.device, file.birth.inode) != seen.key:
            file.close()  # rotated since it was seen: the next scan knows what lies here now
            return
        try:
            self._look(file, seen)
        except OSError as error:
            file.close()
            self._refusals.refuse(seen.path, "error", error.strerror or "")

    def _look(self, file: Descriptor, seen: Seen) -> None:
        packed = is_compressed(seen.path, file)
        births = (file.birth, content_birth(file.birth)) if packed else (file.birth,)
        followed = self._met.by_key.get(seen.key)
        if followed is not None and followed.birth not in births:
            self._lose(seen)  # the inode has a new life
        if packed:
            self._adopt_packed(file, seen)
        elif seen.path.endswith(COMPRESSED) and self._registry.get(file.birth) is None:
            file.close()
            self._refusals.refuse(seen.path, "corrupt", "neither gzip nor zstd")
        else:
            self._adopt(file, seen)

    def _adopt(self, file: Descriptor, seen: Seen) -> None:
        known = self._registry.get(file.birth)
        if known is not None and known.harvester is not None:
            file.close()  # it was gone, is back, and was never let go of
            known.harvester.gone_at = None
            known.harvester.ending = False
            self._met.see(known, seen)
            self._turns.add(known)
            return
        if known is None and (links := file.links()) > 1:
            file.close()  # one of its names may be another client's
            self._refusals.refuse(seen.path, "links", f"{links} names")
            return
        found = self._registry.identify(file, seen)
        if found is None:
            file.close()
            return
        followed, base = found
        if followed.seen is None:
            copied = "copy" if base.birth != file.birth else "new"
            self._note("file.adopted", path=seen.path, client=base.client, source=base.source_id,
                       generation=base.generation, offset=base.watermark,
                       why=copied if known is None else "known")  # fmt: skip
        self._met.see(followed, seen)
        self._opened.follow(followed, base, file)
        self._refusals.clear(seen.path)

    def _adopt_packed(self, file: Descriptor, seen: Seen) -> None:
        found = self._packed.identify(file, seen)
        if isinstance(found, Refused):
            self._refuse(seen, found)
            return
        if found is None:
            return
        self._met.see(found.followed, seen)
        self._refusals.clear(seen.path)
        if found.file is not None and found.base is not None:
            self._opened.follow(found.followed, found.base, found.file).ending = found.whole
        elif found.followed.harvester is not None:
            self._turns.add(found.followed)
        if found.refused is not None:
            self._refuse(seen, found.refused)

    def _refuse(self, seen: Seen, refused: Refused) -> None:
        self._refusals.refuse(seen.path, refused.reason, refused.detail)
