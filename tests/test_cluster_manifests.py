"""What a cluster is given is valid, hardened, and fits the agent and its documents."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import config
from tests import rendered
from tests.rendered import Manifest, of_kind, one, overlay

WITH_AGENTS = ("base", "overlays/dev", "overlays/production", "overlays/sidecar", "overlays/canary")
ON_NODES = tuple(name for name in WITH_AGENTS if name != "overlays/sidecar")
STARTED_WITHIN_S = 60
"""What a large store may take to open on a slow disk."""
NOT_KUBERNETES = {"PodMonitor", "PrometheusRule"}
"""Of the Prometheus Operator: no schema of theirs is at hand."""


# ---- valid


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each rendering, the chart's with all options on too."""
    work = tmp_path_factory.mktemp("rendered")
    every_option = (
        "--set=everyNode=true,deleteShippedAfterS=60,podMonitor.enabled=true,track=canary",
    )
    renderings = {name.replace("/", "-"): overlay(name) for name in rendered.DIRECTORIES}
    renderings["chart"], renderings["chart-all"] = rendered.chart(), rendered.chart(*every_option)
    names = sorted(path.name for path in (rendered.K8S / "components").iterdir())
    for name in names:
        where = tmp_path_factory.mktemp(name)
        renderings[f"component-{name}"] = rendered.component(where, name)
    for name, manifests in renderings.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump_all(manifests))
    return work


def test_every_manifest_is_one_that_kubernetes_knows(files: Path) -> None:
    """--strict: a cluster drops a misspelt key without a word, and the hardening with it."""
    done = rendered.run(
        "kubernetes-validate", "--strict", "-k", rendered.KUBERNETES, *sorted(files.iterdir())
    )
    said = (done.stdout + done.stderr).splitlines()
    wrong = [line for line in said if " passed for resource " not in line]
    unknown = [
        line for line in wrong if re.search(rf"kind ({'|'.join(NOT_KUBERNETES)}) with", line)
    ]
    assert (0, unknown) == (done.returncode, wrong)
    assert len(said) > 50


@pytest.fixture(scope="module")
def checked(files: Path) -> Manifest:
    """What checkov says of all. It asks nobody: what its rules are is in its package."""
    options = ("--skip-download", "--framework=kubernetes", "--output=json")
    found: Manifest = json.loads(rendered.output("checkov", *options, "-d", files))["results"]
    return found


@pytest.mark.long
def test_checkov_finds_nothing_that_has_no_reason(checked: Manifest) -> None:
    assert ([], []) == (checked["failed_checks"], checked["parsing_errors"])
    reasons = {skip["check_result"]["suppress_comment"] for skip in checked["skipped_checks"]}
    assert reasons
    assert [] == [reason for reason in reasons if len(reason.split()) < 2]


@pytest.mark.long
def test_every_skip_is_of_a_check_that_there_is(files: Path, checked: Manifest) -> None:
    """One that skips nothing would hide what fails tomorrow."""
    skipped = {(skip["check_id"], skip["resource"]) for skip in checked["skipped_checks"]}
    for path in files.iterdir():
        for metadata in (m["metadata"] for m in yaml.safe_load_all(path.read_text())):
            for key, value in metadata.get("annotations", {}).items():
                if key.startswith("checkov.io/skip"):
                    check = value.partition("=")[0]
                    found = [of for done, of in skipped if done == check]
                    assert [of for of in found if metadata["name"] in of], (path.name, value)


@pytest.mark.long
def test_the_dockerfile_passes_its_linters() -> None:
    dockerfile = rendered.ROOT / "Dockerfile"
    assert not rendered.output("hadolint", dockerfile)
    rendered.output("checkov", "--skip-download", "--framework=dockerfile", "-f", dockerfile)


def test_the_chart_passes_its_linter() -> None:
    rendered.output("helm", "lint", "--strict", rendered.CHART)


# ---- hardened

Rules = dict[str, Callable[[Manifest], object]]

POD: Rules = {
    "no user of the node's": lambda pod: pod["securityContext"]["runAsNonRoot"] is True,
    "the system calls of RuntimeDefault": lambda pod: (
        pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    ),
    "no token": lambda pod: pod["automountServiceAccountToken"] is False,
    "no addresses of services": lambda pod: pod["enableServiceLinks"] is False,
    "no namespace of the node's": lambda pod: (
        not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"}
    ),
}
CONTAINER: Rules = {
    "no capability": lambda c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "no way to more": lambda c: c["securityContext"]["allowPrivilegeEscalation"] is False,
    "not privileged": lambda c: not c["securityContext"].get("privileged"),
    "memory has an end": lambda c: "memory" in c["resources"]["limits"],
    "no limit of CPU": lambda c: "cpu" not in c["resources"]["limits"],
    "a version": lambda c: re.search(r":\d+\.\d+\.\d+$", c["image"]),
}
READ_ONLY: Rules = {
    "a root that is read": lambda c: c["securityContext"]["readOnlyRootFilesystem"] is True
}


