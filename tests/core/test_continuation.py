from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.core.continuation import (
    CANDIDATES_MAX,
    CONTINUE_BYTES_MIN,
    STILL_S,
    WAIT_S,
    Candidate,
    Continuation,
    Index,
    Sighting,
    continues,
)
from agent.core.identity import ANCHOR_BYTES, FINGERPRINT_BYTES, Birth, Checkpoint, examine
from tests.core.test_identity import CONTENT, checkpoint, reader

BORN_NS = 1_000_000_000_000_000_000
ORIGINAL = Birth(1, BORN_NS, 1, 1)
COPY = Birth(2, BORN_NS + 3600 * 10**9, 2, 1)
GONE_AT = BORN_NS / 1e9 + 3601.0


def known(content: bytes, *watermarks: int, gone_at: float | None = GONE_AT) -> Checkpoint:
    return replace(checkpoint(content, *watermarks, birth=ORIGINAL), gone_at=gone_at)


def judge(
    sources: list[Checkpoint],
    content: bytes,
    *,
    birth: Birth = COPY,
    path: str = "c/a.jsonl.1",
    client: str = "c",
    size: int | None = None,
    still_s: float = 0.0,
    waited_s: float = 0.0,
    same: bool | None = None,
    outgrown: bool = False,
) -> Continuation:
    """What the agent does with an unknown file: look up, read what is asked for, decide."""
    sighting = Sighting(birth, len(content), path, client, still_s, waited_s, outgrown)
    candidates = [
        Candidate(c, examine(c, birth, len(content), reader(content)), size, same)
        for c in Index(sources).alike(sighting, content[:FINGERPRINT_BYTES])
    ]
    return continues(sighting, candidates)


LINES = b"".join(b'{"id":%06d}\n' % n for n in range(1000))


@settings(deadline=None)
@given(st.data())
def test_the_copy_of_a_truncated_file_ships_its_unread_tail_as_the_source(
    data: st.DataObject,
) -> None:
    content = data.draw(CONTENT.filter(lambda c: len(c) >= CONTINUE_BYTES_MIN))
    watermark = data.draw(st.integers(CONTINUE_BYTES_MIN, len(content)))
    source = known(content, watermark)

    assert Continuation("copy", watermark, source) == judge([source], content)


@settings(deadline=None)
@given(st.data())
def test_an_unknown_file_skips_no_byte_that_was_not_settled(data: st.DataObject) -> None:
    """Whatever is skipped begins as the source did, and ends as it did there."""
    old, new = data.draw(CONTENT), data.draw(CONTENT)
    new = old[: data.draw(st.integers(0, len(old)))] + new
    source = known(old, *data.draw(st.lists(st.integers(0, len(old)), min_size=1, max_size=9)))

    got = judge([source], new)

    at = got.resume_at
    assert at <= min(len(new), source.watermark)
    assert bool(at) == (got.verdict in {"copy", "short_copy"})
    if at:
        assert at >= CONTINUE_BYTES_MIN
        covered = min(FINGERPRINT_BYTES, source.watermark)
        assert old[:covered] == new[:covered]
        assert old[max(0, at - ANCHOR_BYTES) : at] == new[max(0, at - ANCHOR_BYTES) : at]


def test_a_tiny_file_is_read_in_full() -> None:
    """Ten equal bytes are alike by chance: twice is better than never."""
    tiny = b'{"n":123}\n'

    assert Continuation("new") == judge([known(tiny, len(tiny))], tiny)
    edge = b"x" * (CONTINUE_BYTES_MIN - 1)
    assert Continuation("new") == judge([known(edge, len(edge))], edge)


