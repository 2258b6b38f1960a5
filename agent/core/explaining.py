"""Why a file is read, or is not: facts in, a verdict for a person out. Pure.

The facts come from three places: what the rules say of its name, what is known of its content, and
what the agent as a whole is doing.
"""

from typing import Literal, NamedTuple

from msgspec import Struct

State = Literal["current", "behind", "waiting", "not_read", "gone"]
"""``current``: every whole line is settled. ``behind``: it is being read. ``waiting``: nothing is
wrong with it, but it is not read now. ``not_read``: it gives no lines until somebody acts."""


class Named(Struct, frozen=True, kw_only=True):
    """What the rules say of a name below the root, as the scan and the opener would.

    Attributes:
        why_not: A key of ``FINDINGS`` if a rule forbids to read it.
        detail: What that rule names: a pattern, a directory, a number.
        client: Whose it is.
    """

    path: str
    client: str = ""
    why_not: str | None = None
    detail: str = ""
    size: int | None = None
    mtime_ns: int | None = None
    inode: int | None = None


class Known(Struct, frozen=True, kw_only=True):
    """What is known of its content.

    Attributes:
        read_to: Up to where it was read, settled or not.
        open: Whether a descriptor of it is held.
        packed: It is compressed; offsets are those of its content, which has ``packed_size`` bytes
            as far as is known.
        continues: The source as whose continuation it is read, if it is a copy.
        change: Why the next generation begins, if the content is not what it was.
    """

    source: str
    generation: int
    watermark: int
    read_to: int
    in_flight_bytes: int = 0
    open: bool = False
    torn: bool = False
    packed: bool = False
    packed_size: int | None = None
    continues: str | None = None
    gone_at: float | None = None
    change: str | None = None
    resume_at: int = 0


class Doing(Struct, frozen=True, kw_only=True):
    """What the agent is doing: with this file, and in general.

    Attributes:
        waits: A key of ``FINDINGS``: what this very file waits for.
        refused: Why opening or reading it failed, in the agent's own eyes.
        pauses: Keys of ``FINDINGS``, each with its detail: what holds up all files.
    """

    running: bool
    waits: str | None = None
    waits_detail: str = ""
    refused: str | None = None
    refused_detail: str = ""
    pauses: tuple[tuple[str, str], ...] = ()


class Finding(Struct, frozen=True):
    """One thing that matters: what is so, and what to do about it; "" where nothing is."""

    code: str
    what: str
    remedy: str = ""


class Verdict(Struct, frozen=True, kw_only=True):
    state: State
    lag_bytes: int
    findings: tuple[Finding, ...]


class _Text(NamedTuple):
    state: State | None
    what: str
    remedy: str = ""


FINDINGS: dict[str, _Text] = {
    "root": _Text("not_read", "source.root cannot be read: {0}", "mount it, or set source.root"),
    "outside": _Text(
        "not_read", "it does not lie below source.root", "`feedback-agent backfill` ships any file"
    ),
    "missing": _Text("gone", "there is no such file: {0}"),
    "symlink": _Text(
        "not_read", "{0} is a symbolic link", "write the file itself: links are never followed"
    ),
    "too_deep": _Text(
        "not_read", "it lies below more than {0} directories", "raise source.depth_max"
    ),
    "not_included": _Text(
        "not_read", "its name matches none of source.include: {0}", "rename it, or add a pattern"
    ),
    "excluded": _Text(
        "not_read", "its name matches {0} of source.exclude", "rename it, or take out the pattern"
    ),
    "not_regular": _Text("not_read", "it is no regular file {0}", "write a plain file"),
    "other_device": _Text(
        "not_read", "it lies on another file system than source.root", "write it below the root"
    ),
    "permission": _Text(
        "not_read",
        "the agent may not read it {0}",
        "let its user read it, and enter its directories",
    ),
    "links": _Text(
        "not_read",
        "it has more than one name (hard links) {0}",
        "remove the other names: one of them may be another client's",
    ),
    "old": _Text(
        "not_read",
        "it was last written to {0} ago, longer than source.ignore_older_s",
        "write to it, or raise that; `feedback-agent backfill` ships it as it is",
    ),
    "corrupt": _Text("not_read", "its content cannot be unpacked {0}", "compress it again"),
    "error": _Text("not_read", "reading it fails {0}", "look at the disk and the kernel's log"),
    "too_many": _Text(
        "not_read",
        "its client has more names below the root than are looked at {0}",
        "remove files and directories of that client",
    ),
    "gone": _Text("gone", "it is deleted {0}"),
    "copy": _Text(
        "waiting",
        "it begins like another file: it may be the copy that rotation leaves, whose lines are "
        "settled already",
        "wait: it is read as soon as it is known to be a file of its own",
    ),
    "opening": _Text(
        "waiting",
        "as many files are open as may be",
        "wait, or raise source.descriptors_max",
    ),
    "scan": _Text("waiting", "no scan has taken it yet", "wait for source.scan_s"),
    "over_limit": _Text(
        "waiting",
        "there are more files than source.files_max or source.client_files_max allow",
        "delete old files, or raise the limit",
    ),
    "unpacking": _Text("waiting", "it is being unpacked to find out whose content it is"),
    "quota": _Text(
        "waiting", "its client is over a limit: {0}", "raise quota.client or dlq.lines_per_s_max"
    ),
    "unread": _Text("waiting", "nothing of it was read yet: a start reads it from its beginning"),
    "at_end": _Text(
        "waiting", "the first start passes over what is there: source.start_at is `end`"
    ),
    "no_kafka": _Text(
        "waiting", "Kafka was not reached yet ({0})", "kafka.start_s later lines go to the spool"
    ),
    "in_flight": _Text(
        "waiting", "in_flight is full: {0}", "wait for Kafka's answers; see /status"
    ),
    "spool_full": _Text(
        "waiting", "the spool is full ({0})", "bring Kafka back, or make room: nothing is dropped"
    ),
    "catching_up": _Text(
        "waiting", "the spool is replayed, and new lines wait so that it ends ({0})"
    ),
    "stopping": _Text("waiting", "the agent is stopping", "the next start goes on"),
    "spooling": _Text(None, "Kafka is away ({0}): lines are settled in the spool on this node"),
    "changed": _Text(None, "its content is not what it was ({0}): the next generation begins"),
    "packed": _Text(None, "it is compressed: offsets are those of its content"),
    "continues": _Text(None, "it goes on as a copy of {0}"),
    "torn": _Text(None, "its last {0} bytes are a line without its end, which waits for its LF"),
    "behind": _Text(None, "{0} bytes wait to be settled"),
    "down": _Text(None, "no agent runs: this is what its checkpoints say", "start it"),
    "remembered": _Text(None, "its checkpoint is remembered as source {0}"),
}
"""Every finding: the state that it means by itself, its text, and what to do."""


