"""Other programs that ship lines to Kafka, from the distribution's packages, each doing its work
raw (line to message) and as JSON (parse, add a field, write again). None of them validates or
redacts. All with acks=all and idempotence, and else with what they are by default.

``scripts/bench/peers`` unpacks rsyslog and syslog-ng without installing them: the two conflict.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.demo.scene import Topics
from tests.bench import usage
from tests.bench.runs import Running

ADDRESS = "FEEDBACK_AGENT_BENCH_PEERS"
"""The directory with the unpacked ones."""
VERSION = re.compile(r"[0-9]+\.[0-9.]+")
LOG_TAIL_LINES = 15

_RSYSLOG = """
global(workDirectory="{work}")
module(load="imfile" mode="inotify")
module(load="omkafka")
module(load="mmjsonparse")
template(name="raw" type="string" string="%msg%")
template(name="json" type="string" string="%$!all-json-plain%")
input(type="imfile" File="{corpus}" Tag="bench" ruleset="bench")
ruleset(name="bench") {{
{parse}
  action(type="omkafka" broker=["{servers}"] topic="{topic}" partitions.auto="on"
    template="{template}" errorFile="{work}/errors"
    confParam=["acks=all","enable.idempotence=true","compression.codec={codec}"])
}}
"""
_RSYSLOG_PARSE = """  action(type="mmjsonparse" cookie="")
  set $!node = "n1";"""

_SYSLOG_NG = """@version: {version}
options {{ stats-freq(0); keep-hostname(yes); }};
source s {{ file("{corpus}" flags(no-parse) log-iw-size(10000) log-fetch-limit(1000)); }};
parser p {{ json-parser(prefix("j.")); }};
destination d {{
  kafka-c(bootstrap-servers("{servers}") topic("{topic}") message("{message}")
    log-fifo-size(20000)
    config(acks("all") enable.idempotence("true") compression.codec("{codec}")));
}};
log {{ source(s); {parse} destination(d); flags(flow-control); }};
"""
_SYSLOG_NG_JSON = "$(format-json --key j.* --pair j.node=n1 --rekey j.* --shift-levels 1)"


class Work(NamedTuple):
    json: bool
    codec: str

    def __str__(self) -> str:
        return f"{'json' if self.json else 'raw'}, {self.codec}"


Command = Callable[[Path, Path, Topics, Work], list[str | Path]]


class Peer:
    def __init__(self, program: str, work: Work, command: Command, environment: dict[str, str]):
        self.name = f"{program}: {work}"
        self._work = work
        self._command = command
        self._environment = {**os.environ, **environment}

    @contextmanager
    def running(self, work: Path, corpus: Path, topics: Topics) -> Iterator[Running]:
        log = work / "peer.log"

        def tail() -> str:
            return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(work, corpus, topics, self._work),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
            )
        try:
            yield Running(process.pid, lambda _: usage.ended(process.pid) or None, tail)
            if not usage.ended(process.pid):
                process.terminate()
            code = process.wait(30)
            assert code in {0, -15}, f"{self.name} ended with {code}\n{tail()}"
        finally:
            process.kill()
            process.wait()


class Found(NamedTuple):
    """Args:
    versions: Of the programs that are here.
    missing: One line for each that is not.
    """

    peers: list[Peer]
    versions: dict[str, str]
    missing: list[str]


def find() -> Found:
    """Look for the programs, unpacked or installed."""
    unpacked = Path(os.environ.get(ADDRESS, "/nonexistent"))
    library = unpacked / "usr/lib"
    paths = [*library.glob("*-linux-gnu"), *(unpacked / "lib").glob("*-linux-gnu")]
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, [*paths, library / "syslog-ng"]))}
    found = Found([], {}, [])
    works = [Work(json=False, codec="gzip"), Work(json=True, codec="gzip")]
    for program, kinds, command, asked in (
        ("kcat", [Work(json=False, codec="none"), works[0]], _kcat, "-V"),
        ("rsyslogd", works, _rsyslog, "-v"),
        ("syslog-ng", works, _syslog_ng, "--version"),
    ):
        path = shutil.which(program, path=f"{unpacked}/usr/sbin:{os.environ['PATH']}:/usr/sbin")
        if path is None:
            found.missing.append(f"{program} is missing: scripts/bench/peers says why")
            continue
        ours = environment if path.startswith(str(unpacked)) else {}
        found.versions[program] = _version(path, asked, ours)
        found.peers.extend(Peer(program, work, command(Path(path)), ours) for work in kinds)
    return found


def _version(path: str, asked: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [path, asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        env={**os.environ, **environment},
    )
    said = VERSION.search(done.stdout)
    return "unknown" if said is None else said[0].rstrip(".")


def _kcat(program: Path) -> Command:
    def command(_: Path, corpus: Path, topics: Topics, work: Work) -> list[str | Path]:
        settings = [f"-Xcompression.codec={work.codec}", "-Xacks=all", "-Xenable.idempotence=true"]
        to = ["-b", topics.bootstrap_servers, "-t", topics.events]
        return [program, "-P", *to, *settings, "-l", corpus]

    return command


def _rsyslog(program: Path) -> Command:
    modules = _modules(program, "*-linux-gnu/rsyslog", "rsyslog")

    def command(place: Path, corpus: Path, topics: Topics, work: Work) -> list[str | Path]:
        config = place / "rsyslog.conf"
        config.write_text(
            _RSYSLOG.format(
                work=place,
                corpus=corpus,
                servers='","'.join(topics.bootstrap_servers.split(",")),
                topic=topics.events,
                codec=work.codec,
                parse=_RSYSLOG_PARSE if work.json else "",
                template="json" if work.json else "raw",
            )
        )
        pid_file = place / "rsyslog.pid"
        return [program, "-n", "-f", config, "-i", pid_file, "-M", str(modules)]

    return command


def _syslog_ng(program: Path) -> Command:
    modules = _modules(program, "syslog-ng/[0-9]*")

    def command(place: Path, corpus: Path, topics: Topics, work: Work) -> list[str | Path]:
        config = place / "syslog-ng.conf"
        config.write_text(
            _SYSLOG_NG.format(
                version=modules.name,
                corpus=corpus,
                servers=topics.bootstrap_servers,
                topic=topics.events,
                codec=work.codec,
                parse="parser(p);" if work.json else "",
                message=_SYSLOG_NG_JSON if work.json else "$MSG",
            )
        )
        state = [f"--{name}={place}/syslog-ng.{name}" for name in ("persist-file", "pidfile")]
        control = f"--control={place}/syslog-ng.ctl"
        more = [f"--module-path={modules}", *state, control, "--no-caps"]
        return [program, "-F", "-f", config, *more]

    return command


def _modules(program: Path, *patterns: str) -> Path:
    """Return the directory of modules that belongs to ``program``: the first that one names."""
    library = program.resolve().parent.parent / "lib"
    found = [path for pattern in patterns for path in sorted(library.glob(pattern))]
    return found[0] if found else Path()
