"""``feedback-agent doctor``: would the agent work here, and if not, what to do.

Looks only: writes no file, takes no lock, makes no topic, sends no record.

    finding   names, verdicts and their order
    node      the source directory, inotify, descriptors
    state     the state directory, its disk, clocks
    cluster   what Kafka tells of itself
    kafka     connections and rights;  topics: each topic against the configuration
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent import redaction
from agent.clock import Clock, SystemClock
from agent.config import Config
from agent.core.redact import UNSHOWN
from agent.credentials import Credentials
from agent.errors import ConfigError
from agent.operator import screen
from agent.operator.doctor import cluster, kafka, node, state, topics
from agent.operator.doctor.finding import CHECKS, UNKNOWN, About, Finding, unsound

__all__ = ["CHECKS", "Finding", "diagnose", "show", "unsound"]


def diagnose(
    load: Callable[[], Config], read_files: Callable[[Config], None], clock: Clock | None = None
) -> Iterator[Finding]:
    """Yield findings as they are made, in the order of ``CHECKS``.

    ``load`` and ``read_files`` raise ``ConfigError``; without a configuration that is all.
    """
    clock = clock or SystemClock()
    about = About("configuration", "feedback-agent check")
    advice = "mend it; feedback-agent check says whether it is good"
    try:
        config = load()
    except ConfigError as error:
        yield about.fail(str(error), advice)
        return
    try:
        read_files(config)
    except ConfigError as error:
        yield about.fail(str(error), advice)
    else:
        yield about.ok(f"good, node {config.node}")
    yield from node.of_source(config, clock, _shown(config))
    yield from state.of_state(config)
    yield from _of_kafka(config, clock)


def _shown(config: Config) -> Callable[[str], str]:
    """Return what may be said of the name of a file; nothing where the rules cannot be read."""
    try:
        rules = redaction.load(config.redact)
    except ConfigError:
        return lambda _: UNSHOWN
    return redaction.shown(lambda: rules)


def _of_kafka(config: Config, clock: Clock) -> Iterator[Finding]:
    kafka_, wanted = config.kafka, list(topics.wanted(config))
    secured = kafka_.tls.enabled or kafka_.sasl.mechanism != "none"
    security = Credentials(kafka_.tls, kafka_.sasl, clock) if secured else None
    ahead_ms = int((clock.wall() + topics.AHEAD_S) * 1000)
    names = [topic.name for topic in wanted]
    seen = asyncio.run(cluster.look(kafka_, names, security, ahead_ms))
    yield from kafka.of_cluster(kafka_, seen, clock.wall())
    found = {topic.name: topic for topic in seen.topics}
    for topic in wanted:
        yield from topics.of_topic(topic, found.get(topic.name))


def show(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Print findings as they come, a topic's own under its name. Return them all."""
    found: list[Finding] = []
    for _, group in groupby(findings, _alike):
        some = list(group)
        if some[0].check == "topic.exists":
            console.print()
            console.print(screen.cell(f"topic {some[0].subject}", "bold"))
        name = some[0].check if len(some) == 1 else f"{len(some)} more"
        console.print(_line(name, some[0]))
        found += some
    counts = Counter(finding.verdict for finding in found)
    said = [f"{counts[verdict]} {verdict}" for verdict in ("ok", "warn", "fail")]
    console.print()
    console.print(screen.cell(", ".join(said), "bold"))
    return found


def _alike(finding: Finding) -> tuple[str, ...]:
    """Return what is the same of findings that one line is enough for: nobody could look."""
    known = not finding.found.startswith(UNKNOWN) or finding.check == "topic.exists"
    return (finding.subject, finding.check if known else "", finding.found)


def _line(name: str, finding: Finding) -> Table:
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=4)
    line.add_column(width=max(map(len, CHECKS)))
    line.add_column(overflow="fold")
    what = screen.cell(finding.found)
    if finding.check.startswith(("source", "state", "audit")):
        what = Text(": ").join([screen.cell(finding.subject), what])
    if finding.advice:
        what = Text("\n").join([what, screen.cell(f"> {finding.advice}", "italic")])
    line.add_row(screen.cell(finding.verdict, screen.STYLES[finding.verdict]), name, what)
    return line
