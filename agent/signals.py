"""SIGTERM and SIGINT: the first one asks, the second one insists. SIGHUP: read files anew."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def stopping(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Call ``first`` at the first signal and ``second`` at each later one, on the running loop."""
    loop = asyncio.get_running_loop()
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            second()
        else:
            asked = True
            first()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def deaf_to_hangups() -> bool:
    """Return whether SIGHUP is ignored, as nohup(1) has it. Ask before any handler is there."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def end_with_terminal() -> None:
    """Let SIGHUP ask as SIGTERM does, in place of ``hanging_up``, which takes it away again."""
    ask = partial(signal.raise_signal, signal.SIGTERM)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, ask)


@contextmanager
def hanging_up(do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` at each SIGHUP, on the running loop."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, do)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
