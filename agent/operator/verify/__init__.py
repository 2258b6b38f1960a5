"""``feedback-agent verify``: proves from Kafka that the lines on disk were delivered.

    files -> who each is (checkpoints) -> where to read (receipts) -> records -> core.proof

What the receipts name is read first. Only where a line is not found there, or they do not reach
so far, all of the topics is read: nothing is called missing before that.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from agent.config import Config
from agent.config.sections import Kafka
from agent.operator.verify.books import books
from agent.operator.verify.proving import Options, Proving
from agent.operator.verify.verdict import Verdict, show

__all__ = ["Options", "Verdict", "show", "verify"]

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how many records of it were read, and of how many."""


async def verify(
    config: Config, kafka: Kafka, paths: Iterable[Path], options: Options, progress: Progress
) -> Verdict:
    """Prove the files at ``paths``, or all that the agent reads, through connections as ``kafka``.

    Raises ``AgentError`` where something cannot be read that it takes.
    """
    return await Proving(config, kafka, books(config), options, progress).run([*paths])