def test_a_thousand_files_with_the_same_first_kilobyte_are_a_thousand_files() -> None:
    header = b"h" * FINGERPRINT_BYTES
    contents = [header + b"%d\n" % n * 50 for n in range(1000)]
    births = [replace(ORIGINAL, inode=n) for n in range(1000)]
    index = Index(
        replace(
            checkpoint(content, len(content), birth=birth),
            path=f"c/{n}.jsonl",
            gone_at=GONE_AT,
        )
        for n, (content, birth) in enumerate(zip(contents, births, strict=True))
    )

    for number in (0, 17, 999):
        sighting = Sighting(COPY, len(contents[number]), f"c/{number}.jsonl.1", "c")
        alike = index.alike(sighting, contents[number][:FINGERPRINT_BYTES])
        assert [births[number]] == [c.birth for c in alike]


def test_files_of_one_name_and_header_are_told_apart_by_the_anchor() -> None:
    header = b"h" * FINGERPRINT_BYTES
    sources = [
        replace(
            checkpoint(header + b"%06d\n" % n, 1031, birth=replace(ORIGINAL, inode=10 + n)),
            gone_at=GONE_AT,
        )
        for n in range(40)
    ]

    got = judge(sources, header + b"000017\nmore\n")

    assert Continuation("copy", 1031, sources[17]) == got
    assert Continuation("new") == judge(sources, header + b"777777\nmore\n")


def test_the_header_alone_settled_does_not_swallow_another_clients_or_names_header() -> None:
    """A source settled to the end of a common header looks like every file with that header."""
    header = b"h" * FINGERPRINT_BYTES
    source = known(header, FINGERPRINT_BYTES)

    assert "copy" == judge([source], header + b"tail\n").verdict
    assert "new" == judge([source], header + b"tail\n", client="d").verdict
    for name in ("b.jsonl", "ab.jsonl", "aa-1.jsonl"):
        assert "new" == judge([source], header + b"tail\n", path=f"c/{name}").verdict


def test_the_names_a_rotation_gives_are_known() -> None:
    source = known(LINES, 5000)
    for name in ("a.jsonl.1", "a.jsonl-20260101", "a-20260101.jsonl", "a.1.jsonl", "old/a.jsonl~"):
        assert "copy" == judge([source], LINES, path=f"c/{name}").verdict


def test_a_file_born_after_its_original_was_gone_is_no_copy_of_it() -> None:
    late = replace(COPY, born_ns=int((GONE_AT + 60) * 1e9))
    early = replace(COPY, born_ns=BORN_NS - 60 * 10**9)
    untold = replace(COPY, born_ns=0)
    source = known(LINES, 5000)

    assert "new" == judge([source], LINES, birth=late).verdict
    assert "new" == judge([source], LINES, birth=early).verdict
    assert "copy" == judge([source], LINES, birth=untold).verdict


def test_of_equal_generations_the_first_to_go_after_the_birth_is_the_original() -> None:
    """The same content rotated twice, and found after a restart."""
    first = known(LINES, 5000)
    second = replace(first, generation=1, gone_at=GONE_AT + 86_400)
    later = replace(COPY, born_ns=COPY.born_ns + 86_400 * 10**9)

    assert first == judge([second, first], LINES).source
    assert second == judge([second, first], LINES, birth=later).source


def test_a_copy_beside_its_intact_original_waits_for_the_truncation() -> None:
    """Until then both hold the same unread tail, and only one may ship it."""
    source = known(LINES, 5000, gone_at=None)

    assert "wait" == judge([source], LINES, size=len(LINES)).verdict
    assert "wait" == judge([source], LINES[:3000], size=len(LINES)).verdict  # still being made
    assert "wait" == judge([source], b"", size=len(LINES)).verdict
    # Truncated, and its reader has yet to notice: the copy cannot be judged before.
    assert "wait" == judge([source], LINES, size=0, still_s=STILL_S).verdict


def test_waiting_ends() -> None:
    """For a file that goes on growing, or whose original stays cut: nothing is held for ever."""
    source = known(LINES, 5000, gone_at=None)

    assert "new" == judge([source], LINES, size=len(LINES), waited_s=WAIT_S).verdict
    assert "new" == judge([source], LINES, size=0, waited_s=WAIT_S).verdict


