"""The image, built and run without an engine: buildah, podman and runc, as root."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("buildah", "mmdebstrap", "podman", "runc")
BUILT_WITHIN_S = 900.0
DONE_WITHIN_S = 60.0
HARDENED = (
    "--network=host",
    "--read-only",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--memory=256m",
    "--no-healthcheck",  # podman asks systemd for it
    "--tmpfs=/tmp:size=64m",
)
"""What the DaemonSet asks of the kubelet, in podman's words."""


def missing() -> list[str]:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


class Engine:
    """Images and containers in a storage of its own below ``home``, which may be kept."""

    def __init__(self, home: Path) -> None:
        self._storage, self._containers = home / "storage.conf", home / "containers.conf"
        home.mkdir(parents=True, exist_ok=True)
        kind = subprocess.run(
            ["stat", "-f", "-c", "%T", home], capture_output=True, text=True, check=True
        )
        driver = "vfs" if kind.stdout.strip() == "overlayfs" else "overlay"
        places = f'graphroot = "{home}/root"\nrunroot = "{home}/run"\n'
        written = {
            self._storage: f'[storage]\ndriver = "{driver}"\n{places}',
            # this machine may have no systemd, no bridge, and no right to raise limits
            self._containers: '[containers]\ndefault_ulimits = []\nnetns = "host"\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n',
        }
        self._turn = home / "turn"
        with self._alone():  # another worker may be reading or writing them
            for path, text in written.items():
                if not path.exists() or path.read_text() != text:
                    path.write_text(text)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other workers out."""
        with self._turn.open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield

    def run(self, *command: str | Path, within_s: float = DONE_WITHIN_S) -> str:
        """Return what ``command`` printed. Raises ``AssertionError`` with the rest."""
        done = subprocess.run(
            command,
            env={
                **os.environ,
                "CONTAINERS_CONF": str(self._containers),
                "CONTAINERS_STORAGE_CONF": str(self._storage),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
        )
        assert 0 == done.returncode, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def build(self) -> str:
        """Build the image on a stand-in for python:3.12-slim. Return what the script said last."""
        script = ROOT / "scripts/image"
        with self._alone():  # what one worker built, the others find done
            return self.run(script, "--stand-in", within_s=BUILT_WITHIN_S).splitlines()[-1]

    def once(self, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Run ``command`` in a container to its end; return what it printed."""
        program, *arguments = command
        entry = f"--entrypoint={program}"
        return self.run("podman", "run", "--rm", *HARDENED, *options, entry, image, *arguments)

    def config(self, image: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("buildah", "inspect", "--type=image", image))
        return found["Docker"]["config"]  # type: ignore[no-any-return]  # JSON


class Container:
    """One that runs in the background, life after life under one name."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        image: str,
        *command: str,
        options: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._engine, self._name = engine, name
        given = [f"--env={key}={value}" for key, value in (environment or {}).items()]
        self._run = ["podman", "run", "--detach", f"--name={name}", *HARDENED, *options, *given]
        self._run += [image, *command]

    def start(self) -> None:
        self._engine.run(*self._run)

    def kill(self) -> None:
        """SIGKILL, and what was the container's is gone; its volumes are not."""
        self._engine.run("podman", "kill", "--signal=KILL", self._name)
        self._engine.run("podman", "rm", "--force", self._name)

    def ended(self, within_s: float = DONE_WITHIN_S) -> int:
        """Wait for its end. Return the exit code."""
        return int(self._engine.run("podman", "wait", self._name, within_s=within_s))

    def stop(self, within_s: float = DONE_WITHIN_S) -> int:
        """Send what the image names as STOPSIGNAL. Return the exit code."""
        self._engine.run("podman", "stop", f"--time={within_s:.0f}", self._name, within_s=within_s)
        return self.ended()

    def remove(self) -> None:
        self._engine.run("podman", "rm", "--force", "--ignore", self._name)

    def logs(self) -> str:
        return self._engine.run("podman", "logs", self._name)

    def execute(self, *command: str) -> str:
        return self._engine.run("podman", "exec", self._name, *command)


def metric(port: int, name: str) -> float | None:
    """Return ``feedback_agent_<name>`` or a name as it is, summed; None where nobody answers."""
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except OSError:
        return None
    names = {name, f"feedback_agent_{name}"}
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return sum(float(value) for series, _, value in lines if series.partition("{")[0] in names)


def await_metric(port: int, name: str, above: float, within_s: float) -> float:
    """Wait until the metric is above; return how long that took, in seconds."""
    began_s = time.monotonic()
    while (found := metric(port, name)) is None or found <= above:
        assert time.monotonic() < began_s + within_s, f"{name}: {found}, not above {above}"
        time.sleep(0.02)
    return time.monotonic() - began_s


def await_settled(port: int, within_s: float) -> None:
    """Wait until nothing is behind, neither in files nor in the spool: all of it is in Kafka."""
    deadline_s = time.monotonic() + within_s
    left = ("lag_bytes", "spool_records", "in_flight_events")
    while (found := [metric(port, name) for name in left]) != [0.0] * len(left):
        assert time.monotonic() < deadline_s, dict(zip(left, found, strict=True))
        time.sleep(0.1)


@pytest.fixture(scope="session")
def engine() -> Engine:
    if os.geteuid() != 0:
        pytest.skip("building and running the image needs root here")
    if lacking := missing():
        pytest.skip(f"{' and '.join(lacking)} missing: scripts/system-packages installs them")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Engine(cache / "feedback-agent/containers")
