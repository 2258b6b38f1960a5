from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.core.identity import (
    ANCHOR_BYTES,
    FINGERPRINT_BYTES,
    OLDER_MAX,
    REWIND_BYTES_MIN,
    Anchor,
    Birth,
    Change,
    Checkpoint,
    advance,
    compare,
    demands,
    digest,
    examine,
    source_id,
    thinned,
)

BIRTH = Birth(7, 1_000_000_000_000_000_000, 42, 100)
# Long enough for rewinding, and repetitive enough that chance matches would show.
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda seed, n: (seed * n)[:6000], st.binary(min_size=1, max_size=90), st.integers(1, 400)
    ),
    st.builds(
        lambda n, salt: b"".join(b'{"n":%d,"s":%d}\n' % (i, salt) for i in range(n)),
        st.integers(0, 400),
        st.integers(0, 3),
    ),
)


def anchor_at(content: bytes, offset: int) -> Anchor:
    return Anchor(offset, digest(content[max(0, offset - ANCHOR_BYTES) : offset]))


def checkpoint(content: bytes, *watermarks: int, birth: Birth = BIRTH) -> Checkpoint:
    """The checkpoint of one who settled ``content`` up to each of ``watermarks`` in turn."""
    at = Checkpoint(
        birth=birth,
        generation=0,
        watermark=0,
        fingerprint=digest(b""),
        anchor=anchor_at(b"", 0),
        path="c/a.jsonl",
        client="c",
    )
    for watermark in sorted(watermarks):
        fingerprint = digest(content[: min(FINGERPRINT_BYTES, watermark)])
        at = advance(at, anchor_at(content, watermark), fingerprint)
    return at


def reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda length, offset: content[offset : offset + length]


def look(before: Checkpoint, content: bytes, birth: Birth = BIRTH) -> Change:
    return compare(before, examine(before, birth, len(content), reader(content)))


@given(st.data())
def test_growth_resumes_at_the_watermark(data: st.DataObject) -> None:
    content = data.draw(CONTENT)
    watermarks = data.draw(st.lists(st.integers(0, len(content)), min_size=1))

    before = checkpoint(content, *watermarks)

    assert Change("same", max(watermarks)) == look(before, content + data.draw(CONTENT))


@given(st.data())
def test_nothing_is_resumed_unless_prefix_and_anchor_are_what_they_were(
    data: st.DataObject,
) -> None:
    """Whatever became of the file: where reading goes on, the evidence before it stands."""
    old, new = data.draw(CONTENT), data.draw(CONTENT)
    # Half of the files keep a prefix of the old one, or two files would hardly ever be alike.
    new = old[: data.draw(st.integers(0, len(old)))] + new if data.draw(st.booleans()) else new
    before = checkpoint(old, *data.draw(st.lists(st.integers(0, len(old)), max_size=9)))

    change = look(before, new)

    at = change.resume_at
    assert at <= min(len(new), before.watermark)
    covered = min(FINGERPRINT_BYTES, before.watermark)
    if at:
        assert old[:covered] == new[:covered]
        assert old[max(0, at - ANCHOR_BYTES) : at] == new[max(0, at - ANCHOR_BYTES) : at]
    if change.cause == "same":
        assert before.watermark == at
    elif change.cause == "rewound":
        assert REWIND_BYTES_MIN <= at < before.watermark
    else:
        assert 0 == at
    if len(new) < before.watermark:
        assert change.cause in {"truncated", "rewound"}


@given(CONTENT)
def test_another_birth_is_another_file_whatever_it_holds(content: bytes) -> None:
    before = checkpoint(content, len(content))

    for other in (
        replace(BIRTH, inode=8),
        replace(BIRTH, born_ns=BIRTH.born_ns + 1),
        replace(BIRTH, inode_generation=43),
    ):
        assert Change("replaced") == look(before, content, other)
        assert source_id(BIRTH) != source_id(other)


def test_a_new_device_number_changes_nothing() -> None:
    """It may change at a reboot."""
    moved = replace(BIRTH, device=200)

    assert BIRTH == moved
    assert not BIRTH != moved  # noqa: SIM202 - the other operator
    assert hash(BIRTH) == hash(moved)
    assert source_id(BIRTH) == source_id(moved)
    assert Change("same", 3) == look(checkpoint(b"{}\n", 3), b"{}\n", moved)


