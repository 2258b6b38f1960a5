"""A real Prometheus scrapes a real agent: metrics are there, rules load, every query answers.

A query for a metric that is not there, or that joins what has no common label, answers nothing
and no error: it is seen in an outage, by who needs it.
"""

import contextlib
import json
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from agent.demo.broker import EmbeddedKafka
from agent.telemetry import Metrics
from tests.patience import WITHIN_S
from tests.running import Agent, append, feedback, mock_topics

DIRECTORY = Path(__file__).parent.parent / "k8s/observability"
DASHBOARDS = sorted((DIRECTORY / "dashboards").glob("*.json"))
ALERTS = yaml.safe_load((DIRECTORY / "alerts.yaml").read_text())["groups"][0]["rules"]
TESTS = yaml.safe_load((DIRECTORY / "alerts.test.yaml").read_text())["tests"]
COLLECTOR = yaml.safe_load((DIRECTORY / "otel-collector.yaml").read_text())
(PODS,) = yaml.safe_load((DIRECTORY / "podmonitor.yaml").read_text())["spec"]["podMetricsEndpoints"]
NODE = "node-1"
VARIABLES = {"$__rate_interval": "10s", "$instance": ".*"}
"""What Grafana puts in."""


def exported() -> set[str]:
    """Return the name of every series, as Prometheus has it."""
    registry = CollectorRegistry()
    Metrics(registry)
    families = list(registry.collect())
    # one whose labels are known only to a running agent has no sample here
    gauges = {family.name for family in families if family.type == "gauge"}
    return gauges | {sample.name for family in families for sample in family.samples}


def queries(dashboard: Path) -> list[str]:
    board: dict[str, Any] = json.loads(dashboard.read_text())
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [*panels, *(one["expr"] for one in board["annotations"]["list"])]


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:feedback_agent|process)_[a-z_]+", expression))


def promtool(*arguments: str, given: str = "") -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: scripts/system-packages installs it")
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        cwd=DIRECTORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_well_formed() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", "alerts.yaml")


def test_metrics_are_named_as_prometheus_wants_them() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    assert not promtool("check", "metrics", given=generate_latest(registry).decode())


def test_each_alert_fires_and_clears() -> None:
    """An alert that never clears is muted, and then nobody sees the next one."""
    promtool("test", "rules", "alerts.test.yaml")
    assert [alert["alert"] for alert in ALERTS] == [test["name"] for test in TESTS]
    for test in TESTS:
        before, fires, clears = test["alert_rule_test"]
        assert {test["name"]} == {one["alertname"] for one in (before, fires, clears)}
        assert ("exp_alerts" in before, "exp_alerts" in clears) == (False, False)
        assert fires["exp_alerts"]


def test_every_metric_that_an_alert_or_a_dashboard_names_exists() -> None:
    names = exported() | {"process_open_fds", "process_cpu_seconds_total"}
    expressions = [alert["expr"] for alert in ALERTS], *map(queries, DASHBOARDS)
    for expression in chain(*expressions):
        assert named(expression) <= names, expression


def test_every_metric_is_on_a_dashboard() -> None:
    """What is measured and not to be seen costs, and helps nobody."""
    shown = set(chain(*(named(query) for path in DASHBOARDS for query in queries(path))))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert set() == {name for name in families - shown if name.startswith("feedback_agent_")}


def test_bounds_are_found_as_whoever_scraped_them_writes_them() -> None:
    """1.0 in the agent's own words, 1 where a collector passes them on; else a query finds nothing,
    and says nothing."""
    expressions = [alert["expr"] for alert in ALERTS], *map(queries, DASHBOARDS)
    bounds = [re.findall(r"\ble(=~?)\"([^\"]*)\"", said) for said in chain(*expressions)]
    for operator, bound in chain(*bounds):
        assert "=~" == operator, bound
        assert all(re.fullmatch(bound, written) for written in ("1", "1.0"))
    assert any(bounds)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_a_place_of_their_own(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    assert len(panels) == len({panel["id"] for panel in panels})
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert 24 > max(x for x, _ in cells)


def test_the_collector_takes_otlp_and_every_part_of_it_is_used() -> None:
    assert {"grpc", "http"} == COLLECTOR["receivers"]["otlp"]["protocols"].keys()
    pipelines = COLLECTOR["service"]["pipelines"]
    assert {"metrics", "traces", "logs"} == pipelines.keys()
    for kind in ("receivers", "processors", "exporters"):
        used = set(chain(*(pipeline[kind] for pipeline in pipelines.values())))
        assert COLLECTOR[kind].keys() == used
    assert {"batch", "filter", "resourcedetection"} <= COLLECTOR["processors"].keys()
    for pipeline in pipelines.values():
        assert ("memory_limiter", "batch") == (
            *pipeline["processors"][:1],
            *pipeline["processors"][-1:],
        )


# ---- the real thing


def free_port() -> int:
    """Return a port that nobody is given who asks for any: it stays free until it is taken."""
    while True:
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_000)))
            return int(found.getsockname()[1])


