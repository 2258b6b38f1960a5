"""Judges connections, brokers and the right to produce, by what ``cluster`` saw."""

import ssl
from collections.abc import Iterator

from aiokafka.errors import for_code

from agent.config.sections import Kafka
from agent.operator.doctor.cluster import Cluster, Reached
from agent.operator.doctor.finding import About, Finding

EXPIRES_SOON_S = 7 * 86400.0
TLS_ADVICE = {
    "wrong CA": "kafka.tls.ca_file must hold the CA of the brokers",
    "wrong host name": "let the broker's certificate name what kafka.bootstrap_servers names",
    "expired": "renew the broker's certificate",
    "refused ours": "replace kafka.tls.cert_file by one of a CA that the broker knows",
}
SASL_ADVICE = {
    "UnsupportedSaslMechanismError": "set kafka.sasl.mechanism to one that the listener names",
    "IllegalSaslStateError": "this listener has no SASL: another port, or mechanism: none",
    "SaslAuthenticationFailed": "look at the user, its password or token, and the broker's log",
}


def of_cluster(kafka: Kafka, cluster: Cluster, wall_s: float) -> Iterator[Finding]:
    yield bootstrap(kafka, cluster)
    yield tls(kafka, cluster, wall_s)
    yield sasl(kafka, cluster)
    yield brokers(kafka, cluster)
    yield idempotent_write(kafka, cluster)


def bootstrap(kafka: Kafka, cluster: Cluster) -> Finding:
    """Whoever gets as far as a handshake was reached."""
    about = About("kafka.bootstrap", ", ".join(kafka.bootstrap_servers))
    away = [one for one in cluster.bootstrap if not (one.made or one.failed)]
    if not away:
        return about.ok(f"{len(cluster.bootstrap)} of {len(cluster.bootstrap)} answer")
    found = "; ".join(f"{one.address}: {one.problem}" for one in away)
    if len(away) < len(cluster.bootstrap):
        return about.warn(found, "mend or remove them from kafka.bootstrap_servers")
    advice = "look at names, ports and network policies"
    if any("Connection at" in one.problem or one.problem == "no answer" for one in away):
        advice += "; a listener closes like this where only one side speaks TLS or SASL"
    return about.fail(found, advice)


def _failed(cluster: Cluster, reason: str) -> Reached | None:
    failed = (one for one in cluster.bootstrap if one.failed and one.failed.reason == reason)
    return next(failed, None)


def _advice(table: dict[str, str], detail: str, otherwise: str) -> str:
    return next((advice for said, advice in table.items() if said in detail), otherwise)


def tls(kafka: Kafka, cluster: Cluster, wall_s: float) -> Finding:
    about = About("kafka.tls", "kafka.tls")
    if not kafka.tls.enabled:
        return about.ok("not used: kafka.tls.enabled is false")
    if one := _failed(cluster, "tls"):
        detail = str(one.failed)
        return about.fail(detail, _advice(TLS_ADVICE, detail, "look at the files of kafka.tls"))
    made = [one.made for one in cluster.bootstrap if one.made]
    if not made:
        if _failed(cluster, "authentication"):
            return about.ok("the brokers' certificates are good")
        return about.unknown("no broker was reached")
    ends_s = min(
        (ssl.cert_time_to_seconds(one.expires) for one in made if one.expires), default=None
    )
    spoken = ", ".join(sorted({one.tls or "none" for one in made}))
    if ends_s is not None and ends_s - wall_s < EXPIRES_SOON_S:
        days = int((ends_s - wall_s) // 86400)
        return about.warn(f"{spoken}; a broker's certificate expires in {days} days", "renew it")
    return about.ok(f"{spoken}; the brokers' certificates are good")


def sasl(kafka: Kafka, cluster: Cluster) -> Finding:
    about = About("kafka.sasl", "kafka.sasl")
    mechanism = kafka.sasl.mechanism
    if one := _failed(cluster, "authentication"):
        detail = str(one.failed)
        return about.fail(detail, _advice(SASL_ADVICE, detail, "look at the files of kafka.sasl"))
    if mechanism == "none":
        return about.ok("not used: kafka.sasl.mechanism is none")
    if not any(one.made for one in cluster.bootstrap):
        return about.unknown("no broker was reached")
    return about.ok(f"let in by {mechanism}")


def brokers(kafka: Kafka, cluster: Cluster) -> Finding:
    about = About("kafka.brokers", ", ".join(one.address for one in cluster.brokers) or "none")
    if not cluster.brokers:
        return about.unknown("no broker told of the others")
    away = [one for one in cluster.brokers if one.problem]
    if away:
        found = "; ".join(f"{one.node} at {one.address}: {one.problem}" for one in away)
        return about.fail(
            found, "let brokers advertise what this node can reach: advertised.listeners"
        )
    return about.ok(f"{len(cluster.brokers)} advertised, all answer")


def idempotent_write(kafka: Kafka, cluster: Cluster) -> Finding:
    about = About("acl.idempotent_write", kafka.client_id)
    if cluster.producer_id_error is None:
        return about.unknown("no broker was asked")
    if cluster.producer_id_error:
        found = f"no producer id: {for_code(cluster.producer_id_error).__name__}"
        advice = "grant Write on the topics; before Kafka 2.8 IdempotentWrite on the cluster"
        return about.fail(found, advice)
    return about.ok("a producer id is given")