def explain(named: Named, known: Known | None, doing: Doing) -> Verdict:
    """Say why the file is read or not. Total: whatever the facts, there is a verdict."""
    lag = _lag(named, known)
    found = [*_rules(named, known, doing), *_content(named, known, lag)]
    if doing.waits is not None and not any(map(_state, found)):
        found.append(_finding(doing.waits, doing.waits_detail))
    holding = lag > 0 and not any(_state(f) in {"not_read", "gone"} for f in found)
    found += [
        _finding(code, detail)
        for code, detail in doing.pauses
        if holding or FINDINGS[code].state is None
    ]
    if not doing.running:
        found.append(_finding("down"))
    elif known is None and not any(map(_state, found)):
        found.append(_finding("scan"))
    return Verdict(state=_worst(found, lag, doing), lag_bytes=lag, findings=tuple(found))


def _rules(named: Named, known: Known | None, doing: Doing) -> list[Finding]:
    """Return why it may not be read, in the agent's own eyes where it has looked."""
    if doing.refused not in {None, named.why_not}:
        assert doing.refused is not None
        return [_finding(doing.refused, doing.refused_detail)]
    waived = known is not None and named.why_not in {"links", "old"}  # of unknown files only
    if named.why_not is None or waived:
        return []
    return [_finding(named.why_not, named.detail)]


def _content(named: Named, known: Known | None, lag: int) -> list[Finding]:
    if known is None:
        return []
    found = [_finding("packed")] if known.packed else []
    if known.continues is not None:
        found.append(_finding("continues", known.continues))
    if known.change is not None:
        found.append(_finding("changed", known.change))
    if named.size is None:
        found.append(_finding("remembered", known.source))
    elif known.torn and lag:
        found.append(_finding("torn", lag))
    elif lag:
        found.append(_finding("behind", lag))
    return found


def _lag(named: Named, known: Known | None) -> int:
    if named.size is None:
        return 0
    if known is None:
        return named.size if named.why_not is None else 0
    if known.packed:
        return max(0, (known.packed_size or 0) - known.watermark)
    return max(0, named.size - (known.resume_at if known.change else known.watermark))


def _worst(found: list[Finding], lag: int, doing: Doing) -> State:
    states = {_state(finding) for finding in found}
    for state in ("gone", "not_read", "waiting"):
        if state in states:
            return state
    if not lag or {f.code for f in found} & {"torn"}:
        return "current"
    return "behind" if doing.running else "waiting"


def _state(finding: Finding) -> State | None:
    return FINDINGS[finding.code].state


def _finding(code: str, detail: object = "") -> Finding:
    _, what, remedy = FINDINGS[code]
    return Finding(code, what.format(detail).rstrip(" :"), remedy)
