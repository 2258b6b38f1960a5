"""What a node is set up with: who may read and write what, held by the kernel. Needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.writer import FeedbackWriter

SCRIPT = Path(__file__).parent.parent / "k8s/node-setup/node-setup.sh"
AGENT, APP, OTHER = 10001, 10002, 10003

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="making directories for others needs root"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing"),
]


class Node:
    def __init__(self, work: Path) -> None:
        self.feedback, self.state = work / "feedback", work / "state"

    def set_up(self, **more: str) -> None:
        """Run it with the rights that its DaemonSet has, and no others."""
        rights = ["--regid=10001", "--clear-groups", "--bounding-set=-all,+chown,+fowner"]
        directories = {"FEEDBACK_DIR": str(self.feedback), "STATE_DIR": str(self.state)}
        command = ["setpriv", *rights, "--inh-caps=-all", "sh", str(SCRIPT)]
        subprocess.run(command, env={**os.environ, **directories, **more}, check=True)

    def directory(self, namespace: str, pod: str) -> Path:
        """Make a pod's as the kubelet does for ``subPathExpr``: with the mode of the volume."""
        made = self.feedback / namespace / pod
        for path in (made.parent, made):
            path.mkdir(exist_ok=True)
            path.chmod(self.feedback.stat().st_mode & 0o7777)
        return made


def as_user(uid: int, *command: str | Path, groups: str = "--clear-groups") -> bool:
    """Return whether ``command`` succeeds as that user without any capability."""
    rights = [f"--reuid={uid}", f"--regid={uid}", groups, "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(["setpriv", *rights, *command], capture_output=True, check=False)
    return done.returncode == 0


def owner(path: Path) -> tuple[int, int, str]:
    found = path.stat()
    return found.st_uid, found.st_gid, oct(found.st_mode & 0o7777)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    # the parents of a temporary directory are root's alone
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    node = Node(tmp_path)
    node.feedback.mkdir()  # as the kubelet does (DirectoryOrCreate)
    node.state.mkdir()
    node.set_up()
    yield node
    shutil.rmtree(node.feedback)


def test_the_directories_are_the_agents_and_its_groups(node: Node) -> None:
    """Without the setgid bit what apps write would have their own group."""
    assert (0, AGENT, "0o2770") == owner(node.feedback)
    assert (AGENT, AGENT, "0o700") == owner(node.state)


def test_it_changes_nothing_the_second_time(node: Node) -> None:
    """An agent may be at work: not for a moment may its directory be another's."""
    (node.state / "checkpoints.db").write_text("kept")
    before = [path.stat() for path in (node.feedback, node.state, node.state / "checkpoints.db")]
    node.set_up()
    after = [path.stat() for path in (node.feedback, node.state, node.state / "checkpoints.db")]
    assert [owner(node.feedback), owner(node.state)] == [
        (0, AGENT, "0o2770"),
        (AGENT, AGENT, "0o700"),
    ]
    assert before[1:] == after[1:]


def test_what_is_in_a_state_directory_changes_hands_with_it(node: Node) -> None:
    (node.state / "audit").mkdir(mode=0o700)
    (node.state / "audit/1.jsonl").write_text("kept")
    for path in (node.state / "audit", node.state / "audit/1.jsonl"):
        os.chown(path, 0, 0)
    os.chown(node.state, 0, 0)  # as an agent of components/read-any had it
    node.set_up()
    assert as_user(AGENT, "cat", node.state / "audit/1.jsonl")


def test_directories_in_it_change_hands_with_all_that_is_in_them(node: Node) -> None:
    """A backfill's, as an agent of the other kind left it: root without DAC_OVERRIDE cannot look
    into what is the agent's alone, and a set-up that fails half way leaves a state that nobody may
    use."""
    job = node.state / "backfill/march"
    job.mkdir(mode=0o700, parents=True)
    (job / "checkpoints.db").write_text("kept")
    for path in (job.parent, job, job / "checkpoints.db"):
        path.chmod(0o700)
        os.chown(path, AGENT, AGENT)
    node.set_up(STATE_OWNER="0:0")
    assert as_user(0, "cat", job / "checkpoints.db")
    node.set_up()
    assert as_user(AGENT, "cat", job / "checkpoints.db")


def test_links_in_it_lead_no_owner_elsewhere(node: Node) -> None:
    """Whoever took over an agent must not have root give it more."""
    (node.state / "link").symlink_to(node.feedback)
    node.state.chmod(0o755)  # so that it is set up anew
    node.set_up()
    assert (0, AGENT, "0o2770") == owner(node.feedback)


def test_an_app_of_the_group_writes_and_the_agent_reads(node: Node) -> None:
    """Whatever user the app has: new files and directories get the group of the directory."""
    made = node.directory("shop", "checkout-1")
    write = f"umask 027; mkdir {made}/d && echo x > {made}/d/a.jsonl"
    assert as_user(APP, "sh", "-c", write, groups=f"--groups={AGENT}")
    assert (APP, AGENT, "0o640") == owner(made / "d/a.jsonl")
    assert as_user(AGENT, "cat", made / "d/a.jsonl")
    assert as_user(AGENT, "rm", made / "d/a.jsonl") is False  # mode 2750: its own choice
    assert as_user(
        AGENT, "touch", made / "b.jsonl"
    )  # what delete-shipped needs, where it is mounted


def test_the_writer_of_ours_leaves_what_the_agent_may_read(node: Node) -> None:
    made = node.directory("shop", "checkout-1")
    with FeedbackWriter(str(made)) as writer:
        assert writer.user_feedback("s", rating=4)
    (file,) = made.iterdir()
    assert as_user(AGENT, "cat", file)


def test_nobody_else_looks_in(node: Node) -> None:
    made = node.directory("shop", "checkout-1")
    (made / "a.jsonl").write_text("x\n")
    assert as_user(OTHER, "ls", node.feedback) is False
    assert as_user(OTHER, "cat", made / "a.jsonl") is False
    assert as_user(APP, "touch", made / "b", groups="--clear-groups") is False


def test_apps_of_the_group_cannot_touch_the_state(node: Node) -> None:
    """Who can write there can make the agent skip lines."""
    for command in (("ls", node.state), ("touch", node.state / "x")):
        assert as_user(APP, *command, groups=f"--groups={AGENT}") is False
        assert as_user(AGENT, *command)


def test_the_state_may_be_roots_for_an_agent_that_reads_any_file(node: Node) -> None:
    """Root without DAC_OVERRIDE may write nowhere but where it is the owner."""
    node.set_up(STATE_OWNER="0:0")
    assert (0, 0, "0o700") == owner(node.state)
    assert as_user(0, "touch", node.state / "x")
