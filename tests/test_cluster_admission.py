"""What a pod may mount of a node: one directory, its own. Each refusal is a way out."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import rendered
from tests.rendered import Manifest, of_kind, one, overlay

EXPRESSIONS = Path(__file__).parent / "cel_expressions.py"
HOST_PATH = "/var/lib/feedback"
Change = Callable[[Manifest], object]


def app() -> Manifest:
    """Return the pod of the example, as it is admitted."""
    return copy.deepcopy(rendered.pod(one(overlay("apps"), "Deployment")))


def judged(*specs: Manifest, operation: str = "CREATE", sub: str = "") -> list[list[str] | None]:
    policy = one(overlay("apps"), "ValidatingAdmissionPolicy")["spec"]
    request = {"operation": operation, "subResource": sub}
    requests = [{"object": {"spec": spec}, "request": request} for spec in specs]
    done = subprocess.run(
        [rendered.tools() / "python", EXPRESSIONS],
        input=json.dumps({"policy": policy, "requests": requests}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    found: list[list[str] | None] = json.loads(done.stdout)
    return found


def volume(spec: Manifest) -> Any:
    return next(v for v in spec["volumes"] if "hostPath" in v)["hostPath"]


def first(spec: Manifest) -> Any:
    return spec["containers"][0]


def mount(spec: Manifest) -> Any:
    return next(m for m in first(spec)["volumeMounts"] if m["name"] == "feedback")


def also(spec: Manifest, kind: str, **more: object) -> None:
    """Add a container that mounts the root of all clients."""
    mounts = [{"name": "feedback", "mountPath": HOST_PATH}]
    spec.setdefault(kind, []).append({"name": "other", "volumeMounts": mounts, **more})


def host_path(path: str, **more: object) -> Change:
    return lambda spec: volume(spec).update(path=path, **more)


def second_volume(path: str) -> Change:
    return lambda spec: spec["volumes"].append({"name": "other", "hostPath": {"path": path}})


def expression(text: str) -> Change:
    return lambda spec: mount(spec).update(subPathExpr=text)


def environment(*entries: Manifest) -> Change:
    return lambda spec: first(spec).update(env=list(entries))


def security(**more: object) -> Change:
    return lambda spec: first(spec)["securityContext"].update(more)


NAMESPACE = {
    "name": "POD_NAMESPACE",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
}
NAME = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
LABEL = {"fieldRef": {"fieldPath": "metadata.labels['app']"}}

REFUSED: dict[str, Change] = {
    "the root of the node": host_path("/"),
    "a parent": host_path("/var/lib"),
    "the state directory": host_path("/var/lib/feedback-agent"),
    "a directory in it": host_path("/var/lib/feedback/other"),
    "the same by another name": host_path("/var/lib/feedback/"),
    "the same through a process": host_path("/proc/1/root/var/lib/feedback"),
    "one that the kubelet would make": host_path(HOST_PATH, type="DirectoryOrCreate"),
    "one of any type": lambda spec: volume(spec).pop("type"),
    "a second hostPath": second_volume("/var/lib/feedback-agent"),
    "a second hostPath that has nothing to do with it": second_volume("/var/log"),
    "no path below the root": lambda spec: mount(spec).pop("subPathExpr"),
    "subPath in its place": lambda spec: (
        mount(spec).pop("subPathExpr"),
        mount(spec).update(subPath="shop/checkout"),
    ),
    "another's directory": expression("shop/other"),
    "a way up": expression("$(POD_NAMESPACE)/$(POD_NAME)/.."),
    "another variable": expression("$(POD_NAMESPACE)/$(OTHER)"),
    "a root for all of a namespace": expression("$(POD_NAMESPACE)"),
    "a second mount of the root": lambda spec: first(spec)["volumeMounts"].append(
        {"name": "feedback", "mountPath": "/all"}
    ),
    "a literal name": environment(NAMESPACE, {"name": "POD_NAME", "value": "other"}),
    "a literal namespace": environment({"name": "POD_NAMESPACE", "value": "bank"}, NAME),
    "a literal value behind the reference": environment(
        NAMESPACE, NAME, {"name": "POD_NAME", "value": "other"}
    ),
    "a label, which the pod's maker chooses": environment(
        NAMESPACE, {"name": "POD_NAME", "valueFrom": LABEL}
    ),
    "a name from a ConfigMap": environment(
        NAMESPACE,
        {"name": "POD_NAME", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}},
    ),
    "no environment": lambda spec: first(spec).pop("env"),
    "half of an environment": environment(NAME),
    "an init container with the root": lambda spec: also(spec, "initContainers"),
    "an ephemeral container with the root": lambda spec: also(spec, "ephemeralContainers"),
    "mounts that spread": lambda spec: mount(spec).update(mountPropagation="Bidirectional"),
    "processes of the node": lambda spec: spec.update(hostPID=True),
    "the network of the node": lambda spec: spec.update(hostNetwork=True),
    "memory of the node": lambda spec: spec.update(hostIPC=True),
    "a privileged container": security(privileged=True),
    "a capability that opens files by number": security(
        capabilities={"drop": ["ALL"], "add": ["DAC_READ_SEARCH"]}
    ),
    "an unmasked /proc": security(procMount="Unmasked"),
    "a privileged init container": lambda spec: spec.update(
        initContainers=[{"name": "x", "securityContext": {"privileged": True}}]
    ),
    "a privileged ephemeral container": lambda spec: spec.update(
        ephemeralContainers=[{"name": "x", "securityContext": {"privileged": True}}]
    ),
    "root": lambda spec: spec["securityContext"].pop("runAsNonRoot"),
    "root in one container": security(runAsNonRoot=False),
}
ADMITTED: dict[str, Change] = {
    "as it is": lambda spec: None,
    "with more environment": lambda spec: first(spec)["env"].append({"name": "X", "value": "y"}),
    "with other volumes": lambda spec: spec["volumes"].append({"name": "e", "emptyDir": {}}),
    "with a container without mounts": lambda spec: spec["containers"].append({"name": "other"}),
    "with an init container that writes to its own": lambda spec: spec.update(
        initContainers=[copy.deepcopy(first(spec))]
    ),
    "with an ephemeral container without mounts": lambda spec: spec.update(
        ephemeralContainers=[{"name": "debug"}]
    ),
}


def changed(change: Change) -> Manifest:
    spec = app()
    change(spec)
    return spec


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[str] | None]:
    names = [*REFUSED, *ADMITTED]
    specs = [changed(({**REFUSED, **ADMITTED})[name]) for name in names]
    return dict(zip(names, judged(*specs), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, verdicts: dict[str, list[str] | None]) -> None:
    """By what an expression says, not by one that could not be evaluated."""
    found = verdicts[name]
    assert found
    assert [] == [said for said in found if said.startswith("error")]


@pytest.mark.parametrize("name", ADMITTED)
def test_admitted(name: str, verdicts: dict[str, list[str] | None]) -> None:
    assert [] == verdicts[name]


def test_each_rule_alone_refuses_something(verdicts: dict[str, list[str] | None]) -> None:
    """One that never decides might as well not be there."""
    alone = {found[0] for found in verdicts.values() if found and len(found) == 1}
    rules = one(overlay("apps"), "ValidatingAdmissionPolicy")["spec"]["validations"]
    assert {rule["message"] for rule in rules} == alone


def test_pods_without_a_host_path_are_no_business_of_it() -> None:
    assert [None] == judged({"containers": [{"name": "x"}], "volumes": [{"name": "e"}]})
    assert [None] == judged({"containers": [{"name": "x"}]})


def test_a_pod_that_runs_can_be_changed_and_get_no_container_with_the_root() -> None:
    bad = changed(REFUSED["an ephemeral container with the root"])
    (found,) = judged(bad, operation="UPDATE", sub="ephemeralcontainers")
    assert found
    assert [None] == judged(bad, operation="UPDATE")


def test_it_fails_closed_and_is_bound() -> None:
    """To every namespace that nobody freed of it by name or label."""
    policy = one(overlay("apps"), "ValidatingAdmissionPolicy")
    assert "Fail" == policy["spec"]["failurePolicy"]
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    assert {"pods", "pods/ephemeralcontainers"} == set(rule["resources"])
    assert {"CREATE", "UPDATE"} == set(rule["operations"])
    binding = one(overlay("apps"), "ValidatingAdmissionPolicyBinding")["spec"]
    assert policy["metadata"]["name"] == binding["policyName"]
    assert "Deny" in binding["validationActions"]
    free = {e["key"]: e for e in binding["matchResources"]["namespaceSelector"]["matchExpressions"]}
    assert {"NotIn"} == {e["operator"] for e in free.values()}
    (namespace,) = of_kind(overlay("base"), "Namespace")
    assert namespace["metadata"]["name"] in free["kubernetes.io/metadata.name"]["values"]


def test_the_example_has_the_agents_group_and_not_its_user() -> None:
    security = app()["securityContext"]
    assert 10001 in security["supplementalGroups"]
    assert 10001 != security["runAsUser"]
