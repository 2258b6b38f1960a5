"""Faults of brokers: all of them, or some, are away for a while."""

from collections.abc import Callable

from tests.faults import troubles
from tests.faults.registry import through
from tests.faults.stage import Stage
from tests.faults.troubles import Meeting


def ships_through(
    stage: Stage, meeting: Meeting, meanwhile: Callable[[Stage], None], **topic: int
) -> None:
    """Ship before the trouble, do ``meanwhile`` in it, ship after it."""
    stage.create_topics(**topic)
    stage.begin()
    with meeting.trouble():
        meanwhile(stage)
    stage.over()


# ---- all brokers are away


@through(troubles.all_brokers_dead)
def brokers_dead(stage: Stage, meeting: Meeting) -> None:
    """Every connection is refused."""
    ships_through(stage, meeting, Stage.held)


@through(troubles.all_brokers_dead)
def no_broker_at_start(stage: Stage, meeting: Meeting) -> None:
    """It starts, serves HTTP, says so, and goes on by itself."""
    stage.create_topics()
    with meeting.trouble():
        stage.write()
        stage.agent.start()
        stage.held()
    stage.over()


@through(troubles.all_brokers_dead)
def sigterm_while_brokers_dead(stage: Stage, meeting: Meeting) -> None:
    """Exit code 0 in time, and once more in a life that never saw a broker."""
    stage.create_topics()
    stage.begin()
    with meeting.trouble():
        stage.held()
        stage.stop_away()
        stage.agent.start()
        stage.held()
        stage.stop_away()
    stage.over(start=True)


@through(troubles.all_brokers_dead)
def sigkill_while_brokers_dead(stage: Stage, meeting: Meeting) -> None:
    """At random moments, starts included."""
    stage.create_topics()
    stage.begin()
    with meeting.trouble():
        stage.held()
        stage.kill_often(1.0)
    stage.over()


@through(troubles.all_brokers_silent)
def brokers_silent(stage: Stage, meeting: Meeting) -> None:
    """Every connection is accepted, nothing is answered."""
    ships_through(stage, meeting, Stage.held)


@through(troubles.all_brokers_silent)
def sigterm_while_brokers_silent(stage: Stage, meeting: Meeting) -> None:
    """Exit code 0 in time, though connections stay open."""
    stage.create_topics()
    stage.begin()
    with meeting.trouble():
        stage.held()
        stage.stop_away()
    stage.over(start=True)


# ---- some are away


@through(troubles.one_broker_dead)
def leader_killed(stage: Stage, meeting: Meeting) -> None:
    """Its partitions find other leaders."""
    ships_through(stage, meeting, Stage.flowing)


@through(troubles.one_broker_dead)
def partition_leaderless(stage: Stage, meeting: Meeting) -> None:
    """Without another replica, for several request timeouts."""
    ships_through(stage, meeting, Stage.noticed, replication=1)


@through(troubles.one_broker_dead)
def too_few_in_sync(stage: Stage, meeting: Meeting) -> None:
    """All three are asked for."""
    ships_through(stage, meeting, Stage.noticed, min_insync_replicas=3)


@through(troubles.two_brokers_dead)
def two_brokers_dead(stage: Stage, meeting: Meeting) -> None:
    """The third has every partition and nobody to agree with."""
    ships_through(stage, meeting, Stage.held)


@through(troubles.brokers_flip)
def brokers_flip(stage: Stage, meeting: Meeting) -> None:
    """One after the other, killed or stopped for a while."""
    ships_through(stage, meeting, lambda _: None)


@through(troubles.brokers_flip)
def sigkill_while_brokers_flip(stage: Stage, meeting: Meeting) -> None:
    """At random moments of the same trouble."""
    ships_through(stage, meeting, lambda stage: stage.kill_often(4.0))


@through(troubles.none_at_all)
def leaders_move(stage: Stage, meeting: Meeting) -> None:
    """By an administrator's hand, all at once, again and again."""
    stage.create_topics()
    stage.begin()
    with meeting.trouble():
        for _ in range(stage.scale.moves):
            stage.kafka.move_leaders(stage.topics.events)
            stage.flowing()
    stage.over()
