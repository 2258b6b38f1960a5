"""How many batches may be out at once: what a backlog gives way by. Pure.

Additive increase, multiplicative decrease, as TCP does it (RFC 5681): after an outage thousands of
nodes have a backlog at once, and brokers that slow down or throttle must not be pushed harder.
aiokafka never acts on ``throttle_time_ms`` itself.
"""

START = 64.0
"""More than ``lanes.WINDOW`` batches on each of 12 partitions: no limit until Kafka slows."""
LIMIT_MAX = 4096.0
SLOW_S = 1.0
"""Below this an acknowledgement is never slow, whatever is usual."""
SLOW_FACTOR = 4.0
"""Times the usual latency."""
_SMOOTHING = 0.1


class Window:
    """The limit, moved by every acknowledgement."""

    def __init__(self) -> None:
        self.limit = START
        self._usual_s = 0.0
        self._cut_at = float("-inf")

    def acked(self, sent_at: float, now: float, *, out: int, throttled: bool) -> None:
        """Note an acknowledgement.

        Args:
            sent_at: When its batch was handed over.
            out: How many batches were out, this one too; growth needs a window in full use.
            throttled: The broker's answer asked for a pause.
        """
        latency_s = now - sent_at
        slow = latency_s > max(SLOW_S, SLOW_FACTOR * self._usual_s)
        if slow or throttled:
            if sent_at >= self._cut_at:  # what was sent before the last cut tells nothing of it
                self.limit = max(1.0, min(self.limit, float(out)) / 2)
                self._cut_at = now
                # What is slow for long becomes usual, or a moved cluster would be slow for good.
                self._usual_s += _SMOOTHING * (latency_s - self._usual_s)
            return
        self._usual_s += _SMOOTHING * (latency_s - self._usual_s)
        if out >= self.limit - 1:
            self.limit = min(LIMIT_MAX, self.limit + 1.0 / self.limit)

    def room(self, out: int) -> bool:
        """Return whether one more may go while ``out`` are under way."""
        return out < max(1, int(self.limit))
