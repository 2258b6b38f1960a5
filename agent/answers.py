"""What Kafka's answers mean to us: one closed table from aiokafka's errors to ours."""

from aiokafka import errors

from agent.errors import RecordRefused, SinkUnavailable


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]  # aiokafka has no types
    """No key where the topic is compacted, or the broker's own validation said no.

    aiokafka has no class for it, so it would be the unknown error that stops a topic for good.
    """

    errno = 87
    message = "INVALID_RECORD"


class TopicShrunk(errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """It was made again with fewer partitions than what waits was sealed for."""


errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)

REFUSED: dict[type[Exception], str] = {
    errors.MessageSizeTooLargeError: "refused_too_large",
    errors.RecordListTooLargeError: "refused_too_large",
    errors.RecordTooLargeError: "refused_too_large",
    errors.InvalidTimestampError: "refused_invalid",
    InvalidRecordError: "refused_invalid",
}
"""The closed list of errors that are about a record. Anything else is never a reason to drop."""

UNAVAILABLE: dict[type[BaseException], str] = {
    errors.TopicAuthorizationFailedError: "topic_denied",
    errors.ClusterAuthorizationFailedError: "cluster_denied",
    errors.UnknownTopicOrPartitionError: "topic_missing",
    errors.InvalidTopicError: "topic_missing",
    errors.AuthenticationFailedError: "authentication",
    errors.AuthenticationMethodNotSupported: "authentication",
    errors.SaslAuthenticationFailed: "authentication",
    errors.UnsupportedSaslMechanismError: "authentication",
    errors.IllegalSaslStateError: "authentication",
    errors.KafkaConnectionError: "unreachable",
    errors.NodeNotReadyError: "unreachable",
    errors.NoBrokersAvailable: "unreachable",
    errors.BrokerNotAvailableError: "unreachable",
    errors.StaleLeaderEpochCodeError: "unreachable",  # 13 is NETWORK_EXCEPTION today
    errors.NotLeaderForPartitionError: "no_leader",
    errors.LeaderNotAvailableError: "no_leader",
    errors.ReplicaNotAvailableError: "no_leader",
    errors.NotEnoughReplicasError: "not_enough_replicas",
    errors.NotEnoughReplicasAfterAppendError: "not_enough_replicas",
    errors.RequestTimedOutError: "timeout",
    errors.KafkaTimeoutError: "timeout",
    errors.OutOfOrderSequenceNumber: "sequence",
    errors.UnknownProducerId: "sequence",
    errors.InvalidProducerEpoch: "sequence",
    errors.InvalidProducerIdMapping: "sequence",
    errors.ProducerFenced: "sequence",
    errors.KafkaStorageError: "broker_storage",
    TopicShrunk: "topic_changed",
    TimeoutError: "timeout",
    OSError: "unreachable",
}

REASONS = (*sorted(set(UNAVAILABLE.values())), "kafka_error")


def of_batch(error: Exception) -> RecordRefused | SinkUnavailable:
    """Return ours for what came of a batch that was sent."""
    refused = REFUSED.get(type(error))
    return unavailable(error) if refused is None else RecordRefused(refused, type(error).__name__)


def unavailable(error: Exception) -> SinkUnavailable:
    """Return ours for what aiokafka or the network raised while no record was in question."""
    reasons = (UNAVAILABLE[kind] for kind in type(error).__mro__ if kind in UNAVAILABLE)
    return SinkUnavailable(next(reasons, "kafka_error"), f"{type(error).__name__}: {error}")
