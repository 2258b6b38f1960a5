"""Whether the threads live: each is given nothing to do, again and again, and must get it done.

A thread that hangs in the kernel (a dead mount, a stalled disk) stops nothing but itself, and
the event loop answers on. Nobody would notice, and only a restart helps.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from agent.clock import Clock

BEAT_S = 5.0


class Heartbeat:
    """Asks every thread each ``BEAT_S``. ``run`` until cancelled.

    Args:
        threads: Executors of one thread each, by name. What is asked waits behind their work.
        hang_s: A thread hangs that has not answered for so long.
        each: Called on the loop at each beat, for what else is to be done as often.
    """

    def __init__(
        self,
        threads: Mapping[str, Executor],
        *,
        hang_s: float,
        each: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._threads = threads
        self._hang_s = hang_s
        self._each = each
        self._clock = clock
        self._asked: dict[str, float] = {}  # and not answered yet, since when

    async def run(self) -> None:
        while True:
            self._each()
            for name in self._threads.keys() - self._asked.keys():
                self._ask(name)
            await self._clock.sleep(BEAT_S)

    def hung(self) -> list[str]:
        """Return the names of the threads that hang or are dead."""
        now_s = self._clock.monotonic()
        late = [name for name, asked_s in self._asked.items() if now_s - asked_s >= self._hang_s]
        return sorted(late)

    def _ask(self, name: str) -> None:
        self._asked[name] = self._clock.monotonic()
        answer = asyncio.get_running_loop().run_in_executor(self._threads[name], _nothing)
        answer.add_done_callback(lambda _: self._asked.pop(name))


def _nothing() -> None:
    """Done is what counts."""
