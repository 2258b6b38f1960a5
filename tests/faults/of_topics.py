"""Faults of a topic, or of what an agent may do with it; the brokers are well."""

from tests.faults.registry import on_its_own
from tests.faults.stage import Stage

MESSAGE_BYTES_MAX = 4096
LARGE_LINES = 5
QUOTA_BYTES_PER_S = 64 << 10
QUOTA_LARGE_LINES = 60
REPLAY_BYTES_PER_S = 16 << 10


@on_its_own
def quota(stage: Stage) -> None:
    """Slower, and nothing more: no producer ends, nothing goes twice."""
    stage.create_topics()
    stage.kafka.limit(stage.client_id, QUOTA_BYTES_PER_S)
    stage.begin()
    stage.write_large(QUOTA_LARGE_LINES, refused=False)
    stage.pause_apps(True)
    stage.settled()
    assert 0 == stage.agent.metric("producer_retirements_total")
    assert 0 == stage.agent.metric("send_failures_total")
    stage.pause_apps(False)
    stage.kafka.limit(stage.client_id, None)
    stage.over()


@on_its_own
def topic_missing_at_first(stage: Stage) -> None:
    """It comes to be while the agent waits for it."""
    stage.create_dead_letters()
    stage.write()
    stage.agent.start()
    stage.held()
    stage.create_events()
    stage.over()


@on_its_own
def dead_letter_topic_missing(stage: Stage) -> None:
    """Events flow on; dead letters wait for their topic."""
    stage.create_events()
    stage.begin()
    stage.noticed("dead_letters")
    stage.until(lambda: stage.spooled("dead_letters") > 0, "dead letters are spooled")
    stage.flowing()
    stage.create_dead_letters()
    stage.over()


@on_its_own
def topic_made_again_smaller(stage: Stage) -> None:
    """With fewer partitions, while events are held that were bound for the others."""
    stage.create_topics(partitions=6)
    stage.begin()
    stage.delete_events()
    stage.held()
    stage.create_events(partitions=2)
    stage.over()


@on_its_own
def max_message_bytes_lowered(stage: Stage) -> None:
    """While events are held that were small enough for the topic as it was."""
    stage.create_topics()
    stage.begin()
    stage.write_large(LARGE_LINES, refused=False)
    stage.flowing()
    stage.pause_apps(True)
    stage.settled()
    stage.kafka.deny(stage.topics.events)
    stage.write_large(LARGE_LINES, refused=True)
    stage.pause_apps(False)
    stage.held()
    stage.kafka.configure(stage.topics.events, max_message_bytes=MESSAGE_BYTES_MAX)
    stage.kafka.allow(stage.topics.events)
    stage.over()


@on_its_own
def one_record_too_large(stage: Stage) -> None:
    """Among good ones, for a topic that the agent knew with another limit."""
    stage.create_topics()
    stage.begin()
    stage.kafka.configure(stage.topics.events, max_message_bytes=MESSAGE_BYTES_MAX)
    stage.write_large(LARGE_LINES, refused=True)
    stage.until(lambda: bool(stage.agent.log_entries("batch.refused")), "a refusal")
    stage.over()


@on_its_own
def sigkill_while_held(stage: Stage) -> None:
    """Again and again, while Kafka answers and takes nothing."""
    stage.create_topics()
    stage.begin()
    stage.kafka.deny(stage.topics.events)
    stage.held()
    stage.kill_often(1.0)
    stage.held()
    stage.kafka.allow(stage.topics.events)
    stage.over()


@on_its_own
def sigkill_while_replaying(stage: Stage) -> None:
    """A quota makes what was held go slowly; kills come meanwhile."""
    stage.create_topics()
    stage.begin()
    stage.kafka.deny(stage.topics.events)
    stage.held()
    stage.wait(stage.scale.backlog_s)  # apps write: the more, the longer the replay
    stage.kafka.limit(stage.client_id, REPLAY_BYTES_PER_S)
    stage.kafka.allow(stage.topics.events)
    stage.replaying()
    stage.kill_often(1.5)
    stage.kafka.limit(stage.client_id, None)
    stage.over()


@on_its_own
def access_denied(stage: Stage) -> None:
    """The right to write is taken away and given back."""
    stage.create_topics()
    stage.begin()
    stage.kafka.deny(stage.topics.events)
    stage.held()
    stage.kafka.allow(stage.topics.events)
    stage.over()
