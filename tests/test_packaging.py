"""What is built, locked and started holds together."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
import yaml

import agent

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(ROOT.glob("requirements*.lock"))
PIN = re.compile(
    r"^([a-z0-9][a-z0-9-]*)==(\S+)(?: ; [^\n]*)? \\\n"  # it may be for some Pythons only
    r"((?: {4}--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
    re.MULTILINE,
)


def pins(lock: str) -> dict[str, str]:
    """Return the version of each package that ``lock`` pins with hashes."""
    return {name: version for name, version, _ in PIN.findall((ROOT / lock).read_text())}


def distribution(requirement: str) -> str:
    """Return the normalised name in ``requirement`` (PEP 503)."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported_by(source: Path) -> set[str]:
    """Return the top-level packages that ``source`` imports anywhere, lazily too."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_version_is_one() -> None:
    """The package, its metadata, the image, its label and what Kubernetes starts carry the same."""
    assert agent.__version__ == PROJECT["version"]
    assert f"ARG VERSION={agent.__version__}\n" in (ROOT / "Dockerfile").read_text()
    chart = yaml.safe_load((ROOT / "k8s/chart/Chart.yaml").read_text())
    assert {agent.__version__} == {chart["version"], chart["appVersion"]}
    images = [
        image
        for path in (ROOT / "k8s").rglob("kustomization.yaml")
        for image in yaml.safe_load(path.read_text()).get("images", [])
    ]
    assert {("feedback-agent", agent.__version__)} == {(i["name"], i["newTag"]) for i in images}


@pytest.mark.parametrize(
    "script",
    [
        "scripts/check",
        "scripts/demo",
        "scripts/faults",
        "scripts/fleet",
        "scripts/image",
        "scripts/lock",
        "scripts/sbom",
        "scripts/test",
        ".ci/run",
    ],
)
def test_scripts_start_and_stop_at_the_first_error(script: str) -> None:
    """Strict mode, executable, and bash can parse them."""
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("requirements.lock", PROJECT["dependencies"]),
        (
            "requirements-dev.lock",
            [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())],
        ),
    ],
)
def test_every_dependency_is_locked(lock: str, requirements: list[str]) -> None:
    """A requirement without a pin and a hash would be fetched unseen."""
    assert {distribution(requirement) for requirement in requirements} <= pins(lock).keys()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_place(lock: Path) -> None:
    """Packages come from whatever index the machine uses; the hashes say whether they are right."""
    text = lock.read_text()
    assert not re.search(
        r"://|--(extra-)?index|--find-links|--trusted-host|^-[a-z]|\s/", text, re.MULTILINE
    )
    bare = PIN.sub("", text)
    assert [line for line in bare.splitlines() if line and not line.startswith("#")] == []


def test_locks_agree() -> None:
    """What the tests ran with is what the image runs."""
    kinds = ("", "-image", "-build", "-dev")
    run, image, build, dev = (pins(f"requirements{kind}.lock") for kind in kinds)
    assert run.items() <= image.items() <= dev.items()
    assert build.items() <= dev.items()


def test_the_wheel_holds_the_agent_and_nothing_else(tmp_path: Path) -> None:
    """The example configuration is package data; tests and scripts stay at home."""
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *build, "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert "agent/config.example.yaml" in files
    assert "agent/core/policy.py" in files
    assert {name.partition("/")[0] for name in files} == {
        "agent",
        f"feedback_agent-{agent.__version__}.dist-info",
    }


def test_only_the_demo_needs_the_extra() -> None:
    """Without the ``demo`` extra everything but the demo works."""
    sources = {path.relative_to(ROOT / "agent") for path in (ROOT / "agent").rglob("*.py")}
    agents_own = {source for source in sources if source.parts[0] not in ("demo", "demo.py")}
    assert {s for s in agents_own if "confluent_kafka" in imported_by(ROOT / "agent" / s)} == set()


def test_the_image_carries_what_any_key_of_the_configuration_asks_for() -> None:
    """A key that needs a package that is not there would end the agent on each node at once."""
    extras = PROJECT["optional-dependencies"]
    of_keys = [
        requirement for name in extras.keys() - {"demo", "dev"} for requirement in extras[name]
    ]
    wanted = {distribution(requirement) for requirement in [*PROJECT["dependencies"], *of_keys]}
    assert wanted <= pins("requirements-image.lock").keys()
    assert "-r requirements-image.lock" in (ROOT / "Dockerfile").read_text()
