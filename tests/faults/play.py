"""Plays faults: one on its own, or several through the same trouble."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.cluster import Brokers, Kafka
from tests.faults.outcome import Outcome
from tests.faults.registry import BrokerFault, Siege, TopicFault
from tests.faults.scale import Scale
from tests.faults.stage import Stage
from tests.faults.troubles import Meeting


def play(fault: TopicFault | Siege, kafka: Kafka, scale: Scale, work: Path, seed: str) -> Outcome:
    if isinstance(fault, TopicFault):
        return _played(Stage(work / fault.name, kafka, scale, fault.name, seed), fault.play)
    try:
        return fault.play(kafka, scale, work / fault.name, seed)
    except Exception as error:  # noqa: BLE001  it is an outcome
        return Outcome.broken(fault.name, seed, error)


def play_together(
    faults: Sequence[BrokerFault], brokers: Brokers, scale: Scale, work: Path, seed: str
) -> list[Outcome]:
    """Play ``faults``, all of one trouble, each in a thread. All nodes are back when it returns."""
    (trouble,) = {fault.trouble for fault in faults}
    meeting = Meeting(trouble, brokers, scale, len(faults), seed)

    def go(fault: BrokerFault) -> Outcome:
        complete = False
        try:
            stage = Stage(
                work / fault.name, brokers, scale, fault.name, seed, called_off=meeting.called_off
            )
            outcome = _played(stage, lambda stage: fault.play(stage, meeting))
            complete = not outcome.error
            return outcome
        finally:
            if not complete:
                meeting.abort()

    try:
        with ThreadPoolExecutor(len(faults)) as threads:
            try:
                return list(threads.map(go, faults))
            except BaseException:  # Ctrl-C: what lasts an hour would be waited for
                meeting.call_off()
                raise
    finally:
        meeting.close()


def _played(stage: Stage, through: Callable[[Stage], None]) -> Outcome:
    try:
        with stage:
            through(stage)
            return stage.finish()
    except Exception as error:  # noqa: BLE001  it is an outcome
        return Outcome.broken(stage.fault, stage.seed, error)