@pytest.mark.parametrize("rule", POD)
@pytest.mark.parametrize("name", ["topics", "apps", *WITH_AGENTS])
def test_pods_are_hardened(name: str, rule: str) -> None:
    pods = [rendered.pod(workload) for workload in rendered.workloads(overlay(name))]
    assert pods
    assert [] == [pod for pod in pods if not POD[rule](pod)]


@pytest.mark.parametrize("rule", [*CONTAINER, *READ_ONLY])
@pytest.mark.parametrize("name", ["topics", "apps", *WITH_AGENTS])
def test_containers_are_hardened(name: str, rule: str) -> None:
    found = [
        container
        for workload in rendered.workloads(overlay(name))
        for container in rendered.containers(rendered.pod(workload))
        # the broker of one's own cluster writes beside its programs
        if rule not in READ_ONLY or workload["metadata"]["name"] != "kafka"
    ]
    assert found
    holds = {**CONTAINER, **READ_ONLY}[rule]
    assert [] == [container["name"] for container in found if not holds(container)]


def test_node_setup_is_root_with_two_capabilities_for_a_moment() -> None:
    """What goes on as its pod afterwards has none."""
    pod = rendered.pod(one(overlay("node-setup"), "DaemonSet"))
    (setting_up,), (waiting,) = pod["initContainers"], pod["containers"]
    user = setting_up["securityContext"]
    # a group that is not the caller's would take the setgid bit away
    assert (0, 10001) == (user["runAsUser"], user["runAsGroup"])
    assert {"drop": ["ALL"], "add": ["CHOWN", "FOWNER"]} == user["capabilities"]
    assert [] == [rule for rule, holds in POD.items() if "user" not in rule and not holds(pod)]
    rules = {**CONTAINER, **READ_ONLY}
    assert ["no capability"] == [rule for rule, holds in rules.items() if not holds(setting_up)]
    assert [] == [rule for rule, holds in rules.items() if not holds(waiting)]
    assert waiting["securityContext"]["runAsNonRoot"] is True
    assert "volumeMounts" not in waiting


@pytest.mark.parametrize("name", WITH_AGENTS)
def test_the_agent_has_a_user_of_its_own_and_what_it_needs(name: str) -> None:
    for pod, agent in rendered.agents(overlay(name)):
        user = {**pod["securityContext"], **agent["securityContext"]}
        assert (10001, 10001) == (user["runAsUser"], user["runAsGroup"])
        assert {"cpu": "50m", "memory": "96Mi"} == agent["resources"]["requests"]
        assert {"memory": "256Mi"} == agent["resources"]["limits"]


@pytest.mark.parametrize("name", WITH_AGENTS)
def test_the_agent_writes_nowhere_but_its_state_and_tmp(name: str) -> None:
    for _, agent in rendered.agents(overlay(name)):
        writable = {m["mountPath"] for m in agent["volumeMounts"] if not m.get("readOnly")}
        assert {"/var/lib/feedback-agent", "/tmp"} == writable  # noqa: S108  its own


@pytest.mark.parametrize("name", ON_NODES)
def test_the_agent_sees_two_directories_of_its_node_that_somebody_made(name: str) -> None:
    """What the kubelet makes (DirectoryOrCreate) belongs to root: the agent could not read it."""
    ((pod, _),) = rendered.agents(overlay(name))
    paths = {
        v["hostPath"]["path"]: v["hostPath"]["type"] for v in pod["volumes"] if "hostPath" in v
    }
    expected = {"/var/lib/feedback": "Directory", "/var/lib/feedback-agent": "Directory"}
    assert expected == paths


