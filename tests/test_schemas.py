"""Schema files of a team's own: what is read, what is refused, and what is said of a line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import schemas
from agent.config.sections import Schema
from agent.core.schemas import CustomType, Schemas
from agent.errors import ConfigError

CANARY = "zq7canary"
Json = dict[str, Any]


@pytest.fixture(autouse=True)
def engine() -> Any:
    return pytest.importorskip("jsonschema_rs")


def written(directory: Path, **files: Json | bytes) -> Path:
    for name, content in files.items():
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / f"{name}.json").write_bytes(body)
    return directory


def load(directory: Path) -> Schemas:
    loaded = schemas.load(Schema(dir=directory))
    assert loaded is not None
    return loaded


def compiled(directory: Path, schema: Json) -> CustomType:
    return load(written(directory, order=schema)).types["order"]


def refused(directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        schemas.load(Schema(dir=directory))
    said = str(caught.value)
    assert said.isprintable(), "one line, safe on a terminal"
    return said.removeprefix("schema.dir: ")


# ---- files


def test_a_file_is_the_type_it_is_named_after(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, order={"properties": {"a": {}}}, b2_c={}))

    assert {"order", "b2_c"} == loaded.types.keys()
    assert {"a"} == loaded.types["order"].names


def test_no_directory_is_no_types_and_needs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    assert schemas.load(Schema()) is None


def test_schemas_are_refused_without_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never run on an engine that a pattern can hang."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    assert "jsonschema-rs" in refused(written(tmp_path, order={}))


def test_the_version_is_another_where_a_file_is(tmp_path: Path) -> None:
    first = load(written(tmp_path, order={})).version

    assert first == load(tmp_path).version
    assert first != load(written(tmp_path, order={"type": "object"})).version
    assert first != load(written(tmp_path, order={}, other={})).version


def test_a_volume_of_kubernetes_is_read(tmp_path: Path) -> None:
    """A ConfigMap is links to a directory that is swapped as a whole."""
    (tmp_path / "..2026").mkdir()
    written(tmp_path / "..2026", order={})
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "order.json").symlink_to("..data/order.json")

    assert {"order"} == load(tmp_path).types.keys()


@pytest.mark.parametrize(
    "name", ["Order.json", "order.yaml", "1.json", "x" * 65 + ".json", "é.json"]
)
def test_a_file_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    """Passed over, its lines would become dead letters."""
    (tmp_path / name).write_text("{}")
    assert refused(tmp_path).startswith(f"found {name!a}; allowed: <type>.json")


def test_what_is_no_regular_file_of_the_directory_is_refused(tmp_path: Path) -> None:
    """And nothing waits for it."""
    directory = tmp_path / "schemas"
    directory.mkdir()
    place = directory / "order.json"
    os.mkfifo(place)
    assert "order.json: not a regular file" == refused(directory)
    place.unlink()
    place.mkdir()
    assert refused(directory).startswith("order.json: ")
    place.rmdir()
    for target in ("/etc/hostname", "../outside.json"):
        place.symlink_to(target)
        assert "order.json: found a link that leads out of the directory" == refused(directory)
        place.unlink()
    place.symlink_to("order.json")
    assert refused(directory).startswith("order.json: cannot be read")


def test_the_number_and_the_size_of_files_are_bounded(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent").startswith("cannot be read")
    assert "found 0 files; allowed: 1 to 256" == refused(tmp_path)
    whole = b"{}" + b" " * (schemas.FILE_BYTES_MAX - 2)
    assert {"order"} == load(written(tmp_path, order=whole)).types.keys()
    assert "at most 262144 bytes" in refused(written(tmp_path, order=whole + b" "))
    for number in range(schemas.FILES_MAX):
        (tmp_path / f"t{number}.json").write_text("{}")
    assert "found 257 files; allowed: 1 to 256" == refused(tmp_path)


# ---- schemas that are refused


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b'{"a":"\\ud800"}', b"NaN", b"{}{}", b"[" * 100_000, b"[]", b"true", b"7"],
)
def test_what_is_no_object_of_json_is_refused(tmp_path: Path, content: bytes) -> None:
    said = refused(written(tmp_path, order=content))
    assert said.startswith("order.json: ")
    assert "JSON Schema" in said


NESTED: Json = {}
for _ in range(400):
    NESTED = {"not": NESTED}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"type": "nope"}}}, "#/properties/a/type: breaks the rules"),
        ({"properties": 7}, "#/properties: breaks the rules"),
        ({"format": "nope"}, "#/format: allowed: a format of JSON Schema"),
        (
            {"items": {"pattern": "(?=a)"}},
            "#/items/pattern: allowed: a pattern without look-around",
        ),
        ({"pattern": "(a)\\1"}, "#/pattern: allowed: a pattern without"),
        ({"pattern": "("}, "#/pattern: allowed: a pattern without"),
        ({"pattern": "(a{1000}){1000}"}, "#/pattern: allowed: a pattern without"),
        (
            {"patternProperties": {"(?!a)\n": {}}},
            "#/patternProperties/(?!a)\\n: allowed: a pattern",
        ),
        ({"$schema": "https://example.com/own"}, ": allowed: references within the file"),
        ({"$ref": "#/$defs/absent"}, ": allowed: references within the file"),
        ({"$ref": "other.json"}, ": allowed: references within the file"),
        ({"$ref": "file:///etc/passwd"}, ": allowed: references within the file"),
        ({"$dynamicRef": "https://example.com/x"}, ": allowed: references within the file"),
        ({"$id": "https://example.com/a.json", "$ref": "b.json"}, ": allowed: references"),
        (NESTED, ": nested too deep"),
    ],
)
def test_a_bad_schema_is_refused_with_its_place(tmp_path: Path, schema: Json, said: str) -> None:
    assert refused(written(tmp_path, order=schema, z={})).startswith(f"order.json{said}")


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef", "$schema"])
def test_nothing_is_fetched(tmp_path: Path, keyword: str) -> None:
    """Not even from this machine, where a server listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.json"
        refused(written(tmp_path, order={keyword: address}))
        if keyword != "$schema":  # which means something at the top only
            refused(written(tmp_path, order={"properties": {"a": {keyword: address}}}))
        with pytest.raises(BlockingIOError):
            server.accept()


