import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from click.testing import CliRunner, Result

import agent
from agent import __version__, config, errors
from agent.cli import EPILOG, main
from agent.config.keys import members

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
BROKERS = "FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(BROKERS, "kafka:9092")
    monkeypatch.setenv("FEEDBACK_AGENT_AGENT__NODE", "node-1")
    monkeypatch.delenv("FEEDBACK_AGENT_CONFIG", raising=False)
    monkeypatch.setattr(config, "PATH_DEFAULT", tmp_path / "default.yaml")


def call(*args: str) -> Result:
    return CliRunner().invoke(main, args, prog_name="feedback-agent")


Pipeline = Callable[[Callable[[config.Config], int]], None]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Put a function in the place of ``agent.pipeline.run``; logging stays as it was."""

    def put(run: Callable[[config.Config], int]) -> None:
        room = ModuleType("agent.pipeline")
        room.run = lambda loaded, _rules: run(loaded)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "agent.pipeline", room)
        monkeypatch.setattr(agent, "pipeline", room, raising=False)
        monkeypatch.setattr("agent.logs.setup", lambda *_, **__: None)

    return put


# ---- check


def test_check_prints_everything_with_its_default() -> None:
    result = call("check")

    assert 0 == result.exit_code, result.output
    printed = yaml.safe_load(result.stdout)
    assert ["kafka:9092"] == printed["kafka"]["bootstrap_servers"]
    assert members("") == list(printed)
    assert printed == json.loads(call("check", "--json").stdout)


def test_check_of_a_mistake_is_one_line_on_stderr_and_78(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log:\n  level: loud\n")

    result = call("check", "--config", str(file))

    assert 78 == result.exit_code
    assert "" == result.stdout
    assert result.stderr == (
        f"feedback-agent: error: {file}:2: log.level: found 'loud'; "
        "allowed: one of debug, error, info, warning\n"
    )


def test_check_reads_the_schemas_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad one would keep the agent from starting."""
    pytest.importorskip("jsonschema_rs")
    monkeypatch.setenv("FEEDBACK_AGENT_SCHEMA__DIR", str(tmp_path))
    (tmp_path / "order.json").write_text("{}")
    assert 0 == call("check").exit_code

    (tmp_path / "order.json").write_text('{"items": {"type": "thing"}}')
    result = call("check")

    assert (78, "") == (result.exit_code, result.stdout)
    said = "schema.dir: order.json#/items/type: breaks the rules of JSON Schema: anyOf"
    assert f"feedback-agent: error: {said}\n" == result.stderr


TLS = "tls: {enabled: true, cert_file: FILE}"
SASL = "sasl: {mechanism: SCRAM-SHA-512, username: u, password_file: FILE}"
BEARER = "tls: {enabled: true}, sasl: {mechanism: OAUTHBEARER, token_file: FILE}"


@pytest.mark.parametrize(
    ("section", "key", "wrong"),
    [
        ("redact: {custom: FILE}", "redact.custom", "found no YAML"),
        ("redact: {hash_key_file: FILE}", "redact.hash_key_file", "found 9 bytes"),
        ("kafka: {tls: {enabled: true, ca_file: FILE}}", "kafka.tls.ca_file", "no certificates"),
        (f"kafka: {{{TLS}}}", "kafka.tls.cert_file", "do not go together"),
        (f"kafka: {{{SASL}}}", "kafka.sasl.password_file", "more than one line"),
        (f"kafka: {{{BEARER}}}", "kafka.sasl.token_file", "more than one line"),
    ],
)
def test_check_reads_what_the_agent_would_read(
    tmp_path: Path, section: str, key: str, wrong: str
) -> None:
    """What is wrong is said with its key, and never what is there."""
    pytest.importorskip("re2")
    named, file = tmp_path / "named", tmp_path / "config.yaml"
    named.write_text("{hunter\n2")
    file.write_text(section.replace("FILE", str(named)))

    result = call("check", "--config", str(file))

    assert 78 == result.exit_code, result.output
    assert "" == result.stdout
    assert result.stderr.startswith(f"feedback-agent: error: {key}: ")
    assert wrong in result.stderr
    assert "hunter" not in result.stderr
    named.unlink()
    result = call("check", "--config", str(file))
    assert (78, "") == (result.exit_code, result.stdout)
    assert "no such file or directory" in result.stderr


def test_check_prints_the_schema_without_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BROKERS)

    result = call("check", "--schema")

    assert 0 == result.exit_code
    assert "object" == json.loads(result.stdout)["type"]


def test_check_prints_the_schema_of_events_without_a_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(BROKERS)

    result = call("check", "--output-schema")

    assert 0 == result.exit_code
    assert 5 == len(json.loads(result.stdout)["oneOf"])


def test_the_file_is_the_option_else_the_variable_else_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def node() -> str:
        return str(json.loads(call("check", "--json").stdout)["http"]["port"])

    for port, name in enumerate(("default.yaml", "variable.yaml", "option.yaml"), 1):
        (tmp_path / name).write_text(f"http: {{port: {port}}}\n")

    assert "1" == node()
    monkeypatch.setenv("FEEDBACK_AGENT_CONFIG", str(tmp_path / "variable.yaml"))
    assert "2" == node()
    result = call("check", "--json", "--config", str(tmp_path / "option.yaml"))
    assert 3 == json.loads(result.stdout)["http"]["port"]


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    result = call("check", "--config", str(tmp_path / "absent.yaml"))

    assert 78 == result.exit_code
    assert "absent.yaml: cannot be read: no such file or directory\n" in result.stderr


