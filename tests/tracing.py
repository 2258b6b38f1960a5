"""A tracer for tests, which draws by a seed, and what it was handed."""

import random

from agent.core.tracing import BatchSpan, ChunkSpan, Span, Tracer
from tests.fakes import FakeClock


class Traced:
    """Attributes:
    ended: Every span that ended.
    """

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        chance = random.Random(seed)  # noqa: S311  what is drawn must come again
        self.clock = FakeClock()
        self.ended: list[Span] = []
        self.tracer = Tracer(
            share,
            "agent-1",
            clock=self.clock.monotonic,
            draw=chance.random,
            bits=chance.getrandbits,
            ended=self.ended.append,
        )

    def chunk(self) -> ChunkSpan:
        span = self.tracer.chunk()
        assert span is not None
        return span

    def batch(self) -> BatchSpan:
        """Return the span of a batch that a chunk of its own opened."""
        return self.chunk().opened("feedback-events")
