import ctypes
import errno
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import opener
from agent.core.identity import Birth, source_id
from agent.opener import Descriptor, Refused, open_beneath
from tests.racer import racing

WALK = pytest.mark.parametrize("walk", [False, True], ids=["openat2", "walk"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "client").mkdir(parents=True)
    (tmp_path / "root" / "client" / "a.jsonl").write_bytes(b"mine\n")
    (tmp_path / "secret").write_bytes(b"foreign\n")
    return tmp_path / "root"


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def opened(root_fd: int, path: bytes | str, *, walk: bool = False) -> Descriptor:
    got = open_beneath(root_fd, path, walk=walk)
    assert isinstance(got, Descriptor), got
    return got


def refused(root_fd: int, path: bytes | str, *, walk: bool) -> str:
    before = descriptors()
    got = open_beneath(root_fd, path, walk=walk)
    assert isinstance(got, Refused)
    assert before == descriptors()
    return got.reason


@WALK
def test_reads_at_any_offset_and_ends_where_the_file_ends(root_fd: int, walk: bool) -> None:
    with opened(root_fd, "client/a.jsonl", walk=walk) as file:
        assert b"ine\n" == file.pread(100, 1)
        assert b"" == file.pread(100, 5)
        assert 5 == file.size()
        assert 1 == file.links()


@WALK
def test_close_gives_the_descriptor_back_and_is_safe_to_repeat(root_fd: int, walk: bool) -> None:
    before = descriptors()
    file = opened(root_fd, "client/a.jsonl", walk=walk)
    file.close()
    file.close()

    assert before == descriptors()


@WALK
@pytest.mark.parametrize("name", [b"line\nbreak", b"\x1b[31mred", b"\xff\xfe", b"sp ace", b"\\"])
def test_any_name_the_kernel_takes_can_be_opened(
    root: Path, root_fd: int, name: bytes, walk: bool
) -> None:
    """As bytes and as the surrogate-escaped text that a scan yields."""
    with open(os.fsencode(root) + b"/client/" + name, "wb") as file:  # noqa: PTH123
        file.write(b"x")

    for path in (b"client/" + name, os.fsdecode(b"client/" + name)):
        opened(root_fd, path, walk=walk).close()


@WALK
@pytest.mark.parametrize(
    "path", ["../secret", "client/../../secret", "/etc/passwd", "", ".", "client/./a.jsonl", "a\0b"]
)
def test_a_path_that_is_not_plainly_below_is_refused(root_fd: int, path: str, walk: bool) -> None:
    assert "outside" == refused(root_fd, path, walk=walk)


@WALK
def test_no_link_is_followed_in_any_component(root: Path, root_fd: int, walk: bool) -> None:
    """O_NOFOLLOW alone would stop only the last one; a link to a good file is a link too."""
    (root / "client" / "l.jsonl").symlink_to("../../secret")
    (root / "client" / "inside.jsonl").symlink_to("a.jsonl")
    (root / "linked").symlink_to("client", target_is_directory=True)
    (root / "up").symlink_to("..", target_is_directory=True)

    for path in ("client/l.jsonl", "client/inside.jsonl", "linked/a.jsonl", "up/secret"):
        assert "symlink" == refused(root_fd, path, walk=walk)


@WALK
def test_what_is_not_a_regular_file_is_refused_without_blocking(
    root: Path, root_fd: int, walk: bool
) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        os.chdir(root)  # the address of a Unix socket is 108 bytes at most
        try:
            listener.bind("sock")
        finally:
            os.fchdir(here)
            os.close(here)
        for path in ("fifo", "sock", "client"):
            assert "not_regular" == refused(root_fd, path, walk=walk)


@WALK
def test_a_device_is_refused(walk: bool) -> None:
    """``/dev`` has one on every machine; to make one takes root."""
    fd = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "not_regular" == refused(fd, "null", walk=walk)
        assert "not_regular" == refused(fd, "zero", walk=walk)
    finally:
        os.close(fd)


@WALK
def test_a_mount_below_the_root_is_another_device(walk: bool) -> None:
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert "other_device" == refused(fd, "proc/version", walk=walk)
    finally:
        os.close(fd)


@WALK
def test_a_missing_file_is_gone_and_so_is_one_below_a_file(root_fd: int, walk: bool) -> None:
    for path in ("client/b.jsonl", "nobody/a.jsonl", "client/a.jsonl/deeper", "n" * 300):
        assert "gone" == refused(root_fd, path, walk=walk)


@WALK
def test_a_second_name_is_refused_unless_allowed(root: Path, root_fd: int, walk: bool) -> None:
    """It may be another client's file."""
    (root / "client" / "b.jsonl").hardlink_to(root / "client" / "a.jsonl")

    assert "links" == refused(root_fd, "client/b.jsonl", walk=walk)
    allowed = open_beneath(root_fd, "client/b.jsonl", links_max=None, walk=walk)
    assert isinstance(allowed, Descriptor)
    allowed.close()


@WALK
def test_an_unreadable_file_is_a_matter_of_permission(root: Path, root_fd: int, walk: bool) -> None:
    """In a child process without root's powers: root reads everything."""
    (root / "client" / "a.jsonl").chmod(0)
    (root / "closed").mkdir(mode=0)

    def answers() -> bytes:
        reasons = []
        for path in ("client/a.jsonl", "closed/a.jsonl"):
            got = open_beneath(root_fd, path, walk=walk)
            reasons.append(got.reason if isinstance(got, Refused) else "opened")
        return " ".join(reasons).encode()

    assert b"permission permission" == as_nobody(answers)


def as_nobody(answer: Callable[[], bytes]) -> bytes:
    """Run ``answer`` in a forked child that is not root, and return what it returned."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(write_fd, answer())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        got = pipe.read()
    os.waitpid(child, 0)
    return got


OPENS = 25_000
"""Of each swap: 10^5 each way."""
OFTEN = 1000
REFUSED_AS = {
    "link": "symlink",
    "linked_directory": "symlink",
    "fifo": "not_regular",
    "hard_link": "links",
}


@WALK
@pytest.mark.parametrize("swapped", REFUSED_AS)
def test_a_name_swapped_during_the_open_never_yields_a_foreign_byte(
    root: Path, root_fd: int, swapped: str, walk: bool
) -> None:
    """A process exchanges the file, or its directory, for what must not be read, and back, all the
    time. It goes on until both were met often, and no open may block."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "a.jsonl").write_bytes(b"foreign\n")
    name, other = root / "client" / "a.jsonl", root / "client" / "other"
    if swapped == "link":
        other.symlink_to(outside / "a.jsonl")
    elif swapped == "linked_directory":
        name, other = root / "client", root / "other"
        other.symlink_to(outside, target_is_directory=True)
    elif swapped == "fifo":
        os.mkfifo(other)
    else:
        other.hardlink_to(outside / "a.jsonl")
    before = descriptors()
    outcomes: Counter[str] = Counter()
    with racing(name, other):
        during = descriptors()
        while (
            outcomes.total() < OPENS or min(outcomes["mine"], outcomes[REFUSED_AS[swapped]]) < OFTEN
        ):
            got = open_beneath(root_fd, "client/a.jsonl", walk=walk)
            if isinstance(got, Refused):
                outcomes[got.reason] += 1
            else:
                with got:
                    assert b"mine\n" == got.pread(100, 0)
                outcomes["mine"] += 1
        assert during == descriptors()

    # "error" is EAGAIN: the kernel gave up on a path that kept changing; "gone" a directory that
    # was a link by the time the walk asked what it was.
    assert set(outcomes) <= {"mine", REFUSED_AS[swapped], "error", "gone"}, outcomes
    assert before == descriptors()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_where_openat2_is_missing_or_forbidden_the_path_is_walked(
    root: Path, root_fd: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old kernel says ENOSYS, a container's seccomp filter EPERM."""

    def absent(_fd: int, _path: bytes) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(opener, "_openat2", absent)
    (root / "linked").symlink_to("client", target_is_directory=True)

    opened(root_fd, "client/a.jsonl").close()
    assert "symlink" == refused(root_fd, "linked/a.jsonl", walk=False)


def test_a_rename_keeps_the_birth_and_growth_does_too(root: Path, root_fd: int) -> None:
    with opened(root_fd, "client/a.jsonl") as file:
        before = file.birth
    (root / "client" / "a.jsonl").rename(root / "client" / "a.jsonl.1")
    with (root / "client" / "a.jsonl.1").open("ab") as grown:
        grown.write(b"more\n")

    with opened(root_fd, "client/a.jsonl.1") as file:
        assert before == file.birth
        assert source_id(before) == source_id(file.birth)


def test_an_inode_used_again_is_another_birth(root: Path, root_fd: int) -> None:
    """ext4 hands a freed inode out at once; only the birth tells the two apart."""
    births: list[Birth] = []
    for _ in range(50):
        (root / "x.jsonl").write_bytes(b"same")
        with opened(root_fd, "x.jsonl") as file:
            births.append(file.birth)
        (root / "x.jsonl").unlink()
        time.sleep(0.01)  # a tick of the kernel's coarse clock: tmpfs has nothing but the time

    assert 50 == len(set(births))


def test_the_birth_is_the_kernels(root: Path, root_fd: int) -> None:
    before = time.clock_gettime_ns(time.CLOCK_REALTIME)
    (root / "x.jsonl").write_bytes(b"")
    after = time.clock_gettime_ns(time.CLOCK_REALTIME)
    with opened(root_fd, "x.jsonl") as file:
        born = file.birth

    status = (root / "x.jsonl").stat()
    assert (status.st_ino, status.st_dev) == (born.inode, born.device)
    assert before - 20_000_000 <= born.born_ns <= after
    assert born.born_ns <= status.st_ctime_ns
    assert 0 <= born.inode_generation < 1 << 32


def test_the_request_has_the_kernels_layout() -> None:
    """struct open_how: flags, mode, resolve, 8 bytes each (linux/openat2.h)."""
    flags, mode, resolve = struct.unpack("=QQQ", opener._HOW)

    assert flags & os.O_NONBLOCK
    assert flags & os.O_NOFOLLOW
    assert (0, 0x0F) == (mode, resolve)
