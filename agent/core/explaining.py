"""Why a file is read, or is not: facts in, a verdict for a person out. Pure.

The facts come from three places: what the rules say of its name, what is known of its content, and
what the agent as a whole is doing.
"""

from msgspec import Struct

from agent.core.findings import FINDINGS, State


class Named(Struct, frozen=True, kw_only=True):
    """What the rules say of a name below the root, as the scan and the opener would.

    Attributes:
        why_not: A key of ``findings.FINDINGS`` if a rule forbids to read it.
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
        waits: A key of ``findings.FINDINGS``: what this very file waits for.
        refused: Why opening or reading it failed, in the agent's own eyes.
        pauses: Keys of ``findings.FINDINGS``, each with its detail: what holds up all files.
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
    said = f"{detail:,}" if isinstance(detail, int) else detail
    return Finding(code, what.format(said).rstrip(" :"), remedy)