# ---- lines

TREE: Json = {
    "required": ["order_id"],
    "properties": {
        "order_id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
        "items": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/item"}},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]},
        "one": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        "uuid": {"format": "uuid"},
        "none": False,
        "never": {"not": {"type": "null"}},
    },
    "additionalProperties": {"type": "integer"},
    "$defs": {
        "item": {
            "properties": {"price": {"minimum": 0}, "inner": {"$ref": "#/$defs/item"}},
            "patternProperties": {"^x_": {"type": "boolean"}},
            "dependentRequired": {"price": ["unit"]},
        }
    },
}


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, None),
        ({"order_id": None}, "order_id: type"),
        ({"order_id": "a"}, "order_id: pattern"),
        ({"items": [{}] * 4}, "items: maxItems"),
        ({"items": [{}, {"inner": {"price": -1, "unit": 1}}]}, "items[1].inner.price: minimum"),
        ({"items": [{"price": 1}]}, "items[0]: unit: required"),
        ({"items": [{"x_secret": 1}]}, "items[0].*: type"),
        ({"either": 2}, "either: anyOf"),
        ({"either": 3}, None),
        ({"one": 1}, "one: oneOf"),
        ({"one": 1.5}, None),
        ({"uuid": "x"}, "uuid: format"),
        ({"none": 1}, "none: not allowed"),
        ({"never": None}, "never: not"),
        ({"secret": "x"}, "*: type"),
        ({"secret": 1}, None),
    ],
)
def test_a_misfit_is_said_in_names_of_the_schema(
    tmp_path: Path, fields: Json, detail: str | None
) -> None:
    wrong = compiled(tmp_path, TREE).wrong

    assert detail == wrong({"order_id": "AB-1"} | fields)
    assert "the line: order_id: required" == wrong({})


@pytest.mark.parametrize(
    ("schema", "detail"),
    [
        ({"additionalProperties": False}, "the line: additionalProperties"),
        ({"unevaluatedProperties": False}, schemas.MISFIT),
        ({"propertyNames": {"maxLength": 1}}, "the line: propertyNames"),
        ({"$ref": "#/anyOf/0", "anyOf": [{"required": ["z"]}]}, schemas.MISFIT),
        ({"properties": {"x" * 300: {}}, "required": ["x" * 300]}, f"the line: {'x' * 246}"),
        ({"required": ["a\n"]}, "the line: a\\n: required"),
    ],
)
def test_a_misfit_of_the_whole_is_said_too(tmp_path: Path, schema: Json, detail: str) -> None:
    assert detail == compiled(tmp_path, schema).wrong({CANARY: 1})


@pytest.mark.parametrize(
    "draft",
    [
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-06/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    ],
)
def test_every_draft_checks_formats_and_references(tmp_path: Path, draft: str) -> None:
    schema = {
        "$schema": draft,
        "properties": {"a": {"$ref": "#/definitions/ip"}},
        "definitions": {"ip": {"type": "string", "format": "ipv4"}},
    }
    wrong = compiled(tmp_path, schema).wrong

    assert wrong({"a": "10.0.0.1"}) is None
    assert "a: format" == wrong({"a": "10.0.0.256"})


