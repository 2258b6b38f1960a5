from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.core.discovery import (
    Admission,
    FileKey,
    Limits,
    Scan,
    Seen,
    Skipped,
    client_of,
    plan,
    printable,
)

SEEN = st.builds(
    Seen,
    path=st.sampled_from(["c/a", "c/b", "d/a", "d/e/a", "x"]),
    client=st.just("c"),
    key=st.integers(1, 5),
    size=st.integers(0, 3),
    mtime_ns=st.integers(0, 3),
)


@given(st.lists(SEEN), st.lists(SEEN), st.sampled_from([None, "missing"]), st.booleans())
def test_a_plan_accounts_for_every_file_once(
    before: list[Seen], now: list[Seen], problem: str | None, blind: bool
) -> None:
    """Each is to open, unchanged, another name, or gone; and gone only where the scan looked."""
    remembered = {seen.key: seen for seen in before}
    unreadable = (Skipped("d", "permission"),) if blind else ()
    scan = Scan(files=tuple(now), root_problem=problem, unreadable=unreadable)

    got = plan(remembered, scan)

    opened = [found.seen for found in got.open]
    assert len({seen.key for seen in opened}) == len(opened)
    assert sorted(opened, key=lambda s: (s.mtime_ns, s.path)) == opened
    assert len(now) - len({seen.key for seen in now}) == len(got.linked)
    for key in {seen.key for seen in now} - {seen.key for seen in opened}:
        same = remembered[key]
        assert any(
            (s.path, s.size, s.mtime_ns) == (same.path, same.size, same.mtime_ns)
            for s in now
            if s.key == key
        )
    met = {seen.key for seen in now}
    missed = {k for k, s in remembered.items() if k not in met}
    if problem:
        missed.clear()
    if blind:
        missed = {k for k in missed if not remembered[k].path.startswith("d/")}
    assert missed == {seen.key for seen in got.gone}


def test_a_plan_says_why() -> None:
    def seen(inode: int, path: str, size: int, mtime_ns: int = 0) -> Seen:
        return Seen(path, "c", inode, size, mtime_ns)

    before = [seen(n, f"{n}", 10) for n in range(1, 7)]
    now = (
        seen(1, "1", 11),
        seen(2, "2", 9),
        seen(3, "3", 10, mtime_ns=5),
        seen(4, "4.1", 12),
        seen(5, "5", 10),
        seen(7, "7", 0),
    )

    got = plan({s.key: s for s in before}, Scan(files=now))

    whys = {found.seen.path: found.why for found in got.open}
    assert {
        "1": "grown",
        "2": "shrunk",
        "3": "touched",
        "4.1": "renamed",
        "7": "new",
    } == whys
    assert [before[5]] == list(got.gone)


def test_what_was_settled_to_its_end_is_opened_last() -> None:
    """After a restart nothing is known by sight: what was written meanwhile need not wait."""
    files = [Seen("c/a", "c", n, size=size, mtime_ns=n) for n, size in ((1, 5), (2, 5), (3, 8))]

    opened = plan({}, Scan(files=tuple(files)), {1: 5, 2: 4, 3: 8}).open

    assert [2, 1, 3] == [found.seen.inode for found in opened]


def test_a_second_name_never_takes_a_file_from_the_first() -> None:
    """Another client's hard link to a file that is being read."""
    first = Seen("victim/a.jsonl", "victim", 1, 10, 0)
    second = replace(first, path="aggressor/a.jsonl", client="aggressor")

    got = plan({first.key: first}, Scan(files=(second, first)))

    assert ((), (), (second,)) == (got.open, got.gone, got.linked)


@given(st.text() | st.sampled_from(["a\nb", "\x1b[2J", "\udcff", "\\xff", "\\udcff", "ä"]))
def test_a_printable_name_is_printable(name: str) -> None:
    got = printable(name)

    assert all(character.isprintable() for character in got)
    assert got == got.encode().decode()


NAMES = st.text("\\ax0n\n\x1bä\udcff\udce4\xad", max_size=6)


@settings(max_examples=1000)
@given(NAMES, NAMES)
def test_two_names_never_become_one(one: str, other: str) -> None:
    assert (one == other) == (printable(one) == printable(other))


def test_a_client_is_made_of_directories_only() -> None:
    assert "default" == client_of("a.jsonl", 1)
    assert "a" == client_of("a/b/c.jsonl", 1)
    assert "a/b" == client_of("a/b/c.jsonl", 5)
    assert r"\xff\n" == client_of("\udcff\n/c.jsonl", 1)


OFFERED = st.lists(
    st.builds(
        Seen,
        path=st.just("p"),
        client=st.sampled_from("abc"),
        key=st.integers(1, 60),
        size=st.just(1),
        mtime_ns=st.integers(0, 9),
    ),
    max_size=60,
    unique_by=lambda seen: seen.key,
)


@settings(max_examples=500)
@given(OFFERED, st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)), st.data())
def test_what_a_scan_takes_in_is_bounded_and_accounted_for(
    offered: list[Seen], known: set[int], remembered: set[int], data: st.DataObject
) -> None:
    """Known files always; of the others no more than fit, of one client neither; old ones not.
    Each file is taken, too old, or counted."""
    limits = Limits(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 20)))
    oldest_ns = data.draw(st.none() | st.integers(0, 9))
    keys: set[FileKey] = {*known}
    met = {key: Seen("p", "a", key, 1, mtime_ns=5) for key in keys}
    admission = Admission(limits, met, remembered, oldest_ns)

    old = [seen for seen in offered if not admission.offer(seen)]
    taken, over = admission.result()

    assert len(offered) == len(old) + len(taken) + sum(over.values())
    assert {s.key for s in offered} & keys <= {s.key for s in taken}
    assert all(s is met[s.key] for s in taken if s == met.get(s.key))
    new = [s for s in taken if s.key not in keys]
    assert {s.key: s for s in new} == admission.unknown, "no more is kept for the next scan"
    assert not new or len(taken) <= limits.files_max
    for client in {s.client for s in new}:
        assert sum(s.client == client for s in taken) <= limits.client_files_max
        passed_over = {s.inode for s in offered if s.client == client} - {s.inode for s in taken}
        if passed_over & remembered:
            assert {s.inode for s in new if s.client == client} <= remembered
    assert not {s.inode for s in old} & (known | remembered)
    assert all(oldest_ns is not None and s.mtime_ns < oldest_ns for s in old)


def test_where_room_is_short_clients_with_few_files_get_them_all() -> None:
    def seen(client: str, inode: int) -> Seen:
        return Seen("p", client, inode, 1, 0)

    admission = Admission(Limits(files_max=10), {})
    for inode in range(100):
        admission.offer(seen("flood", inode))
        admission.offer(seen("too", 1000 + inode))
    for inode in range(2):
        admission.offer(seen("calm", 2000 + inode))

    taken, over = admission.result()

    assert {"flood": 4, "too": 4, "calm": 2} == Counter(s.client for s in taken)
    assert {"flood": 96, "too": 96} == over


def test_nothing_is_gone_where_the_root_was_not_read_to_its_end() -> None:
    before = Seen("a/x", "a", 1, 1, 0)

    assert () == plan({before.key: before}, Scan(unreadable=(Skipped("", "too_many"),))).gone
    assert (before,) == plan({before.key: before}, Scan(unreadable=(Skipped("b", "old"),))).gone
