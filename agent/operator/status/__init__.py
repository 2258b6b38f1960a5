"""``feedback-agent status``: how far everything is.

``running`` asks the agent over HTTP; where none answers, ``stopped`` reads the state directory and
the files; ``show`` draws either.
"""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live

from agent.clock import SystemClock
from agent.config import Config
from agent.errors import AgentError
from agent.operator.status.running import NoAnswer, asked, url_of
from agent.operator.status.show import drawn, well
from agent.operator.status.stopped import looked

__all__ = ["drawn", "found", "watch", "well"]


def found(config: Config | None, url: str | None, shown: Callable[[str], str]) -> dict[str, Any]:
    """Return ``running`` and what ``/status`` says, else what is on disk.

    Only an agent of this configuration leaves something here: with a ``url`` there is no second
    way. Raises ``AgentError`` where nothing is found out.
    """
    if config is None:
        assert url is not None, "either of them"
        try:
            return {"running": True, **asked(url)}
        except NoAnswer as none:
            raise AgentError(str(none)) from None
    here = url_of(config.http)
    try:
        if here is not None:
            return {"running": True, **asked(here)}
        why = "http.port is 0: say with --url where the agent answers"
    except NoAnswer as none:
        why = str(none)
    return looked(config, SystemClock(), shown, why)


def watch(look: Callable[[], dict[str, Any]], console: Console, every_s: float, files: int) -> None:
    """Draw what ``look`` returns again and again, until somebody interrupts.

    On a terminal in its place; elsewhere one after the other.
    """

    def now() -> Any:
        try:
            return drawn(look(), files)
        except AgentError as error:  # may be there again in a moment
            return f"{error}"

    if not console.is_terminal:
        while True:
            console.print(now())
            console.print()
            time.sleep(every_s)
    with Live(now(), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(now(), refresh=True)
