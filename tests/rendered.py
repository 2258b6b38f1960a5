"""Manifests as a cluster gets them: rendered by kustomize and helm, read by their own tools."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
CHART = ROOT / "k8s/chart"
DIRECTORIES = (
    "base",
    "node-setup",
    "topics",
    "apps",
    "overlays/dev",
    "overlays/dev/topics",
    "overlays/production",
    "overlays/sidecar",
    "overlays/canary",
)
KUBERNETES = "1.36"
Manifest = dict[str, Any]


@cache
def tools() -> Path:
    """Return where the programs are. Skips where they were not fetched."""
    script = ROOT / "scripts/cluster-tools"
    done = subprocess.run([script, "--found"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("kubectl, helm and checkov are missing: scripts/cluster-tools fetches them")
    return Path(done.stdout.strip())


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tools() / program, *arguments], capture_output=True, text=True, check=False
    )


def output(program: str, *arguments: str | Path) -> str:
    done = run(program, *arguments)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def kustomized(directory: Path) -> list[Manifest]:
    return [m for m in yaml.safe_load_all(output("kubectl", "kustomize", directory)) if m]


@cache
def overlay(name: str) -> list[Manifest]:
    """Return what ``kubectl apply -k k8s/<name>`` sends. Not to be changed."""
    return kustomized(K8S / name)


def component(work: Path, *names: str) -> list[Manifest]:
    """Return the base with these components; ``work`` is left with a copy of ``k8s/``."""
    copied(work)
    chosen = {"resources": ["../base"], "components": [f"../components/{name}" for name in names]}
    (work / "k8s/chosen").mkdir()
    (work / "k8s/chosen/kustomization.yaml").write_text(json.dumps(chosen))
    return kustomized(work / "k8s/chosen")


def copied(work: Path) -> Path:
    subprocess.run(["cp", "-r", K8S, work / "k8s"], check=True)
    return work / "k8s"


def chart(*options: str) -> list[Manifest]:
    """Return what helm installs as ``feedback-agent`` in the namespace of that name."""
    name = "feedback-agent"
    text = output("helm", "template", name, CHART, "--namespace", name, *options)
    return [m for m in yaml.safe_load_all(text) if m]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] == kind]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = of_kind(manifests, kind)
    return found


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    return [m for kind in ("DaemonSet", "Deployment", "Job") for m in of_kind(manifests, kind)]


def pod(workload: Manifest) -> Manifest:
    found: Manifest = workload["spec"]["template"]["spec"]
    return found


def containers(of: Manifest) -> list[Manifest]:
    """Return all containers of a pod, those that run before others too."""
    return [*of.get("initContainers", []), *of["containers"]]


def agents(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each pod that has an agent, and its container of it."""
    for workload in workloads(manifests):
        for container in containers(pod(workload)):
            if container["name"] == "feedback-agent":
                yield pod(workload), container


def literal_environment(container: Manifest) -> Mapping[str, str]:
    return {e["name"]: e["value"] for e in container["env"] if "value" in e}


def agents_config(manifests: list[Manifest], of: Manifest) -> str:
    """Return the config.yaml that a pod has."""
    (name,) = (v["configMap"]["name"] for v in of["volumes"] if v["name"] == "config")
    (found,) = (m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == name)
    text: str = found["data"]["config.yaml"]
    return text
