"""What the documents say of names and bounds is what the code has."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec
import msgspec.inspect
import pytest
from prometheus_client import CollectorRegistry

from agent.config import keys as configuration
from agent.core import events
from agent.core.keys import NAMESPACE
from agent.core.reasons import REASONS
from agent.telemetry import SEND_FAILURES, Metrics

ROOT = Path(__file__).parent.parent
EVENTS = (ROOT / "docs/events.md").read_text()
DELIVERY = (ROOT / "docs/delivery.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "agent").rglob("*.py"))

IN_BACKTICKS = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"[a-z_]+\.[a-z_]+")
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
BOUNDS = ("min_length", "max_length", "ge", "le")
NOT_OURS = {"max.message.bytes", "metadata.client", "metadata.traceparent", "order.json"}


def quoted(text: str) -> set[str]:
    return set(IN_BACKTICKS.findall(text))


def section(heading: str) -> str:
    """Return what stands under ``## heading``, up to the next of its level."""
    _, found, rest = EVENTS.partition(f"\n## {heading}\n")
    assert found, f"no section {heading}"
    return rest.partition("\n## ")[0]


def row(text: str, name: str) -> str:
    """Return the first row of a table in ``text`` that begins with ``name``."""
    (found, *_) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE) or [""]
    assert found, f"no row {name}"
    return str(found)


def bounds(kind: msgspec.inspect.Type) -> Iterator[str]:
    """Yield what a document must say of ``kind``, but for the range of 64 bits."""
    for bound in BOUNDS:
        value = getattr(kind, bound, None)
        if value is not None and value not in {events.INTEGER_MIN, events.INTEGER_MAX}:
            yield f"{value:g}" if isinstance(value, float) else str(value)
    match kind:
        case msgspec.inspect.UnionType(types):
            yield from chain(*map(bounds, types))
        case msgspec.inspect.ListType(item_type=item):
            yield from bounds(item)
        case msgspec.inspect.LiteralType(values):
            yield from map(str, values)
        case _:
            pass


def fields_of(struct: type[msgspec.Struct]) -> list[msgspec.inspect.Field]:
    (info,) = msgspec.inspect.multi_type_info([struct])
    assert isinstance(info, msgspec.inspect.StructType)
    return list(info.fields)


def assert_said(text: str, field: msgspec.inspect.Field) -> None:
    said = re.findall(r"[A-Za-z0-9_]+", row(text, field.name))
    assert set(bounds(field.type)) <= set(said), field.name


@pytest.mark.parametrize("name", events.EVENT_TYPES)
def test_every_field_of_a_type_stands_in_its_table_with_its_bounds(name: str) -> None:
    """App teams write by the tables: a bound that is missing there rejects their lines."""
    kind, text = events.EVENT_TYPES[name], section(name)
    for field in fields_of(kind):
        if field.name not in events.UnknownEvent.__struct_fields__:
            assert_said(text, field)
            assert field.required == ("| yes |" in row(text, field.name)), field.name


@pytest.mark.parametrize("name", events.EVENT_TYPES)
def test_every_field_of_an_object_inside_stands_in_a_table_of_its_own(name: str) -> None:
    text = section(name)
    for part, kind in events.PARTS.get(events.EVENT_TYPES[name], {}).items():
        _, found, table = text.partition(f"| field in `{part}` |")
        assert found, f"no table {part}"
        for field in fields_of(kind):
            assert_said(table, field)


def test_the_common_fields_and_their_bounds_are_said() -> None:
    text = section("Common fields")
    for name in events.UnknownEvent.__struct_fields__:
        row(text, name)
    assert str(events.METADATA_ENTRIES_MAX) in row(text, "metadata")
    assert events.SCHEMA_VERSION in row(text, "schema_version")
    assert quoted(section("What goes to Kafka")) >= events.COLLECTOR_KEYS
    assert f"deeper than {events.DEPTH_MAX};" in row(section("What is rejected"), "too_deep")


def test_the_reasons_are_those_of_the_code() -> None:
    """The list is closed: consumers may rely on it."""
    named = re.findall(r"^\| `([a-z_0-9]+)` \|", section("What is rejected"), re.MULTILINE)
    assert sorted(REASONS) == sorted(named)


def headers_made() -> set[str]:
    """Return the names in the pairs that the rooms make headers of."""
    made = set()
    for source in ("core/record.py", "chunk.py"):
        for node in ast.walk(ast.parse((ROOT / "agent" / source).read_text())):
            match node:
                case ast.Tuple(elts=[ast.Constant(value=str(name)), _]):
                    made.add(name)
                case _:
                    pass
    return made


