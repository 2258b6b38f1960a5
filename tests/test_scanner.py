import os
import socket
from pathlib import Path

import pytest

from agent import scanner
from agent.core.discovery import FileKey, Scan, Seen, Skipped, file_key
from agent.scanner import Scanner
from tests.fakes import WALL_S, FakeClock
from tests.test_opener import as_nobody, descriptors

INCLUDE = ("*.jsonl", "*.jsonl.*", "*.jsonl-*")


def write(root: Path, path: str, data: bytes = b"{}\n") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def paths(scan: Scan) -> set[str]:
    return {seen.path for seen in scan.files}


def met(scan: Scan) -> dict[FileKey, Seen]:
    return {seen.key: seen for seen in scan.files}


@pytest.mark.parametrize("followed", [True, False], ids=["followed", "waits_to_be_opened"])
def test_a_file_at_rest_is_the_one_that_was_seen(tmp_path: Path, followed: bool) -> None:
    """A scan of ten thousand of them would otherwise take as much memory again."""
    write(tmp_path, "a/x.jsonl")
    grown = write(tmp_path, "a/y.jsonl")
    first = Scanner(tmp_path, INCLUDE)
    seen = met(first.scan())
    grown.write_bytes(b"{}\n{}\n")

    again = Scanner(tmp_path, INCLUDE).scan(seen) if followed else first.scan()

    assert {"a/x.jsonl": True, "a/y.jsonl": False} == {
        s.path: s is seen[s.key] for s in again.files
    }


def test_only_matching_names_are_seen_at_any_depth(tmp_path: Path) -> None:
    for path in ("a/x.jsonl", "a/b/c/x.jsonl.1", "x.jsonl-20260101", "a/x.json", "a/y.jsonl"):
        write(tmp_path, path)

    got = Scanner(tmp_path, INCLUDE, exclude=("y.*",)).scan()

    assert {"a/x.jsonl", "a/b/c/x.jsonl.1", "x.jsonl-20260101"} == paths(got)
    assert {"", "a", "a/b", "a/b/c"} == set(got.directories)
    assert ((), (), None) == (got.skipped, got.unreadable, got.root_problem)


def test_a_file_is_described_as_the_kernel_does(tmp_path: Path) -> None:
    file = write(tmp_path, "web/x.jsonl", b"12345")

    (seen,) = Scanner(tmp_path, INCLUDE).scan().files

    status = file.stat()
    assert ("web/x.jsonl", "web", 5) == (seen.path, seen.client, seen.size)
    assert file_key(status.st_dev, status.st_ino) == seen.key
    assert status.st_mtime_ns == seen.mtime_ns


@pytest.mark.parametrize(
    ("depth", "client"), [(0, "default"), (1, "a"), (2, "a/b"), (3, "a/b/c"), (9, "a/b/c")]
)
def test_the_first_directories_are_the_client(tmp_path: Path, depth: int, client: str) -> None:
    write(tmp_path, "a/b/c/x.jsonl")
    write(tmp_path, "y.jsonl")

    got = Scanner(tmp_path, INCLUDE, client_depth=depth).scan()

    clients = {seen.path: seen.client for seen in got.files}
    assert {"a/b/c/x.jsonl": client, "y.jsonl": "default"} == clients


def test_a_fixed_client_owns_every_file(tmp_path: Path) -> None:
    write(tmp_path, "a/x.jsonl")
    write(tmp_path, "y.jsonl")

    got = Scanner(tmp_path, INCLUDE, client="sidecar").scan()

    assert {"sidecar"} == {seen.client for seen in got.files}


def test_links_and_special_files_are_named_and_not_seen(tmp_path: Path) -> None:
    """A linked directory is not entered, whatever its name."""
    outside = write(tmp_path, "outside/x.jsonl")
    root = tmp_path / "root"
    root.mkdir()
    (root / "l.jsonl").symlink_to(outside)
    (root / "dangling.jsonl").symlink_to("nowhere")
    (root / "dir").symlink_to(outside.parent, target_is_directory=True)
    os.mkfifo(root / "f.jsonl")
    here = os.open(".", os.O_RDONLY)
    os.chdir(root)  # the address of a Unix socket is 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s.jsonl")
    finally:
        os.fchdir(here)
        os.close(here)

    got = Scanner(root, INCLUDE).scan()

    assert () == got.files
    assert {
        Skipped("l.jsonl", "symlink"),
        Skipped("dangling.jsonl", "symlink"),
        Skipped("dir", "symlink"),
        Skipped("f.jsonl", "not_regular"),
        Skipped("s.jsonl", "not_regular"),
    } == set(got.skipped)


