import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent import redaction
from agent.config.sections import Redact
from agent.core.redact import RedactionFailed, Redactor
from agent.core.redaction_rules import KINDS, VERSION
from agent.errors import ConfigError
from agent.telemetry import Metrics

KEY = b"0123456789abcdef"
RULES = '- name: employee\n  pattern: "EMP-[0-9]{6}"\n'


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_all_rules_are_on_without_a_word() -> None:
    loaded = redaction.load(Redact())
    assert loaded is not None
    assert (VERSION, KINDS, (), None) == (
        loaded.version,
        loaded.kinds,
        loaded.custom,
        loaded.hash_key,
    )
    assert redaction.load(Redact(enabled=False)) is None


def test_fewer_rules_are_another_version() -> None:
    """Who reads the header sees what was not looked for."""
    loaded = redaction.load(Redact(rules=("phone", "email")))
    assert loaded is not None
    assert f"{VERSION}:email,phone" == loaded.version


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 65])
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    key = written(tmp_path / "key", content)
    with pytest.raises(ConfigError, match=r"^redact\.hash_key_file: found .* 16 to 64 bytes"):
        redaction.load(Redact(hash_key_file=key))
    with pytest.raises(ConfigError, match="cannot be read"):
        redaction.load(Redact(hash_key_file=tmp_path / "absent"))


def test_a_key_is_read_without_the_newline_behind_it(tmp_path: Path) -> None:
    loaded = redaction.load(Redact(hash_key_file=written(tmp_path / "key", KEY + b"\n")))
    assert loaded is not None
    assert KEY == loaded.hash_key


def test_rules_of_the_users_own_are_refused_without_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never run on an engine that a pattern can hang."""
    monkeypatch.setitem(sys.modules, "re2", None)
    custom = written(tmp_path / "rules.yaml", RULES)
    with pytest.raises(ConfigError, match="google-re2"):
        redaction.load(Redact(custom=custom))


def test_rules_of_the_users_own_have_markers_of_their_name(tmp_path: Path) -> None:
    pytest.importorskip("re2")
    custom = written(tmp_path / "rules.yaml", RULES)
    loaded = redaction.load(Redact(custom=custom))
    assert loaded is not None
    redactor = Redactor(loaded)
    assert "é [EMPLOYEE] and [EMAIL]" == redactor.text("é EMP-123456 and jo@example.com")
    assert loaded.version.startswith(f"{VERSION}+")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "a: b",
        "[]",
        "- name: x",
        "- {name: email, pattern: x}",
        "- {name: X1, pattern: x}",
        "- {name: x, pattern: '('}",
        "- {name: x, pattern: '(?=x)'}",
        "- {name: x, pattern: 'x*'}",
        "- {name: x, pattern: x}\n- {name: x, pattern: y}",
    ],
)
def test_a_bad_rule_is_said_and_nothing_starts(tmp_path: Path, content: str) -> None:
    pytest.importorskip("re2")
    with pytest.raises(ConfigError, match=r"^redact\.custom"):
        redaction.load(Redact(custom=written(tmp_path / "rules.yaml", content)))


@pytest.mark.parametrize("pattern", ["a.*b|a", "a.{0,}b|a", "(?s)a(.+)b|a"])
def test_a_rule_that_looks_too_far_too_often_fails_and_hangs_nothing(
    tmp_path: Path, pattern: str
) -> None:
    """RE2 finds one match in linear time; all of them may take it the square, here ten
    minutes."""
    pytest.importorskip("re2")
    custom = written(tmp_path / "rules.yaml", f"- {{name: mine, pattern: '{pattern}'}}")
    loaded = redaction.load(Redact(custom=custom))
    assert loaded is not None
    redactor = Redactor(loaded)
    with pytest.raises(RedactionFailed):
        redactor.text("a " * (1 << 19))
    few = "x" * (1 << 20) + "a" * 100
    assert redactor.text(few).startswith("x" * (1 << 20) + "[MINE]")


def test_a_rule_whose_matches_have_an_end_may_match_as_often_as_it_likes(tmp_path: Path) -> None:
    pytest.importorskip("re2")
    loaded = redaction.load(Redact(custom=written(tmp_path / "rules.yaml", RULES)))
    assert loaded is not None
    often = 1 << 16
    assert "[EMPLOYEE] " * often == Redactor(loaded).text("EMP-123456 " * often)


def test_what_is_shown_of_a_name() -> None:
    loaded = redaction.load(Redact())
    shown = redaction.shown(lambda: loaded)
    assert "acme/[EMAIL]/a.jsonl.1" == shown("acme/jo@example.com/a.jsonl.1")
    assert "a/[EMAIL]/b" == shown("a/j\\u200bo@example.com/b"), "as the log escapes it"
    assert "a@b.co" == redaction.shown(lambda: None)("a@b.co")


@pytest.mark.parametrize(
    ("name", "marker"),
    [("+4915129988776", "[PHONE]"), ("536-22-8726", "[SSN]"), ("203.0.113.177", "[IPV4]"),
     ("4929738803512255", "[CARD]"), ("DE89370400440532013000", "[IBAN]")],
)  # fmt: skip
def test_a_name_is_looked_at_as_if_it_stood_alone(name: str, marker: str) -> None:
    """A slash or an ending beside a number makes it part of something else in a text."""
    loaded = redaction.load(Redact())
    shown = redaction.shown(lambda: loaded)

    assert f"{marker}/a.jsonl" == shown(f"{name}/a.jsonl")
    assert f"acme/{marker}.jsonl" == shown(f"acme/{name}.jsonl")
    assert f"acme/{marker}.jsonl.1.gz" == shown(f"acme/{name}.jsonl.1.gz")
    assert f"acme/{marker}/{marker}.jsonl-20260131" == shown(f"acme/{name}/{name}.jsonl-20260131")


@pytest.mark.parametrize(
    "path", ["", "/", "a//b/", "acme/a.jsonl.1", "acme/feedback-20260131.jsonl", ".x", "a\nb/c.d"]
)
def test_other_names_are_shown_as_they_are(path: str) -> None:
    loaded = redaction.load(Redact())
    assert path == redaction.shown(lambda: loaded)(path)


def test_no_name_takes_long_to_be_shown() -> None:
    loaded = redaction.load(Redact())
    shown = redaction.shown(lambda: loaded)
    for unit in (".a", ".a-", "a/", ".a_1", "/.x-"):
        began_s = time.perf_counter()
        shown((unit * 4096)[:4096])
        assert time.perf_counter() - began_s < 1.0, unit


def test_every_kind_has_a_series_from_the_start() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for kind in KINDS:
        assert 0 == registry.get_sample_value("feedback_agent_redactions_total", {"kind": kind})