def test_a_pattern_that_hangs_others_ends(tmp_path: Path) -> None:
    """On a backtracking engine thirty letters would take longer than this test may."""
    evil = {"pattern": "^(a+)+$"}
    names = {"patternProperties": {"^(b|b)*$": False}}
    wrong = compiled(tmp_path, {"properties": {"t": evil, "n": names}}).wrong

    assert "t: pattern" == wrong({"t": "a" * 700_000 + "!"})
    assert wrong({"t": "a" * 700_000, "n": {"b" * 700_000 + "!": 1}}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"if": {"$ref": "#"}, "then": {"$ref": "#"}},
        {"$dynamicAnchor": "m", "allOf": [{"$dynamicRef": "#m"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ],
)
def test_a_schema_that_refers_to_itself_ends(tmp_path: Path, schema: Json) -> None:
    assert compiled(tmp_path, schema).wrong({"a": {"a": {}}}) is None


def test_a_chain_of_references_does_not_overflow_the_stack(tmp_path: Path) -> None:
    """Run in a process of its own, which an overflow would end."""
    defs: Json = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(6_000)}
    schema = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs | {"d6000": False}}
    assert "a: not allowed" == said_within(1 << 30, written(tmp_path, order=schema), '{"a": 1}')


def test_a_misfit_in_branches_costs_no_memory(tmp_path: Path) -> None:
    """The engine's own list of what is wrong with these would take more than this process may."""
    branch = {"type": "array", "items": {"$ref": "#/$defs/tree"}}
    tree = {"anyOf": [branch, {"title": "another", **branch}, {"type": "string"}]}
    schema = {"properties": {"t": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": tree}}
    line = '{"t": [[[[[[[' + "[1], " * 20_000 + "1]]]]]]]}"
    assert "t: anyOf" == said_within(1 << 29, written(tmp_path, order=schema), line)


def said_within(memory_bytes: int, directory: Path, line: str) -> str:
    """Return what is wrong with ``line``, found by a process with so much memory."""
    program = (
        "import json, pathlib, resource, sys\n"
        "from agent import schemas\n"
        "from agent.config.sections import Schema\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({memory_bytes},) * 2)\n"
        "loaded = schemas.load(Schema(dir=pathlib.Path(sys.argv[1])))\n"
        "print(loaded.types['order'].wrong(json.load(sys.stdin)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, directory],
        input=line,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr[-500:]
    return done.stdout.strip()


def test_a_panic_of_the_engine_costs_its_line_alone() -> None:
    """It is no ``Exception``, and the same line would meet every later life of the agent."""

    class Panic(BaseException):
        pass

    def panics(_: object) -> bool:
        raise Panic

    fit = schemas._Fit(panics, panics, frozenset(), ValueError)
    assert schemas.MISFIT == fit.wrong({})


# ---- any schema, any line

LEAVES: st.SearchStrategy[Json] = st.sampled_from(
    [
        {}, {"type": "string"}, {"type": "integer"}, {"type": ["object", "array"]}, {"minimum": 2},
        {"maxLength": 1}, {"pattern": "^a"}, {"required": ["a"]}, {"const": {"anyOf": [1]}},
        {"enum": [1, [], {"oneOf": []}]}, {"maxItems": 1}, {"uniqueItems": True},
        {"additionalProperties": False}, {"unevaluatedProperties": False}, {"format": "ipv4"},
        {"unevaluatedItems": False}, {"$ref": "#"}, {"minProperties": 1}, {"multipleOf": 0.5},
    ]
)  # fmt: skip


def composed(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    several = st.lists(inner, min_size=1, max_size=3)
    parts = {
        "anyOf": several, "oneOf": several, "allOf": several, "not": inner, "items": inner,
        "if": inner, "then": inner, "else": inner, "contains": inner, "propertyNames": inner,
        "additionalProperties": inner, "prefixItems": several,
        "properties": st.dictionaries(st.sampled_from(["a", "b", "anyOf"]), inner, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["z", "^a$"]), inner, max_size=1),
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional=parts)


SCHEMAS = st.recursive(LEAVES, composed, max_leaves=12)
VALUES = st.recursive(
    st.sampled_from([CANARY, None, True, 0, 2.5, 7, ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "anyOf", CANARY]), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", "anyOf", CANARY]), VALUES, max_size=4)


@given(SCHEMAS, st.lists(OBJECTS, min_size=1, max_size=5))
def test_the_verdict_is_the_engines_and_the_words_hold_no_payload(
    schema: Json, objects: list[Json]
) -> None:
    import jsonschema_rs

    custom = schemas._compiled(jsonschema_rs, json.dumps(schema).encode(), "here")
    for fields in objects:
        detail = custom.wrong(fields)
        fits = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(fields)
        assert fits == (detail is None)
        assert CANARY not in (detail or "")