@pytest.mark.parametrize("name", ["x.jsonl.1.gz", "x.jsonl.gz", "x.jsonl-20260101.zst"])
def test_compressed_files_are_met_like_others(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)

    got = Scanner(tmp_path, INCLUDE).scan()

    assert ([name], ()) == ([seen.path for seen in got.files], got.skipped)


@pytest.mark.parametrize("name", [b"a\nb.jsonl", b"\x1b[2J.jsonl", b"\xff\xfe.jsonl"])
def test_any_name_survives_and_its_client_is_printable(tmp_path: Path, name: bytes) -> None:
    directory = os.fsencode(tmp_path) + b"/cl\xff\n"
    os.mkdir(directory)  # noqa: PTH102
    with open(directory + b"/" + name, "wb"):  # noqa: PTH123
        pass

    (seen,) = Scanner(tmp_path, INCLUDE).scan().files

    assert b"cl\xff\n/" + name == os.fsencode(seen.path)
    assert r"cl\xff\n" == seen.client


@pytest.mark.parametrize(("make", "problem"), [("no", "missing"), ("file", "not_a_directory")])
def test_a_root_that_is_not_there_is_a_reason(tmp_path: Path, make: str, problem: str) -> None:
    if make == "file":
        write(tmp_path, "root")

    assert Scan(root_problem=problem) == Scanner(tmp_path / "root", INCLUDE).scan()


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    """The operator chose it; Kubernetes mounts some volumes behind one."""
    write(tmp_path, "real/x.jsonl")
    (tmp_path / "root").symlink_to("real", target_is_directory=True)

    assert {"x.jsonl"} == paths(Scanner(tmp_path / "root", INCLUDE).scan())


def test_an_unreadable_directory_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a child process without root's powers: root reads everything."""
    for directory in ("closed", "open"):
        write(tmp_path, f"root/{directory}/x.jsonl")
    tmp_path.chmod(0o755)
    (tmp_path / "root" / "closed").chmod(0)
    monkeypatch.chdir(tmp_path)  # what lies above may be closed to the child

    def answer() -> bytes:
        got = Scanner(Path("root"), INCLUDE).scan()
        return repr((paths(got), got.unreadable, got.root_problem)).encode()

    expected = ({"open/x.jsonl"}, (Skipped("closed", "permission"),), None)
    assert repr(expected).encode() == as_nobody(answer)
    (tmp_path / "root" / "closed").chmod(0o755)


def test_an_unreadable_root_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def answer() -> bytes:
        return str(Scanner(Path("root"), INCLUDE).scan().root_problem).encode()

    assert b"permission" == as_nobody(answer)
    (tmp_path / "root").chmod(0o755)


def test_files_beyond_the_limit_are_counted_and_known_ones_stay(tmp_path: Path) -> None:
    """A flood of new names must not push out the files that are being read."""
    write(tmp_path, "old.jsonl")
    known = met(Scanner(tmp_path, INCLUDE).scan())
    for number in range(20):
        write(tmp_path, f"flood/{number}.jsonl")

    got = Scanner(tmp_path, INCLUDE, files_max=5).scan(known)

    assert "old.jsonl" in paths(got)
    assert (5, {"flood": 16}) == (len(got.files), got.over_limit)


def test_one_client_cannot_use_up_the_room_of_another(tmp_path: Path) -> None:
    """Its own known files count; they are taken all the same."""
    for number in range(3):
        write(tmp_path, f"flood/{number}.jsonl")
    known = met(Scanner(tmp_path, INCLUDE).scan())
    for number in range(3, 9):
        write(tmp_path, f"flood/{number}.jsonl")
    write(tmp_path, "calm/x.jsonl")

    got = Scanner(tmp_path, INCLUDE, client_files_max=4).scan(known)

    assert {"calm/x.jsonl", *(f"flood/{n}.jsonl" for n in range(3))} <= paths(got)
    assert (5, {"flood": 5}) == (len(got.files), got.over_limit)


def test_a_client_with_names_without_end_hides_itself_only(tmp_path: Path) -> None:
    """Names that match nothing too. Where its names end, nothing of it is known to be gone."""
    for number in range(50):
        write(tmp_path, f"flood/{number}.tmp")
        write(tmp_path, f"calm/{number % 5}.jsonl")
    scanner = Scanner(tmp_path, INCLUDE, client_entries_max=20)

    got = scanner.scan()

    assert {f"calm/{n}.jsonl" for n in range(5)} == paths(got)
    assert (Skipped("flood", "too_many"),) == got.unreadable


