"""What the worker thread knows of one file, for whoever asks why it is read or not.

Lives in the worker thread. Looks at everything, and changes nothing.
"""

from typing import NamedTuple

from agent.core.discovery import file_key
from agent.core.explaining import Doing, Known, Named
from agent.harvester import Followed
from agent.opener import Descriptor
from agent.sources import Sources
from agent.unpacking import content_birth, is_compressed, is_content


class Found(NamedTuple):
    known: Known | None
    doing: Doing


def find(sources: Sources, named: Named, file: Descriptor | None) -> Found:
    """Return what is known of the file that ``named`` is; ``file`` is it, opened for a look."""
    followed = sources.at(named.path)
    if followed is None and file is not None:
        births = [file.birth]
        if is_compressed(named.path, file):
            births.append(content_birth(file.birth))
        followed = next(filter(None, map(sources.registry.get, births)), None)
    waits = sources.waits(named.path, named.client)
    if waits is None and followed is None and file is not None:
        key = file_key(file.birth.device, file.birth.inode)
        waits = ("unpacking", "") if sources.packed.studies(key) else None
    refused = sources.refusals.why(named.path) or (None, "")
    doing = Doing(
        running=True,
        waits=None if waits is None else waits[0],
        waits_detail="" if waits is None else waits[1],
        refused=refused[0],
        refused_detail=refused[1],
    )
    return Found(None if followed is None else _known(followed), doing)


def _known(followed: Followed) -> Known:
    row, reader, packed = followed.latest(), followed.harvester, is_content(followed.birth)
    return Known(
        source=row.source_id,
        generation=row.generation,
        watermark=row.watermark,
        read_to=row.watermark if reader is None else reader.cursor.start,
        in_flight_bytes=0 if reader is None else reader.ledger.in_flight_bytes,
        open=reader is not None,
        torn=reader is not None and reader.torn and not reader.ledger.in_flight_bytes,
        packed=packed,
        packed_size=reader.file.size() if packed and reader is not None else None,
        continues=row.source_id if row.birth != followed.birth else None,
        gone_at=row.gone_at,
    )
