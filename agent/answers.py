"""What Kafka's answers mean to us: one closed table from aiokafka's errors to ours."""

import ssl

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


class HandshakeFailed(errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """A broker does not take us for who we say we are, or is not who it has to be.

    ``reason`` is ``tls`` or ``authentication``; ``str()`` is for people and free of secrets.
    """

    retriable = False  # in aiokafka's sense: a new producer shall try, after its time

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


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
    ssl.SSLError: "tls",
    OSError: "unreachable",
}

REASONS = (*sorted(set(UNAVAILABLE.values())), "kafka_error")


def of_batch(error: Exception) -> RecordRefused | SinkUnavailable:
    """Return ours for what came of a batch that was sent."""
    refused = REFUSED.get(type(error))
    return unavailable(error) if refused is None else RecordRefused(refused, type(error).__name__)


def unavailable(error: Exception) -> SinkUnavailable:
    """Return ours for what aiokafka or the network raised while no record was in question."""
    if isinstance(error, HandshakeFailed):
        return SinkUnavailable(error.reason, error.detail)
    reasons = (UNAVAILABLE[kind] for kind in type(error).__mro__ if kind in UNAVAILABLE)
    return SinkUnavailable(next(reasons, "kafka_error"), _named(error))


def _named(error: Exception) -> str:
    """Return its name and text; those of aiokafka begin with their name by themselves."""
    name, text = type(error).__name__, str(error)
    return text if text.startswith(name) else f"{name}: {text}"


VERIFY: dict[int, str] = {
    9: "the broker's certificate is not valid yet",
    10: "the broker's certificate has expired",
    18: "wrong CA: the broker's certificate is self-signed",
    19: "wrong CA: nobody we trust signed the broker's certificate",
    20: "wrong CA: nobody we trust signed the broker's certificate",
    21: "wrong CA: nobody we trust signed the broker's certificate",
    62: "wrong host name: the broker's certificate is not for this name",
    64: "wrong host name: the broker's certificate is not for this address",
}
"""What OpenSSL's X509_V_ERR_* mean to an operator (openssl-verification-options(1))."""


def handshake_failure(error: Exception, address: str) -> HandshakeFailed | None:
    """Return ours where connecting to ``address`` failed over who is who, or None."""
    cause: BaseException | None = error
    while cause is not None:  # under TLS 1.3 a broker refuses when we take it to be connected
        if isinstance(cause, ssl.SSLError):
            return HandshakeFailed("tls", f"{address}: {_of_tls(cause)}")
        cause = cause.__cause__
    if isinstance(error, errors.KafkaError):
        if unavailable(error).reason != "authentication":
            return None
        return HandshakeFailed("authentication", f"{address}: {type(error).__name__}: {error}")
    if isinstance(error, OSError):
        return None
    # aiokafka's side of SASL raises what comes: ValueError, KeyError, AssertionError.
    return HandshakeFailed("authentication", f"{address}: a SASL answer that cannot be one")


def _of_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        known = VERIFY.get(error.verify_code, "the broker's certificate cannot be verified")
        return f"{known} ({error.verify_message})"
    reason = error.reason or type(error).__name__
    return f"the broker refused ours: {reason}" if "_ALERT_" in reason else reason