def test_a_copy_at_rest_beside_its_intact_original_is_compared_with_it() -> None:
    """Fingerprint and anchor are a few bytes of it: enough to wait a while, not to skip it."""
    source = known(LINES, 5000, gone_at=None)

    def at_rest(same: bool | None = None, waited_s: float = STILL_S) -> Continuation:
        return judge(
            [source], LINES, size=len(LINES), still_s=STILL_S, waited_s=waited_s, same=same
        )

    assert Continuation("compare", source=source) == at_rest()
    assert "wait" == at_rest(same=True).verdict
    assert "wait" == at_rest(same=True, waited_s=10 * WAIT_S).verdict
    assert "new" == at_rest(same=False).verdict


def test_a_whole_copy_that_is_written_to_is_a_file_of_its_own_at_once() -> None:
    source = known(LINES, 5000, gone_at=None)

    got = judge([source], LINES, size=len(LINES) + 50, outgrown=True)

    assert "new" == got.verdict


def test_a_whole_copy_of_what_was_settled_begins_at_its_end() -> None:
    """Nothing of it is sent again, though no anchor stands where it ends."""
    source = known(LINES, 12_000)

    assert "new" == judge([source], LINES[:5005]).verdict
    assert Continuation("short_copy", 5005, source) == judge([source], LINES[:5005], same=True)


def test_a_whole_copy_whose_original_is_being_cut_waits_for_its_reader_to_notice() -> None:
    """However little of the original was settled, so that its size alone tells nothing."""
    source = known(LINES, 500, gone_at=None)

    assert "wait" == judge([source], LINES, size=600, still_s=STILL_S, same=True).verdict
    assert "new" == judge([source], LINES, size=600, same=True, waited_s=WAIT_S).verdict


def test_a_file_that_outgrows_its_intact_likeness_is_new_at_once() -> None:
    """A copy is never longer than what it was made from."""
    source = known(LINES, 5000, gone_at=None)

    assert "new" == judge([source], LINES, size=5000).verdict


def test_a_growing_file_that_differs_at_an_older_anchor_does_not_wait() -> None:
    source = known(LINES, *range(2000, 12_001, 1000), gone_at=None)
    other = LINES[:1100] + b"*" * 9000

    assert "new" == judge([source], other, size=len(LINES)).verdict


def test_a_copy_made_before_the_last_lines_were_settled_begins_near_its_end() -> None:
    """Lines written between copy and truncation were read from the original."""
    source = known(LINES, *range(1000, 12_001, 1000))

    got = judge([source], LINES[:11_500])

    assert "short_copy" == got.verdict
    assert 6000 <= got.resume_at <= 11_500


def test_an_owner_is_known_by_what_was_put_last() -> None:
    source = known(LINES, 5000)
    later = replace(source, generation=1)
    index = Index()
    sighting = Sighting(COPY, len(LINES), "c/a.jsonl.1", "c")

    def generations() -> list[int]:
        return [c.generation for c in index.alike(sighting, LINES[:FINGERPRINT_BYTES])]

    index.put("one", source)
    index.put("another", source, later)
    assert [0, 1] == generations()
    index.put("another", later)
    assert [0, 1] == generations()
    index.put("one")
    assert [1] == generations()
    index.put("another")
    index.put("nobody")

    assert [] == generations()
    assert ({}, {}, {}) == (index._buckets, index._lengths, index._rows)


def test_what_one_file_is_compared_with_is_bounded() -> None:
    sources = [
        replace(known(LINES, 5000), birth=replace(ORIGINAL, inode=10 + n)) for n in range(500)
    ]
    sighting = Sighting(COPY, len(LINES), "c/a.jsonl.1", "c")

    assert CANDIDATES_MAX == len(Index(sources).alike(sighting, LINES[:FINGERPRINT_BYTES]))