def test_a_source_id_is_16_hexadecimal_characters() -> None:
    assert 16 == len(source_id(BIRTH))
    assert int(source_id(BIRTH), 16) >= 0


@pytest.mark.parametrize("size", [10, 511, 512, 513, 1023, 1024, 1025, 5000])
def test_one_changed_byte_below_the_watermark_is_seen_where_evidence_lies(size: int) -> None:
    """In the first kilobyte and in the 512 bytes before the watermark, at every edge."""
    content = b"x" * size
    before = checkpoint(content, size)

    for at in {0, min(size, FINGERPRINT_BYTES) - 1, max(0, size - ANCHOR_BYTES), size - 1}:
        changed = content[:at] + b"y" + content[at + 1 :]
        assert Change("mismatch") == look(before, changed), at


def test_the_evidence_of_a_short_file_is_all_of_it() -> None:
    assert ((0, 10), (0, 10)) == demands(checkpoint(b"0123456789", 10))
    assert ((0, 0), (0, 0)) == demands(checkpoint(b""))
    assert ((0, 1024), (4488, 5000)) == demands(checkpoint(b"x" * 5000, 5000))


def test_a_file_that_lost_its_end_goes_on_at_the_newest_anchor_left() -> None:
    """After a power cut the checkpoint can be ahead of the file. The rest is not sent again."""
    content = b"".join(b"%07d\n" % n for n in range(10_000))
    before = checkpoint(content, *range(4000, 80_001, 4000))
    cut = content[:75_000]

    change = look(before, cut)

    assert "rewound" == change.cause
    assert max(a.offset for a in before.older if a.offset <= 75_000) == change.resume_at
    assert change.resume_at >= 60_000
    # The same where the application went on writing beyond the lost watermark.
    assert change == look(before, cut + b"different\n" * 1000)


def test_a_rewritten_file_with_the_same_first_kilobyte_begins_at_0() -> None:
    """Copy-truncate of a file with a long header: alike up to there and no further."""
    header = b"h" * FINGERPRINT_BYTES
    old = header + b"".join(b"old %07d\n" % n for n in range(1000))
    before = checkpoint(old, *range(1024, len(old), 1000))

    assert Change("truncated") == look(before, header + b"new\n" * 100)
    assert Change("mismatch") == look(before, header + b"new\n" * 9000)


def test_an_older_anchor_beyond_a_broken_one_proves_nothing() -> None:
    content = b"".join(b"%07d\n" % n for n in range(2000))
    before = checkpoint(content, 8000, 14_000, 16_000)
    broken = content[:7990] + b"*" + content[7991:14_000]

    assert {8000, 14_000} == {a.offset for a in before.older}
    assert Change("truncated") == look(before, broken)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_older_anchors_are_few_behind_the_watermark_and_were_watermarks(steps: list[int]) -> None:
    anchors: tuple[Anchor, ...] = ()
    offsets, at = [0], 0
    for step in steps:
        before, at = at, at + step
        anchors = thinned((*anchors, Anchor(before, b"")), at)
        offsets.append(at)

        kept = [a.offset for a in anchors]
        assert len(kept) <= OLDER_MAX
        assert sorted(set(kept), reverse=True) == kept
        assert all(REWIND_BYTES_MIN <= offset < at for offset in kept)
        assert set(kept) <= set(offsets)


@given(st.integers(50, 400), st.integers(1, 400))
def test_a_cut_costs_a_share_of_the_file_and_not_all_of_it(steps: int, cut: int) -> None:
    """For steady growth: at most sixteen times the cut is sent again, or a 64th of the file."""
    step, at = 100_000, 0
    kept: tuple[Anchor, ...] = ()
    for _ in range(steps):
        at += step
        kept = thinned((*kept, Anchor(at - step, b"")), at)

    size = at - min(cut, steps // 2) * step
    resumed = max((a.offset for a in kept if a.offset <= size), default=0)

    assert at - resumed <= max(16 * (at - size), at // 64 + step)


def test_a_watermark_never_goes_back() -> None:
    before = checkpoint(b"0123456789", 10)

    assert before is advance(before, before.anchor, before.fingerprint)
    with pytest.raises(AssertionError, match="9 is behind 10"):
        advance(before, Anchor(9, b""), b"")
