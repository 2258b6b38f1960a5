#!/bin/sh
# Makes the topics and the ACLs with Kafka's own tools; may run again and again.
set -eu
: "${BOOTSTRAP_SERVERS:?}"
partitions=${PARTITIONS:-12}
replication=${REPLICATION:-3}
min_insync=${MIN_INSYNC:-2}
week_ms=604800000
# Without Create, Alter or Read: a node that is taken over can add records and nothing else.
# Empty: no ACLs, as for brokers without an authorizer.
principals=${PRINCIPALS-User:feedback-agent}
properties=${ADMIN_PROPERTIES:-/etc/kafka-admin/client.properties}

tool() {
  program=$1
  shift
  set -- --bootstrap-server "$BOOTSTRAP_SERVERS" "$@"
  [ ! -e "$properties" ] || set -- --command-config "$properties" "$@"
  "${KAFKA_BIN:-/opt/kafka/bin}/$program" "$@"
}

# never compacted: two events may have one key, and both count
topic() {
  name=$1 retention_ms=$2
  tool kafka-topics.sh --create --if-not-exists --topic "$name" \
    --partitions "$partitions" --replication-factor "$replication"
  tool kafka-configs.sh --alter --entity-type topics --entity-name "$name" --add-config \
    "cleanup.policy=delete,min.insync.replicas=$min_insync,unclean.leader.election.enable=false,retention.ms=$retention_ms"
}

events=${EVENTS_TOPIC:-feedback-events}
dead_letters=${DEAD_LETTERS_TOPIC:-feedback-events-dlq}
topic "$events" "$week_ms"
# dead letters wait for somebody to look
topic "$dead_letters" "$((4 * week_ms))"
set -- --topic "$events" --topic "$dead_letters"
if [ -n "${AUDIT_TOPIC-}" ]; then
  topic "$AUDIT_TOPIC" "$((52 * week_ms))"
  set -- "$@" --topic "$AUDIT_TOPIC"
fi

if [ -n "$principals" ]; then
  for principal in $principals; do
    set -- "$@" --allow-principal "$principal"
  done
  tool kafka-acls.sh --add --operation Describe --operation Write "$@"
fi
tool kafka-topics.sh --describe
