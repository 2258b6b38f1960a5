"""Which dead letters of the store go, and what becomes of the others that lie in the same rows."""

import json
import tempfile
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import purging, wire
from agent.core.batch import Batch
from agent.core.revival import Wanted
from agent.spool import Spool
from tests.fakes import PLAIN

GZIP = wire.codec("gzip", None)


class Dead(NamedTuple):
    """A dead letter as the tests think of it."""

    reason: str
    client: str
    at_ms: int


DEAD = st.builds(
    Dead,
    reason=st.sampled_from(["schema", "oversize", "refused_invalid"]),
    client=st.sampled_from(["shop", "chat"]),
    at_ms=st.integers(0, 9),
)
WANTED = st.builds(
    Wanted,
    reason=st.sampled_from([None, "schema", "refused_invalid", "none has it"]),
    client=st.sampled_from([None, "shop"]),
    since_ms=st.sampled_from([None, 3]),
    until_ms=st.sampled_from([None, 7]),
)


def sealed(letters: list[tuple[int, Dead]]) -> Batch:
    """Return a row's batch. What the topic refused says in its value whose it is."""
    builder = wire.Builder(-1, 1 << 20, 0.0)
    for number, (reason, client, at_ms) in letters:
        headers = [("reason", reason.encode()), ("number", b"%d" % number)]
        value = b"{}"
        if reason.startswith("refused"):
            value = json.dumps({"metadata": {"client": client}}).encode()
        else:
            headers.append(("client", client.encode()))
        builder.extend([(at_ms, b"key", value, headers)])
    return builder.seal(GZIP)


def is_wanted(one: Dead, wanted: Wanted) -> bool:
    reason, client, since_ms, until_ms = wanted
    return (
        (reason is None or one.reason == reason)
        and (client is None or one.client == client)
        and (since_ms is None or one.at_ms >= since_ms)
        and (until_ms is None or one.at_ms < until_ms)
    )


def numbers(spool: Spool) -> list[int]:
    """Return the numbers that the letters had at first, in the order in which they lie there."""
    queue = spool.queues[purging.QUEUE]
    found: list[int] = []
    if queue.head == queue.end:
        return found
    rows = queue.oldest(queue.head, 1 << 30)
    assert (queue.head, queue.end) == (rows[0].seq, rows[-1].seq + rows[-1].records)
    assert all(one.seq + one.records == two.seq for one, two in pairwise(rows))
    for row in rows:
        if row.batch is not None:
            assert row.records == row.batch.count
            found += [int(dict(r.headers)["number"]) for r in wire.records(row.batch)]
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(DEAD, min_size=1, max_size=6), max_size=5),
    purges=st.lists(WANTED, min_size=1, max_size=3),
)
@example(rows=[[Dead("schema", "shop", 1)]], purges=[Wanted("schema"), Wanted()])
def test_what_matches_goes_and_the_others_stay_in_order(
    tmp_path: Path, rows: list[list[Dead]], purges: list[Wanted]
) -> None:
    """And both are counted: the file says the same when it is opened again."""
    letters = dict(enumerate(one for row in rows for one in row))
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        path, at, batches = Path(name) / "spool.db", 0, []
        for row in rows:
            batches.append(sealed([*enumerate(row, at)]))
            at += len(row)
        with closing(Spool(path, {})) as spool:
            spool.queues[purging.QUEUE].put(batches)
            for wanted in purges:
                gone = [n for n, one in letters.items() if is_wanted(one, wanted)]
                assert len(gone) == purging.count(spool.queues[purging.QUEUE], wanted)
                purging.purge(spool.queues[purging.QUEUE], wanted, PLAIN)
                for number in gone:
                    del letters[number]
                assert [*letters] == numbers(spool)
            queue = spool.queues[purging.QUEUE]
            totals = queue.records, queue.bytes, queue.head, queue.end
            assert len(letters) == queue.records
            assert at == queue.end
            assert letters or queue.head == queue.end
        with closing(Spool(path, {})) as spool:
            queue = spool.queues[purging.QUEUE]
            assert (*totals, 0) == (queue.records, queue.bytes, queue.head, queue.end, queue.lost)
            assert [*letters] == numbers(spool)