def test_every_header_is_said() -> None:
    made = headers_made()
    assert {"event_type", "source", "reason", "traceparent", "cut"} <= made
    text = section("What goes to Kafka") + section("Dead letters")
    assert made <= set(re.findall(r"^\| (?:header )?`([a-z_]+)` \|", text, re.MULTILINE))


def test_consumers_are_told_every_header() -> None:
    text = (ROOT / "docs/consumers.md").read_text()
    assert headers_made() <= set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["apps.md", "consumers.md"])
def test_every_key_that_apps_and_consumers_are_told_of_exists(name: str) -> None:
    ours = re.compile(r"(source|schema|kafka|dlq|in_flight|redact)\.[a-z_.]+")
    named = {word for word in quoted((ROOT / "docs" / name).read_text()) if ours.fullmatch(word)}
    assert named
    assert named <= keys()


def test_the_namespace_of_derived_ids_is_said() -> None:
    assert NAMESPACE.hex() in EVENTS.replace("-", "")


def events_logged() -> set[str]:
    """Return every constant name that a room logs."""
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case (
                    ast.Call(
                        func=ast.Name(id="event"), args=[_, _, ast.Constant(value=str(name)), *_]
                    )
                    | ast.Call(
                        func=ast.Attribute(value=ast.Name(id="log")),
                        args=[ast.Constant(value=str(name)), *_],
                    )
                ):
                    names.add(name)
                case _:
                    pass
    return names


def keys() -> set[str]:
    """Return every key and group of the configuration by its path."""
    return {*configuration.keys(), *configuration.groups()}


def test_every_log_event_key_and_reason_that_delivery_names_exists() -> None:
    """An operator searches the log for these very words."""
    logged, known = events_logged(), keys()
    assert {"sink.down", "checkpoints.lost", "invariant.broken"} <= logged
    assert {"in_flight.events_max", "kafka.topic"} <= known
    named = {word for word in quoted(DELIVERY) if DOTTED.fullmatch(word)}
    files = {
        *("checkpoints.db", "checkpoints.created", "control.sock", "receipts.jsonl"),
        *("replayed.db", "spool.db"),
    }
    assert named - files - NOT_OURS <= logged | known


def test_every_log_event_and_key_that_security_names_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    ours = re.compile(r"(secret|reload|sink|token|kafka|dlq)\.[a-z_.]+")
    named = {word for word in quoted(text) if ours.fullmatch(word)}
    assert {"secret.exposed", "sink.renewed", "kafka.tls.cert_file"} <= named
    assert named <= events_logged() | keys()


def test_every_log_event_key_and_manifest_that_operations_names_exists() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    ours = re.compile(
        r"(agent|audit|batch|breaker|kafka|quota|retry|root|file|directory)\.[a-z_]+(\.[a-z_]+)*"
    )
    named = {word for word in quoted(text) if ours.fullmatch(word)}
    assert {"agent.drain_s", "batch.age_min_s", "file.refused"} <= named
    assert named <= events_logged() | keys()
    for word in quoted(text):
        if word.startswith(("k8s/", "scripts/", "components/", "overlays/")):
            path = word.split()[0]
            below = "k8s/" if path.startswith(("components/", "overlays/")) else ""
            assert (ROOT / below / path).exists(), word


def test_every_overlay_and_component_is_told_of() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        assert path.parent.name in text, path


def test_every_key_that_events_names_exists() -> None:
    named = {word for word in quoted(EVENTS) if DOTTED.fullmatch(word)}
    assert named - NOT_OURS <= keys()


def test_every_reason_of_a_failed_send_is_said() -> None:
    words = {word.rpartition(": ")[2] for word in quoted(DELIVERY)}
    assert set(SEND_FAILURES) <= words


def test_every_metric_that_a_document_names_exists() -> None:
    """A query for a metric that is not there answers nothing, not an error."""
    registry = CollectorRegistry()
    Metrics(registry)
    exported = {sample.name for family in registry.collect() for sample in family.samples}
    exported |= {family.name for family in registry.collect()}  # histograms
    for path in DOCUMENTS:
        named = set(re.findall(r"`(feedback_agent_[a-z_]+)`", path.read_text()))
        assert named <= exported, path.name


def anchors(path: Path) -> set[str]:
    """Return what a link may name behind ``#``, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