def test_a_client_with_directories_without_end_is_cut_off(tmp_path: Path) -> None:
    """Each is opened, listed and watched, so it costs as much as many names."""
    for number in range(30):
        (tmp_path / "flood" / f"{number}").mkdir(parents=True)
    write(tmp_path, "calm/x.jsonl")

    got = Scanner(tmp_path, INCLUDE, client_entries_max=10 * scanner.DIRECTORY_ENTRIES).scan()

    assert {"calm/x.jsonl"} == paths(got)
    assert (Skipped("flood", "too_many"),) == got.unreadable
    assert 10 == sum(d.startswith("flood/") for d in got.directories)


def test_names_in_the_root_hide_no_client(tmp_path: Path) -> None:
    """They are the default client's; directories there are other clients, however many."""
    for number in range(30):
        write(tmp_path, f"{number}.jsonl")
        write(tmp_path, f"c{number}/x.jsonl")

    got = Scanner(tmp_path, INCLUDE, client_entries_max=9).scan()

    assert {f"c{n}/x.jsonl" for n in range(30)} <= paths(got)
    assert 9 == sum(seen.client == "default" for seen in got.files)
    assert (Skipped("", "too_many"),) == got.unreadable


def test_a_fixed_client_has_one_share_of_everything(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, f"{number}/x.jsonl")

    got = Scanner(tmp_path, INCLUDE, client="sidecar", client_entries_max=99).scan()

    assert 9 == len(got.files)
    assert (Skipped("", "too_many"),) == got.unreadable


def test_an_old_file_is_passed_over_until_it_is_written_to(tmp_path: Path) -> None:
    clock = FakeClock()
    file = write(tmp_path, "acme/x.jsonl")
    os.utime(file, (WALL_S - 101, WALL_S - 101))
    scanner = Scanner(tmp_path, INCLUDE, ignore_older_s=100.0, clock=clock)

    before = scanner.scan()
    os.utime(file, (WALL_S, WALL_S))
    after = scanner.scan()

    assert ((), {"old": 1}) == (before.files, before.skipped_counts)
    assert {"acme/x.jsonl"} == paths(after)


def test_a_file_that_was_followed_is_never_too_old(tmp_path: Path) -> None:
    """After a restart only its inode is known; its unread end would be lost."""
    file = write(tmp_path, "acme/x.jsonl")
    os.utime(file, (0, 0))
    before = met(Scanner(tmp_path, INCLUDE).scan())
    scanner = Scanner(tmp_path, INCLUDE, ignore_older_s=1.0)

    for known, remembered in (
        (before, set[int]()),
        (dict[FileKey, Seen](), {file.stat().st_ino}),
    ):
        assert {"acme/x.jsonl"} == paths(scanner.scan(known, remembered))


def test_notes_are_bounded_for_each_client_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links cost a client nothing to make, and must not hide what others did."""
    monkeypatch.setattr(scanner, "CLIENT_NOTED_MAX", 3)
    (tmp_path / "flood").mkdir()
    for number in range(10):
        (tmp_path / "flood" / f"{number}.jsonl").symlink_to("x")
    (tmp_path / "l.jsonl").symlink_to("x")
    os.mkfifo(tmp_path / "flood/f.jsonl")

    got = Scanner(tmp_path, INCLUDE).scan()

    assert 5 == len(got.skipped)
    assert {Skipped("l.jsonl", "symlink"), Skipped("flood/f.jsonl", "not_regular")} <= {
        *got.skipped
    }
    assert {"symlink": 11, "not_regular": 1} == got.skipped_counts


def test_unreadable_directories_of_a_client_become_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them must not keep others' files from being known as gone."""
    monkeypatch.setattr(scanner, "CLIENT_NOTED_MAX", 3)
    for number in range(12):
        write(tmp_path, f"flood/{number}/deep/x.jsonl")
    write(tmp_path, "calm/too/deep/x.jsonl")

    got = Scanner(tmp_path, INCLUDE, depth_max=2).scan()

    assert {Skipped("flood", "too_many"), Skipped("calm/too/deep", "too_deep")} == {*got.unreadable}


def test_a_tree_without_end_is_cut_at_a_depth(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 17)
    write(tmp_path, f"{deep}/x.jsonl")
    write(tmp_path, f"{deep[:-2]}/y.jsonl")

    got = Scanner(tmp_path, INCLUDE).scan()

    assert {f"{deep[:-2]}/y.jsonl"} == paths(got)
    assert (Skipped(deep, "too_deep"),) == got.unreadable


def test_a_scan_leaves_no_descriptor(tmp_path: Path) -> None:
    write(tmp_path, "a/b/x.jsonl")
    before = descriptors()

    Scanner(tmp_path, INCLUDE).scan()

    assert before == descriptors()
