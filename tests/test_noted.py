"""What the rooms put into the audit log, and when."""

from pathlib import Path

from agent.core.auditing import EVENTS
from agent.queue import Limits
from tests.fakes import FakeKafka
from tests.test_spooler import EVENTS as RULES
from tests.test_spooler import Room, begun

OUTAGE_S = 12
"""More than an outage needs to be called one, and to be over."""


class Heard:
    """A ``Note`` that remembers. It takes what the audit log would take, and nothing else."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        assert set(fields) <= set(EVENTS[event])
        self.notes.append((event, fields))

    def of(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.notes if name == event]


def listened(room: Room) -> Heard:
    heard = Heard()
    room.outlet._note = room.way._note = heard
    return heard


async def test_an_outage_is_noted_as_it_came_and_went(tmp_path: Path) -> None:
    kafka = FakeKafka(partitions=1)
    async with begun(tmp_path, kafka) as room:
        heard = listened(room)
        room.read(b"a")
        await room.pass_time(2)
        assert [] == heard.notes, "nothing happened"
        room.read(b"b")
        await room.fall_silent()
        kafka.release()
        await room.pass_time(OUTAGE_S)

        states = [fields["state"] for fields in heard.of("breaker.changed")]
        assert ("open", "closed") == (states[0], states[-1])
        assert len(states) == sum(a != b for a, b in zip(["closed", *states], states, strict=False))
        assert "unanswered" == heard.of("breaker.changed")[0]["reason"]
        modes = [fields["mode"] for fields in heard.of("spool.mode")]
        assert ("spooling", "live") == (modes[0], modes[-1])


async def test_a_producer_that_is_given_up_is_noted_with_the_reason(tmp_path: Path) -> None:
    kafka = FakeKafka(partitions=1)
    async with begun(tmp_path, kafka) as room:
        heard = listened(room)
        kafka.fail("timeout")
        room.read(b"a")
        await room.pass_time(OUTAGE_S)

        assert [{"sink": "events", "reason": "timeout"}] == heard.of("producer.retired")


async def test_what_a_full_spool_drops_is_noted_record_by_record(tmp_path: Path) -> None:
    kafka = FakeKafka(partitions=1)
    kafka.down = "unreachable"
    rules = RULES._replace(limits=Limits(1000, 0.0), drop_oldest=True)
    async with begun(tmp_path, kafka, rules=rules) as room:
        heard = listened(room)
        await room.pass_time(OUTAGE_S)
        for number in range(20):
            room.read(b"%d " % number + b"x" * 200, partition=-1)
            await room.pass_time(0.5)

        dropped = sum(int(str(fields["records"])) for fields in heard.of("spool.dropped"))
        assert 0 < dropped == room.counted("spool_dropped_total")


async def test_a_replay_is_noted_with_what_it_carried_and_by_whom(tmp_path: Path) -> None:
    kafka = FakeKafka(partitions=1)
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        heard = listened(room)
        await room.pass_time(OUTAGE_S)
        room.read(b"a", b"b", b"c", partition=-1)
        await room.pass_time(1)
        kafka.down = None
        await room.pass_time(4 * OUTAGE_S)

        assert [{"sink": "events", "records": 3, "by": "agent"}] == heard.of("replay.begun")
        (ended,) = heard.of("replay.ended")
        assert {"sink": "events", "records": 3, "left": 0, "by": "agent"} == ended


async def test_what_a_damaged_spool_loses_is_noted(tmp_path: Path) -> None:
    kafka = FakeKafka(partitions=1)
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(OUTAGE_S)
        room.read(b"a", partition=-1)
        await room.pass_time(1)
        room.spool._connection.execute(
            "UPDATE spooled_events SET payload = x'00'"
        ).connection.commit()
    kafka.down = None
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        heard = listened(room)
        await room.pass_time(OUTAGE_S)

        assert [{"sink": "events", "records": 1}] == heard.of("spool.lost")
