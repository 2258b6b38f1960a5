"""The embedded broker: librdkafka's mock cluster, which confluent-kafka's wheel exports.

Real sockets and the real protocol, N brokers on 127.0.0.1, served by a thread of librdkafka's
own: it runs beside an asyncio program in the same process. Source of the interface:
``rdkafka_mock.h``, an experimental part of librdkafka without a promise of stability.

What it is not:

* Nothing is durable: it keeps about 5 MiB a partition, in memory, and drops the oldest.
* Whoever asks for metadata of an unknown topic by name creates it, with 4 partitions. Call
  ``create_topic`` first; that a client creates none by accident cannot be seen here.
* Not served: DescribeConfigs, CreateTopics, SASL and TLS. Served, in every version that aiokafka
  0.14 speaks: Produce (to 8), Fetch (to 11), ListOffsets (to 5), Metadata (to 5), InitProducerId
  (0), ApiVersions (to 2), consumer groups, transactions.
* Idempotent sequence numbers are not checked. What must hold on Kafka is tested on Kafka.
"""

import ctypes
from importlib import util
from pathlib import Path
from types import TracebackType
from typing import Self

ALL_BROKERS = -1
DISCONNECT = -195  # RD_KAFKA_RESP_ERR__TRANSPORT: the broker closes the connection instead

_NO_LEADER = -1
_PRODUCER = 0  # rd_kafka_type_t; the client that carries the cluster, it never connects
_ERROR_TEXT_BYTES = 512


class EmbeddedKafkaError(Exception):
    """librdkafka refused a call. ``code`` is its rd_kafka_resp_err_t."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: error {code}")
        self.code = code


class EmbeddedKafka:
    """A Kafka cluster inside of this process, from ``with`` until the end of the block.

    Broker ids go from 1 to ``brokers``. Calls are safe from any thread and take microseconds.
    Entering raises ``ModuleNotFoundError`` where confluent-kafka is not installed.
    """

    def __init__(self, brokers: int = 3) -> None:
        assert brokers >= 1
        self._brokers = brokers
        self._lib: ctypes.CDLL | None = None
        self._client: int | None = None
        self._cluster: int | None = None

    def __enter__(self) -> Self:
        lib = self._lib = _library()
        text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
        conf = lib.rd_kafka_conf_new()
        # Errors only: it warns on stderr about having no bootstrap servers, which is the point.
        lib.rd_kafka_conf_set(conf, b"log_level", b"3", text, len(text))
        self._client = lib.rd_kafka_new(_PRODUCER, conf, text, len(text))
        if not self._client:
            lib.rd_kafka_conf_destroy(conf)
            raise RuntimeError(text.value.decode())
        self._cluster = lib.rd_kafka_mock_cluster_new(self._client, self._brokers)
        if not self._cluster:
            self._close()
            raise RuntimeError("librdkafka made no mock cluster")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def bootstrap_servers(self) -> str:
        lib, cluster = self._open()
        servers: bytes = lib.rd_kafka_mock_cluster_bootstraps(cluster)
        return servers.decode()

    def create_topic(self, name: str, partitions: int, replication: int = 3) -> None:
        """Create ``name``. More replicas than brokers means one on every broker."""
        replicas = min(replication, self._brokers)
        self._call("rd_kafka_mock_topic_create", name.encode(), partitions, replicas)

    def broker_down(self, broker_id: int = ALL_BROKERS) -> None:
        """Close the broker's connections and refuse new ones. Its partitions stay its own."""
        self._call("rd_kafka_mock_broker_set_down", broker_id)

    def broker_up(self, broker_id: int = ALL_BROKERS) -> None:
        self._call("rd_kafka_mock_broker_set_up", broker_id)

    def rtt(self, broker_id: int, ms: int) -> None:
        """Answer every request ``ms`` late from now on; 0 ends it."""
        self._call("rd_kafka_mock_broker_set_rtt", broker_id, ms)

    def leader(self, topic: str, partition: int, broker_id: int | None) -> None:
        """Move the partition to ``broker_id``, or leave it without a leader (None)."""
        to = _NO_LEADER if broker_id is None else broker_id
        self._call("rd_kafka_mock_partition_set_leader", topic.encode(), partition, to)

    def fail(self, api_key: int, *error_codes: int) -> None:
        """Answer the next requests of ``api_key`` (0 is Produce) with these errors, in order.

        The codes are the protocol's; 0 lets one request pass. The first request after the last
        code is served again.
        """
        lib, cluster = self._open()
        errors = (ctypes.c_int * len(error_codes))(*error_codes)
        lib.rd_kafka_mock_push_request_errors_array(cluster, api_key, len(errors), errors)

    def _open(self) -> tuple[ctypes.CDLL, int]:
        assert self._lib is not None, "use it in a with block"
        assert self._cluster is not None, "use it in a with block"
        return self._lib, self._cluster

    def _call(self, name: str, *arguments: object) -> None:
        lib, cluster = self._open()
        code: int = getattr(lib, name)(cluster, *arguments)
        if code:
            raise EmbeddedKafkaError(name, code)

    def _close(self) -> None:
        assert self._lib is not None
        if self._cluster:
            self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        if self._client:
            self._lib.rd_kafka_destroy(self._client)
        self._cluster = self._client = None


_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_I16, _I32, _SIZE = ctypes.c_int16, ctypes.c_int32, ctypes.c_size_t

# Result, then arguments. Without them ctypes cuts pointers to 32 bits.
_SIGNATURES = {
    "rd_kafka_conf_new": (_POINTER,),
    "rd_kafka_conf_set": (_INT, _POINTER, _TEXT, _TEXT, _TEXT, _SIZE),
    "rd_kafka_conf_destroy": (None, _POINTER),
    "rd_kafka_new": (_POINTER, _INT, _POINTER, _TEXT, _SIZE),
    "rd_kafka_destroy": (None, _POINTER),
    "rd_kafka_mock_cluster_new": (_POINTER, _POINTER, _INT),
    "rd_kafka_mock_cluster_destroy": (None, _POINTER),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, _POINTER),
    "rd_kafka_mock_topic_create": (_INT, _POINTER, _TEXT, _INT, _INT),
    "rd_kafka_mock_broker_set_down": (_INT, _POINTER, _I32),
    "rd_kafka_mock_broker_set_up": (_INT, _POINTER, _I32),
    "rd_kafka_mock_broker_set_rtt": (_INT, _POINTER, _I32, _INT),
    "rd_kafka_mock_partition_set_leader": (_INT, _POINTER, _TEXT, _I32, _I32),
    "rd_kafka_mock_push_request_errors_array": (
        None,
        _POINTER,
        _I16,
        _SIZE,
        ctypes.POINTER(ctypes.c_int),
    ),
}


def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(_library_path()))
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _library_path() -> Path:
    """Find the shared library that the wheel carries, without importing the package."""
    spec = util.find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the embedded broker needs confluent-kafka: pip install 'feedback-agent[demo]'",
            name="confluent_kafka",
        )
    package = Path(spec.origin).parent
    places = ("../confluent_kafka.libs/librdkafka*.so*", ".dylibs/librdkafka*.dylib")
    for place in places:
        for found in sorted(package.glob(place)):
            return found
    raise ModuleNotFoundError(
        "confluent-kafka is installed without its own librdkafka: install it from a wheel",
        name="confluent_kafka",
    )
