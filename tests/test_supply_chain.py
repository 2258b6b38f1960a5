"""What the agent is made of is said, and nothing comes to it on the side."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import agent
from tests import sbom
from tests.test_packaging import LOCKS, PIN, pins

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, pkgutil, sys
def refuse(event, arguments):
    network = ("socket.connect", "socket.getaddrinfo", "socket.gethost", "socket.sendto", "urllib.")
    if event.startswith(network) or event in {"subprocess.Popen", "os.system", "os.posix_spawn"}:
        print("REFUSED", event, arguments, flush=True)
        raise SystemExit(3)
sys.addaudithook(refuse)
import agent
names = [module.name for module in pkgutil.walk_packages(agent.__path__, "agent.")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
print(len(names))
eval(sys.argv[1])
"""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sbom.document({}))
    return found


def test_it_is_of_the_schema() -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = sbom.document({})

    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"SHA-256"', '"SHA"')) is not None


def test_it_lists_every_package_of_the_lock_and_no_other(document: dict[str, Any]) -> None:
    listed = {c["name"]: c["version"] for c in document["components"]}

    assert pins("requirements-image.lock") == listed
    assert {"pytest", "ruff", "cyclonedx-python-lib"}.isdisjoint(listed)
    assert {f"pkg:pypi/{name}@{version}" for name, version in listed.items()} == {
        c["purl"] for c in document["components"]
    }


def test_it_has_every_hash_of_the_lock(document: dict[str, Any]) -> None:
    """Which of them is right is up to the processor: all are of this release."""
    blocks = {name: hashes for name, _, hashes in PIN.findall(sbom.LOCK.read_text())}
    for component in document["components"]:
        listed = {digest["content"] for digest in component["hashes"]}
        assert set(sbom.HASH.findall(blocks[component["name"]])) == listed


def test_it_names_a_licence_for_each(document: dict[str, Any]) -> None:
    assert all(component["licenses"] for component in document["components"])


def test_it_is_about_this_agent(document: dict[str, Any]) -> None:
    component = document["metadata"]["component"]
    (depends,) = (d["dependsOn"] for d in document["dependencies"] if d["ref"] == component["purl"])

    assert ("feedback-agent", agent.__version__) == (component["name"], component["version"])
    assert [{"license": {"id": "Apache-2.0"}}] == component["licenses"]
    assert len(document["components"]) == len(depends)


def test_the_same_tree_gives_the_same_bytes() -> None:
    """Whoever makes it again can compare."""
    one, two = (
        subprocess.run([sys.executable, "-m", "tests.sbom"], cwd=ROOT, stdout=-1, check=True).stdout
        for _ in range(2)
    )

    assert one == two == sbom.document({}).encode()
    assert b"timestamp" not in one
    dated = json.loads(sbom.document({"SOURCE_DATE_EPOCH": "0"}))
    assert dated["metadata"]["timestamp"].startswith("1970-01-01T00:00:00")


def imported(home: Path, then: str) -> subprocess.CompletedProcess[str]:
    """Import every module with no network and an empty home; ``then``: evaluated after that."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, then],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_fetched_or_started_or_kept_when_it_is_imported(tmp_path: Path) -> None:
    done = imported(tmp_path, "None")

    assert 0 == done.returncode, done.stdout + done.stderr
    assert len([*(ROOT / "agent").rglob("*.py")]) - 2 <= int(done.stdout)
    assert [] == [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "attempt",
    [
        "importlib.import_module('urllib.request').urlopen('http://127.0.0.1:9/')",
        "importlib.import_module('socket').create_connection(('localhost', 9))",
    ],
)
def test_an_attempt_would_have_been_seen(tmp_path: Path, attempt: str) -> None:
    done = imported(tmp_path, attempt)

    assert 3 == done.returncode, done.stderr
    assert "REFUSED" in done.stdout


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_made_by_its_script(lock: Path) -> None:
    assert "#    scripts/lock\n" in lock.read_text()
