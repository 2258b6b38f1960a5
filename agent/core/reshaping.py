"""Batches that cannot stay as they are: a record in them is refused, or their partition is gone.

Pure, as records are cut and sealed by what comes in. Chunks count the batches that hold lines of
them, so whoever makes more or fewer of those counts again.
"""

from collections.abc import Callable, Mapping

from agent.core.batch import Batch
from agent.core.lanes import Lanes

Split = Callable[[Batch], tuple[Batch, Batch]]
"""Cut a batch of several records in two, in order. Both halves keep all chunks."""
Repartition = Callable[[list[Batch], int], list[Batch]]
"""Seal the records of batches anew for a topic of so many partitions, in file order; no chunks."""


def isolate(lanes: Lanes, refused: Mapping[Batch, str], split: Split) -> list[tuple[Batch, str]]:
    """Halve what was refused, in its place. Return, with the reason, what is a single record."""
    alone: list[tuple[Batch, str]] = []
    for batch, reason in refused.items():
        if batch.count == 1:
            lanes.replace(batch)
            alone.append((batch, reason))
            continue
        lanes.replace(batch, *split(batch))
        for chunk in batch.chunks:
            chunk.open_batches += 1  # two batches hold its lines now
    return alone


def fitted(lanes: Lanes, partitions: int, repartition: Repartition) -> Lanes:
    """Return the lanes for a topic of ``partitions``; nothing is out.

    Of two partitions that become one the lines alternate in their files, so everything is sealed
    anew. Which record is of which chunk nobody knows any more: each batch settles its share of
    every chunk.
    """
    old = lanes.batches()
    if all(batch.partition < partitions for batch in old):
        return lanes
    chunks = list(dict.fromkeys(chunk for batch in old for chunk in batch.chunks))
    fresh = Lanes()
    sealed = repartition(old, partitions)
    for batch in sealed:
        batch.chunks = chunks.copy()
        fresh.add(batch)
    for batch in old:
        batch.end_span("resealed")
        for chunk in batch.chunks:
            chunk.open_batches -= 1
    for chunk in chunks:
        chunk.open_batches += len(sealed)
    return fresh