def relabelings() -> list[dict[str, Any]]:
    """Return those of the PodMonitor as Prometheus has them, for one pod of ``NODE``."""
    return [
        {
            re.sub("[A-Z]", lambda big: f"_{big[0].lower()}", key): value
            for key, value in one.items()
        }
        for one in PODS["relabelings"]
    ]


class Prometheus:
    """One that scrapes ``port`` each half second, as the PodMonitor says, and has our rules; in a
    ``with`` block."""

    def __init__(self, work: Path, port: int) -> None:
        self.port = free_port()
        found = {"__meta_kubernetes_pod_node_name": NODE}
        scrape = {
            "job_name": "feedback-agent",
            "metrics_path": PODS["path"],
            "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": found}],
            "relabel_configs": relabelings(),
        }
        config = {
            "global": {
                "scrape_interval": "500ms",
                "scrape_timeout": "500ms",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(DIRECTORY / "alerts.yaml")],
            "scrape_configs": [scrape],
        }
        (work / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._command = [
            "prometheus",
            f"--config.file={work}/prometheus.yml",
            f"--storage.tsdb.path={work}/tsdb",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        self._log = work / "prometheus.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=WITHIN_S) as answer:
            return json.load(answer)["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while True:
            try:
                if holds():
                    return
            except (URLError, ConnectionError):  # not up yet
                assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline_s, what
            time.sleep(0.25)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus over an agent that ships events and dead letters all the while."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: scripts/system-packages installs it")
    work = tmp_path_factory.mktemp("observability")
    with EmbeddedKafka() as cluster, Agent(work, mock_topics(cluster)) as agent:
        agent.start()
        assert agent._port is not None
        with Prometheus(work, agent._port) as prometheus:
            written = 0

            def delivered() -> bool:
                nonlocal written
                append(agent.root / "acme/a.jsonl", [feedback(written), b"no JSON"])
                written += 1
                metric = "feedback_agent_dead_letters_delivered_total"
                query = f"rate({metric}[10s]) > 0 and rate({metric}[10s] offset 3s) > 0"
                return bool(prometheus.ask(query))

            prometheus.until(delivered, "dead letters delivered")
            yield prometheus


def test_every_metric_arrives(scraped: Prometheus) -> None:
    """What the agent exports, Prometheus has: no series is dropped for its name or its value."""
    found = scraped.ask('group by (__name__) ({__name__=~"feedback_agent_.*|process_.*"})')
    assert exported() <= {series["metric"]["__name__"] for series in found}


def test_an_agent_is_named_by_its_node(scraped: Prometheus) -> None:
    """Alerts and documents name an ``instance``: a pod's address would tell nobody which node that
    is, and be another one after each rollout."""
    (up,) = scraped.ask("up")
    assert (f"{NODE}:9108", NODE) == (up["metric"]["instance"], up["metric"]["node"])


def test_every_alert_is_evaluated_and_none_fires_while_all_is_well(scraped: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in scraped.get("rules")["groups"] for rule in group["rules"]]

    scraped.until(lambda: all(rule["health"] == "ok" for rule in rules()), "evaluated")
    assert len(ALERTS) == len(rules())
    assert [] == [rule["name"] for rule in rules() if rule["state"] == "firing"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_of_a_dashboard_answers(path: Path, scraped: Prometheus) -> None:
    """With a number: a quantile of a histogram that counts nothing is NaN, and draws nothing."""

    def numbers(query: str) -> list[float]:
        found = (float(series["value"][1]) for series in scraped.ask(query))
        return [number for number in found if not isnan(number)]

    for query in queries(path):
        if not query.startswith("ALERTS"):
            scraped.until(lambda q=query: bool(numbers(q)), query)  # type: ignore[misc]
