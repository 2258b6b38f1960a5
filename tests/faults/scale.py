"""How much of everything a fault gets: for every day, and for a night."""

from collections.abc import Mapping

from msgspec import Struct


class Scale(Struct, frozen=True, kw_only=True):
    """How much of everything a fault gets.

    Attributes:
        rate: Lines a second of each app, which rotates at ``rotate_bytes``.
        down_s: How long all brokers are dead.
        silent_s: How long all brokers accept and do not answer.
        flips: How often a broker goes and comes.
        moves: How often all leaders move.
        kills: How often the agent is killed while something else is wrong.
        random_kills: How often it is killed while nothing else is.
        stopped_s: How long it is stopped.
        windows: How many request timeouts long one broker or two are dead.
        backlog_s: How long apps write what is replayed under kills.
        within_s: What any one condition may take.
        request_timeout_s, sections: The agent's configuration.
    """

    name: str
    rate: float
    rotate_bytes: int
    down_s: float
    silent_s: float
    flips: int
    moves: int
    kills: int
    random_kills: int
    stopped_s: float
    windows: int
    backlog_s: float
    within_s: float
    request_timeout_s: float
    sections: Mapping[str, Mapping[str, object]]


QUICK = Scale(
    name="quick",
    rate=60.0,
    rotate_bytes=64 << 10,
    down_s=15.0,
    silent_s=8.0,
    flips=2,
    moves=4,
    kills=3,
    random_kills=5,
    stopped_s=5.0,
    windows=3,
    backlog_s=6.0,
    within_s=60.0,
    request_timeout_s=2.0,
    sections={
        "retry": {"backoff_s": 0.1, "backoff_max_s": 0.5},
        "breaker": {"cooldown_s": 0.5, "ack_age_max_s": 2},
        "batch": {"age_max_s": 0.3},
        "source": {"scan_s": 1},
        "kafka": {"start_s": 3},
    },
)
LONG = Scale(
    name="long",
    rate=15.0,  # all that was written is held in memory at the end
    rotate_bytes=4 << 20,
    down_s=3600.0,
    silent_s=900.0,
    flips=40,
    moves=200,
    kills=40,
    random_kills=1000,
    stopped_s=60.0,
    windows=50,
    backlog_s=120.0,
    within_s=600.0,
    request_timeout_s=15.0,  # as by default, and so is the rest
    sections={},
)