@pytest.mark.parametrize("name", rendered.DIRECTORIES)
def test_nobody_may_ask_the_api_server_and_no_secret_is_in_a_manifest(name: str) -> None:
    kinds = {manifest["kind"] for manifest in overlay(name)}
    assert set() == {kind for kind in kinds if "Role" in kind or kind == "Secret"}
    for account in of_kind(overlay(name), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_secrets_are_referred_to_and_readable_by_the_agent_alone() -> None:
    for name, optional in (("base", True), ("overlays/production", False)):
        ((pod, agent),) = rendered.agents(overlay(name))
        (secret,) = (v["secret"] for v in pod["volumes"] if v["name"] == "secrets")
        assert {
            "secretName": "feedback-agent",
            "optional": optional,
            "defaultMode": 0o440,
        } == secret
        assert 10001 == pod["securityContext"]["fsGroup"]
        (mounted,) = (m for m in agent["volumeMounts"] if m["name"] == "secrets")
        assert mounted["readOnly"] is True


@pytest.mark.parametrize("name", ON_NODES)
def test_namespaces_of_host_paths_are_admitted_and_warned_of(name: str) -> None:
    """baseline refuses a hostPath: the apply succeeds, and no pod comes up."""
    prefix = "pod-security.kubernetes.io/"
    for namespace in of_kind(overlay(name), "Namespace"):
        labels = namespace["metadata"]["labels"]
        if namespace["metadata"]["name"] == "feedback-agent":
            assert ("privileged", "restricted") == (
                labels[prefix + "enforce"],
                labels[prefix + "warn"],
            )
        else:
            assert "restricted" == labels[prefix + "enforce"]


def test_what_has_no_host_path_is_in_a_restricted_namespace() -> None:
    namespace = one(overlay("overlays/sidecar"), "Namespace")
    assert "restricted" == namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    (pod, _), *_ = rendered.agents(overlay("overlays/sidecar"))
    assert [] == [volume for volume in pod["volumes"] if "hostPath" in volume]


# ---- fits the agent


def loaded(manifests: list[Manifest], work: Path) -> tuple[Manifest, Manifest, config.Config]:
    ((pod, agent),) = rendered.agents(manifests)
    (work / "config.yaml").write_text(rendered.agents_config(manifests, pod))
    environment = dict(rendered.literal_environment(agent))
    return pod, agent, config.load(work / "config.yaml", {**environment, "NODE_NAME": "node-1"})


@pytest.mark.parametrize("name", [*WITH_AGENTS, "chart"])
def test_the_agent_takes_its_configuration(name: str, tmp_path: Path) -> None:
    """Exit code 78 on each node at once would be the other way to learn of a mistake."""
    manifests = rendered.chart() if name == "chart" else overlay(name)
    pod, agent, read = loaded(manifests, tmp_path)
    mounts = {mount["mountPath"] for mount in agent["volumeMounts"]}
    assert {str(read.source.root), str(read.agent.state_dir)} <= mounts
    assert pod["terminationGracePeriodSeconds"] >= read.agent.drain_s + 5
    assert ["0.0.0.0"] == [read.http.host]  # noqa: S104  the pod's address is what probes ask
    assert [read.http.port] == [port["containerPort"] for port in agent["ports"]]


@pytest.mark.parametrize("name", [*WITH_AGENTS])
def test_a_network_policy_lets_out_what_the_configuration_names(name: str, tmp_path: Path) -> None:
    _, _, read = loaded(overlay(name), tmp_path)
    policy = of_kind(overlay(name), "NetworkPolicy")[0]["spec"]
    assert ["Ingress", "Egress"] == policy["policyTypes"]
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    brokers = {int(server.rpartition(":")[2]) for server in read.kafka.bootstrap_servers}
    assert {53, 9092, 9093} | brokers <= out <= {53, 9092, 9093, 4317, 4318}
    (scrape,) = policy["ingress"]
    assert [read.http.port] == [port["port"] for port in scrape["ports"]]
    assert scrape["from"]


def test_production_is_what_it_says(tmp_path: Path) -> None:
    """TLS, SASL, an audit topic, alerts, sticky partitions, a longer window."""
    manifests = overlay("overlays/production")
    _, _, read = loaded(manifests, tmp_path)
    _, _, base = loaded(overlay("base"), tmp_path)
    assert read.kafka.tls.enabled
    assert read.kafka.sasl.mechanism == "SCRAM-SHA-512"
    assert read.audit.topic == "feedback-agent-audit"
    assert read.kafka.partitioner == "sticky"
    assert read.batch.age_min_s > base.batch.age_min_s
    assert {"PodMonitor", "PrometheusRule"} <= {manifest["kind"] for manifest in manifests}


@pytest.mark.parametrize("name", ON_NODES)
def test_a_rollout_takes_a_tenth_at_once_and_never_two_agents_on_a_node(name: str) -> None:
    spec = one(overlay(name), "DaemonSet")["spec"]
    rolling = {"maxUnavailable": "10%", "maxSurge": 0}
    assert {"type": "RollingUpdate", "rollingUpdate": rolling} == spec["updateStrategy"]
    assert spec["minReadySeconds"] >= 10
    pod = spec["template"]["spec"]
    assert "feedback-agent" == pod["priorityClassName"]
    node = {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}
    ((_, agent),) = rendered.agents(overlay(name))
    (told,) = (e for e in agent["env"] if e["name"] == "FEEDBACK_AGENT_AGENT__NODE")
    assert node["fieldRef"].items() >= told["valueFrom"]["fieldRef"].items()


@pytest.mark.parametrize("name", WITH_AGENTS)
def test_a_probe_asks_what_its_answer_is_for(name: str) -> None:
    """A restart helps who hangs, and nobody who waits for Kafka: that is what /readyz is about. In
    an app's pod that says nothing about the app."""
    asked = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    if name == "overlays/sidecar":
        asked.pop("readinessProbe")
    for _, agent in rendered.agents(overlay(name)):
        probes = {key: probe for key, probe in agent.items() if key.endswith("Probe")}
        assert asked == {key: probe["httpGet"]["path"] for key, probe in probes.items()}
        assert {"http"} == {probe["httpGet"]["port"] for probe in probes.values()}
        starts = probes["startupProbe"]
        assert starts["periodSeconds"] * starts["failureThreshold"] >= STARTED_WITHIN_S


def test_tolerations_are_opt_in() -> None:
    ((base, _),) = rendered.agents(overlay("base"))
    ((dev, _),) = rendered.agents(overlay("overlays/dev"))
    assert "tolerations" not in base
    assert [{"operator": "Exists"}] == dev["tolerations"]


def test_another_configuration_is_a_rollout(tmp_path: Path) -> None:
    """The agent reads it at its start: one that changes nothing would seem to be in force."""
    before = one(overlay("base"), "DaemonSet")["spec"]["template"]
    path = rendered.copied(tmp_path) / "base/config.yaml"
    path.write_text(path.read_text() + "spool: {enabled: false}\n")
    assert before != one(rendered.kustomized(path.parent), "DaemonSet")["spec"]["template"]
    changed = rendered.chart("--set=config.spool.enabled=false")
    assert (
        one(rendered.chart(), "DaemonSet")["spec"]["template"]
        != one(changed, "DaemonSet")["spec"]["template"]
    )


def test_a_sidecar_ends_after_the_app(tmp_path: Path) -> None:
    """An init container that is always restarted starts before the app, and stops after it."""
    pod, agent, read = loaded(overlay("overlays/sidecar"), tmp_path)
    assert "Always" == agent["restartPolicy"]
    assert agent in pod["initContainers"]
    assert pod["terminationGracePeriodSeconds"] >= read.agent.drain_s + 30
    assert "checkout" == read.source.client
    (app,) = pod["containers"]
    shared = {m["name"] for m in agent["volumeMounts"]} & {m["name"] for m in app["volumeMounts"]}
    assert {"feedback"} == shared


def test_the_canary_has_nodes_of_its_own_and_shares_the_rest() -> None:
    """Two agents on one node would fight for its state directory; the second one exits with 75."""
    main, canary = (one(overlay(f"overlays/{n}"), "DaemonSet") for n in ("production", "canary"))
    assert main["spec"]["selector"] != canary["spec"]["selector"]
    instance = "app.kubernetes.io/instance"
    for daemonset, track, operator in ((main, "main", "NotIn"), (canary, "canary", "In")):
        assert track == daemonset["spec"]["selector"]["matchLabels"][instance]
        assert track == daemonset["spec"]["template"]["metadata"]["labels"][instance]
        affinity = rendered.pod(daemonset)["affinity"]["nodeAffinity"]
        ((first, *_),) = (
            term["matchExpressions"]
            for term in affinity["requiredDuringSchedulingIgnoredDuringExecution"][
                "nodeSelectorTerms"
            ]
        )
        assert {"key": "feedback-agent/track", "operator": operator, "values": ["canary"]} == first
    names = [
        {(m["kind"], m["metadata"]["name"]) for m in overlay(f"overlays/{n}")}
        for n in ("production", "canary")
    ]
    assert set() == names[0] & names[1]
    assert {"DaemonSet", "ConfigMap", "NetworkPolicy"} == {kind for kind, _ in names[1]}
    for wanted in ("serviceAccountName", "priorityClassName"):
        assert "feedback-agent" == rendered.pod(canary)[wanted]


# ---- components


def test_deletion_is_the_one_reason_to_write_below_the_root(tmp_path: Path) -> None:
    manifests = rendered.component(tmp_path, "delete-shipped")
    _, agent, read = loaded(manifests, tmp_path)
    (feedback,) = (m for m in agent["volumeMounts"] if m["name"] == "feedback")
    assert not feedback.get("readOnly")
    assert read.source.delete_after_s == 86400


def test_who_may_read_any_file_may_do_nothing_else(tmp_path: Path) -> None:
    ((pod, agent),) = rendered.agents(rendered.component(tmp_path, "read-any"))
    assert (0, 0) == (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"])
    expected = {"drop": ["ALL"], "add": ["DAC_READ_SEARCH"]}
    assert expected == agent["securityContext"]["capabilities"]
    assert agent["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_rules_of_the_operator_are_the_alerts() -> None:
    directory = rendered.K8S / "observability"
    rule = yaml.safe_load((directory / "prometheusrule.yaml").read_text())
    assert yaml.safe_load((directory / "alerts.yaml").read_text()) == rule["spec"]


# ---- the chart


def bare(manifest: Manifest) -> Manifest:
    """Return ``manifest`` without what only says who made it, its configuration as a value."""
    text = json.dumps(manifest)
    text = re.sub(r'"feedback-agent-[a-z0-9]{10}"', '"feedback-agent"', text)  # kustomize's hash
    made: Manifest = json.loads(text)
    for where in (made, made.get("spec", {}).get("template", {})):
        metadata = where.get("metadata", {})
        for name in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            metadata.get("labels", {}).pop(name, None)
        metadata.get("annotations", {}).pop("checksum/config", None)
    if made["kind"] == "ConfigMap":
        made["data"] = {name: yaml.safe_load(value) for name, value in made["data"].items()}
    return made


def by_kind(manifests: list[Manifest]) -> dict[str, Any]:
    return {manifest["kind"]: bare(manifest) for manifest in manifests}


def test_the_chart_is_the_base() -> None:
    """Two ways to install are two that must be kept; this is who keeps them."""
    base = by_kind(overlay("base"))
    base.pop("Namespace")  # helm wants one that is there
    assert base == by_kind(rendered.chart())


def test_the_chart_is_scraped_as_the_base_is() -> None:
    """Or an alert would name the same agent by two names."""
    both = overlay("overlays/production"), rendered.chart("--set=podMonitor.enabled=true")
    of_base, of_chart = (one(manifests, "PodMonitor")["spec"] for manifests in both)
    track = of_chart["selector"]["matchLabels"].pop("app.kubernetes.io/instance")
    assert ("main", of_base) == (track, of_chart)


@pytest.mark.parametrize(
    ("option", "name"),
    [("deleteShippedAfterS=86400", "delete-shipped"), ("everyNode=true", "every-node")],
)
def test_an_option_of_the_chart_is_a_component(option: str, name: str, tmp_path: Path) -> None:
    chart = one(in_one_order(rendered.chart(f"--set={option}")), "DaemonSet")
    assert chart == one(in_one_order(rendered.component(tmp_path, name)), "DaemonSet")


def in_one_order(manifests: list[Manifest]) -> list[Manifest]:
    """Return them bare; a patch puts what it adds first, and false may stand there or not."""
    made = [bare(manifest) for manifest in manifests]
    for daemonset in of_kind(made, "DaemonSet"):
        (agent,) = rendered.pod(daemonset)["containers"]
        agent["env"].sort(key=lambda entry: entry["name"])
        agent["volumeMounts"].sort(key=lambda mount: str(mount["mountPath"]))
        for mount in agent["volumeMounts"]:
            if not mount.get("readOnly"):
                mount.pop("readOnly", None)
    return made


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("colour=red", "additional properties 'colour' not allowed"),
        ("image.digest=sha256:1", "does not match pattern"),
        ("maxUnavailable=0", "minimum"),
        ("config.agent.state_dir=/data", "/config/agent/state_dir"),
        ("terminationGracePeriodSeconds=29", "must be at least 30"),
        ("track=blue", "/track"),
    ],
)
def test_the_chart_refuses_values_that_cannot_work(option: str, said: str) -> None:
    done = rendered.run("helm", "template", "feedback-agent", rendered.CHART, f"--set={option}")
    assert done.returncode
    assert said in done.stderr


def test_the_chart_can_name_the_bytes_that_run() -> None:
    digest = "sha256:" + "0" * 64
    options = f"--set=image.repository=registry.example/feedback-agent,image.digest={digest}"
    ((_, agent),) = rendered.agents(rendered.chart(options))
    assert f"registry.example/feedback-agent@{digest}" == agent["image"]