# ---- run


def test_run_hands_over_the_configuration_and_exits_as_the_pipeline_says(
    pipeline: Pipeline,
) -> None:
    ran: list[str] = []

    def run(loaded: config.Config) -> int:
        ran.append(loaded.node)
        return 1

    pipeline(run)

    assert 1 == call("run").exit_code
    assert ["node-1"] == ran


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("http.port", "found 1, already in use"), 78),
        (errors.StoreError("cannot write"), 74),
        (errors.StateOwned("by another"), 75),
        (errors.StateTooNew("written by 9.0"), 76),
        (errors.SinkUnavailable("unreachable"), 1),
        (ExceptionGroup("tasks", [errors.StoreError("cannot write")]), 74),
    ],
)
def test_an_error_on_purpose_is_one_line_and_its_exit_code(
    pipeline: Pipeline, error: Exception, code: int
) -> None:
    def run(_: config.Config) -> int:
        raise error

    pipeline(run)

    result = call("run")

    assert code == result.exit_code
    assert re.fullmatch(r"feedback-agent: error: [^\n]+\n", result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("watermark passed an unsettled byte"),
        ValueError("nobody expected this"),
        ExceptionGroup("tasks", [errors.StoreError("x"), AssertionError("y")]),
    ],
)
def test_a_broken_invariant_is_70_with_its_traceback_in_the_log(
    pipeline: Pipeline, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def run(_: config.Config) -> int:
        raise error

    pipeline(run)

    assert 70 == call("run").exit_code
    (record,) = caplog.records
    assert "invariant.broken" == record.message
    assert record.exc_info
    assert record.exc_info[1] is error


def test_run_does_not_begin_with_a_wrong_configuration(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BROKERS, "kafka")
    pipeline(lambda _: pytest.fail("ran"))

    assert 78 == call("run").exit_code


def test_an_interrupt_is_130(pipeline: Pipeline) -> None:
    def run(_: config.Config) -> int:
        raise KeyboardInterrupt

    pipeline(run)

    assert 130 == call("run").exit_code


# ---- demo


def test_demo_passes_on_what_was_given_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[dict[str, object]] = []

    def show(**options: object) -> int:
        got.append(options)
        return 0

    room = ModuleType("agent.demo.show")
    room.main = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "agent.demo.show", room)

    assert 0 == call("demo").exit_code
    assert 0 == call("demo", "--seconds", "2.5", "--lines", "10").exit_code
    assert [{}, {"seconds": 2.5, "lines": 10}] == got


def test_demo_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where ``confluent_kafka`` is not installed: the import inside of the demo fails."""
    package = ModuleType("agent.demo")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "show.py").write_text("import confluent_kafka_that_is_not_here\n")
    monkeypatch.setitem(sys.modules, "agent.demo", package)
    monkeypatch.delitem(sys.modules, "agent.demo.show", raising=False)

    result = call("demo")

    assert 64 == result.exit_code
    assert "needs confluent_kafka_that_is_not_here: pip install 'feedback-agent[demo]'" in (
        result.stderr
    )


# ---- usage


@pytest.mark.parametrize(
    "args", [(), ("fly",), ("run", "--speed", "9"), ("demo", "--lines", "0"), ("check", "extra")]
)
def test_wrong_usage_is_64(args: tuple[str, ...]) -> None:
    assert 64 == call(*args).exit_code


@pytest.mark.parametrize("args", [("--help",), ("run", "--help"), ("demo", "--help")])
def test_help_is_no_mistake_and_shows_an_example(args: tuple[str, ...]) -> None:
    result = call(*args)

    assert 0 == result.exit_code
    assert "Examples:\n  feedback-agent" in result.stdout.replace("\n    ", "\n  ")


def test_the_tables_of_exit_codes_are_complete_and_agree() -> None:
    codes = {errors.EXIT_OK, errors.EXIT_FOUND, errors.EXIT_USAGE, errors.EXIT_INVARIANT}
    raised = (errors.ConfigError, errors.StoreError, errors.StateOwned, errors.StateTooNew)
    codes |= {error.exit_code for error in raised}

    in_help = re.findall(r"^ +(\d+)  (.+)$", EPILOG, re.MULTILINE)
    in_docs = re.findall(r"^\| (\d+) \| (.+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)

    assert sorted(codes) == [int(code) for code, _ in in_help]
    assert in_docs == in_help


def test_every_command_says_what_it_does() -> None:
    for command in main.commands.values():
        assert command.help
        assert all(o.help for o in command.params if isinstance(o, click.Option))


def test_version_and_check_import_no_more_than_they_need() -> None:
    """They run in init containers and hooks, where 39 MB and half a second would show."""
    program = (
        "import sys; from agent.cli import main\n"
        "try: main(sys.argv[1:], prog_name='feedback-agent')\n"
        "finally: print(sorted({'aiokafka', 'prometheus_client', 'rich', 'asyncio', 'sqlite3',"
        " 'watchdog', 'opentelemetry'} & set(sys.modules)))"
    )
    for args in (["--version"], ["check", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("\n[]\n"), done.stdout


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--version"], capture_output=True, text=True, check=True
    )

    assert f"feedback-agent, version {__version__}\n" == done.stdout
