"""Finds personal data in decoded text and puts a marker in its place. Pure; linear time.

    cheap test of events together  ->  cheap test of each text  ->  folding, rules, markers

Most events end at the first test: digits, dots, colons and at signs are not as they would have to
be. It looks at the very bytes that would be shipped, and may only err to one side: what it lets
pass, no rule finds (tests hold it to that). What is replaced is the text as it was written; folding
serves to find (``core/folding``).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.addresses import is_version
from agent.core.decode import Decoded
from agent.core.diagnosis import Rejection
from agent.core.events import CustomEvent, Event, UnknownEvent
from agent.core.folding import folded, folds, unfolded, without_escapes
from agent.core.redaction_rules import DIGITS, KINDS, RULES, Kind, Rule
from agent.core.spans import Span, blank, blanked, merged
from agent.core.suspicion import suspects, suspicious

FAILED: Final = Rejection("redaction_failed", "the redactor failed")
UNSHOWN: Final = "[REDACTION_FAILED]"
PASSES_MAX: Final = 8
"""A marker may set free what stands beside it. What goes on for longer is not trusted."""
HASH_BYTES: Final = 8

EXEMPT: Final = frozenset(
    {
        "event_id", "request_id", "experiment_id", "timestamp", "type",
        "thumbs", "status", "experiment_type", "prompt_hash",
    }
)  # fmt: skip
"""Fields whose form ``core/decode`` has checked: a marker in one would make the event invalid.
``type`` is one that the configuration names."""


class RedactionFailed(Exception):
    """The text would not come to rest."""


class Redaction(Struct, frozen=True, kw_only=True):
    """What is looked for, and what is put in its place.

    Attributes:
        version: Of the rules, for the header ``redaction``.
        kinds: Which of the rules of ``core/redaction_rules``.
        custom: Rules beyond them, each in linear time.
        hash_key: At most 64 bytes. Given, a marker carries a hash by it, so that equal values can
            be joined; the same on all nodes, or they cannot.
    """

    version: str
    kinds: tuple[Kind, ...] = KINDS
    custom: tuple[Rule, ...] = ()
    hash_key: bytes | None = None


class Redactor:
    """Redact texts and events. One thread only.

    ``counts`` says how often each kind was replaced, and ``events_cut`` how many events lost the
    end of a text to markers, since whoever reads it last emptied it.
    """

    def __init__(self, redaction: Redaction) -> None:
        self.counts: Counter[str] = Counter()
        self.events_cut = 0
        self.header = ("redaction", redaction.version.encode())
        self._rules = (*(RULES[kind] for kind in KINDS if kind in redaction.kinds),
                       *redaction.custom)  # fmt: skip
        self._custom = bool(redaction.custom)
        self._hash_key = redaction.hash_key
        names = "|".join(re.escape(rule.kind.upper()) for rule in self._rules)
        self._marker = re.compile(rf"\[(?:{names})(?::[a-p]{{{2 * HASH_BYTES}}})?\]")

    def events(self, found: list[Event | Decoded | Rejection], texts: Sequence[bytes]) -> set[int]:
        """Redact the events of ``found`` in place; of one that cannot be, a rejection is left.

        Total. Best called with some dozens: the cheap test takes them together.

        Args:
            found: What lines were decoded to.
            texts: Of each event, in compact JSON, all that may be an app's own text; anything of a
                rejection.

        Returns:
            Which of them may have changed.
        """
        changed = set(range(len(found))) if self._custom else _suspects(texts)
        for at in changed:
            one = found[at]
            if not isinstance(one, Rejection):
                decoded = one if isinstance(one, Decoded) else Decoded(one)
                outcome = self.event(decoded)
                found[at] = outcome if decoded.cut or outcome is FAILED else one
        return changed

    def event(self, decoded: Decoded) -> Decoded | Rejection:
        """Redact ``decoded`` in place and return it, or say that it failed. Total."""
        try:
            self._walk(decoded.event, decoded)
        except Exception:  # noqa: BLE001  whatever fails, the payload must not leave
            return FAILED
        return decoded

    def text(self, text: str) -> str:
        """Return ``text`` with markers. May raise ``RedactionFailed``."""
        if not self._custom and (
            text.isalpha() or not (folds(text) or suspicious(text.encode(*_CODEC)))
        ):
            return text
        return self._at_rest(text, folded)

    def json_text(self, text: str) -> str:
        """The same for what is or was to be JSON, in which escapes hide and separate."""
        return self._at_rest(text, lambda text: folded(without_escapes(text)))

    def shown(self, path: str) -> str:
        """Return what may be shown of the name of a client or file, escaped or not. Total.

        Each name of a path is looked at by itself too, without what follows it: a number beside a
        slash, or before ``.jsonl``, is part of something else in a text.
        """
        try:
            names = (_NAMED.fullmatch(name) for name in self.json_text(path).split("/"))
            return "/".join(self.json_text(name[1]) + name[2] for name in names if name is not None)
        except Exception:  # noqa: BLE001  as above
            return UNSHOWN

    # ---- events

    def _walk(self, event: Event, decoded: Decoded) -> None:
        bounds = _BOUNDS[type(event)]
        for name in event.__struct_fields__:
            value = getattr(event, name)
            if value is None or name in EXEMPT:
                continue
            if isinstance(value, str | list | dict):
                found = self._value(value)
                if (bound := bounds.get(name)) is not None:
                    found = self._within(found, bound, decoded)
                setattr(event, name, found)
        if decoded.extras:
            decoded.extras = self._value(decoded.extras)
        self.events_cut += decoded.cut

    def _within(self, value: Any, bound: int, decoded: Decoded) -> Any:
        """Cut what markers made longer than its field may be, before a marker rather than in it."""
        if isinstance(value, list):
            return [self._within(inner, bound, decoded) for inner in value]
        for _ in range(PASSES_MAX):
            if len(value) <= bound:
                return value
            halved = (m.start() for m in self._marker.finditer(value) if m.end() > bound)
            value = self.text(value[: min(next(halved, bound), bound)])
            decoded.cut = True
        raise RedactionFailed

    def _value(self, value: Any) -> Any:
        """Depth is bounded by ``events.DEPTH_MAX``."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(inner) for inner in value]
        if isinstance(value, dict):
            return self._dict(value)
        return value

    def _dict(self, value: dict[str, Any]) -> dict[str, Any]:
        redacted: dict[str, Any] = {}
        taken: Counter[str] = Counter()
        for key, inner in value.items():
            name = marked = self.text(key)
            while name in redacted or (name != key and name in value):
                taken[marked] += 1
                name = f"{marked}#{taken[marked] + 1}"
            version = isinstance(inner, str) and not self._custom and is_version(key, inner)
            redacted[name] = inner if version else self._value(inner)
        return redacted

    # ---- texts

    def _at_rest(self, text: str, fold: Callable[[str], str]) -> str:
        for _ in range(PASSES_MAX):
            plain = fold(text)
            if not self._custom and not suspicious(plain.encode(*_CODEC)):
                return text
            found = self._found(plain)
            if not found:
                return text
            text = self._replaced(text, plain, found, fold)
        raise RedactionFailed

    def _found(self, plain: str) -> list[tuple[Span, Rule]]:
        """Return what the rules find, from left to right, without overlaps."""
        left = self._marker.sub(blank, plain) if "[" in plain else plain
        found: list[tuple[Span, Rule]] = []
        digits = sum(map(left.count, DIGITS))
        for rule in self._rules:
            if not rule.may_find(left, digits):
                continue
            spans = merged(rule.find(rule.seen(left)))
            found += [(span, rule) for span in spans]
            left = blanked(left, spans)
        return sorted(found, key=lambda one: one[0])

    def _replaced(
        self,
        text: str,
        plain: str,
        found: list[tuple[Span, Rule]],
        fold: Callable[[str], str],
    ) -> str:
        shaped = text if fold is folded else without_escapes(text)
        parts, at = [], 0
        places = unfolded(shaped, [span for span, _ in found])
        for (start, end), (span, rule) in zip(places, found, strict=True):
            parts += [text[at : max(at, start)], self._mark(rule, plain[slice(*span)])]
            at = end
            self.counts[rule.kind] += 1
        return "".join((*parts, text[at:]))

    def _mark(self, rule: Rule, found: str) -> str:
        name = rule.kind.upper()
        if self._hash_key is None:
            return f"[{name}]"
        said = f"{rule.kind}\0{rule.canonical(found)}".encode(*_CODEC)
        digest = blake2b(said, key=self._hash_key, digest_size=HASH_BYTES).hexdigest()
        return f"[{name}:{digest.translate(_LETTERS)}]"


def _suspects(texts: Sequence[bytes]) -> set[int]:
    """Return which of ``texts`` may hold what is looked for."""
    raw = b"\n".join(texts)
    found = suspects(raw)
    if not raw.isascii():
        foreign = (at for at, text in enumerate(texts) if not text.isascii())
        found.update(at for at in foreign if folds(texts[at].decode()))
    return found


def _bounds(kind: type[Event]) -> dict[str, int]:
    """Return how long a text, or one of a list, may be in the fields where that is bounded."""
    found = {field.name: _bound(field.type) for field in msgspec.structs.fields(kind)}
    return {name: bound for name, bound in found.items() if bound is not None}


def _bound(of: Any) -> int | None:
    arguments = get_args(of)
    if get_origin(of) is Annotated and arguments[0] is str:
        return next((meta.max_length for meta in arguments[1:]), None)
    if get_origin(of) in {Annotated, list, *_UNIONS}:
        return next(filter(None, map(_bound, arguments)), None)
    return None


_UNIONS: Final = {Union, UnionType}
_KINDS: Final = (*events.EVENT_TYPES.values(), CustomEvent, UnknownEvent)
_BOUNDS: Final = {kind: _bounds(kind) for kind in _KINDS}
_NAMED = re.compile(r"(.*?)((?:\.[A-Za-z]\w*(?:[.\-~]\w+)*)?)", re.DOTALL)
"""A name in a path, and what types and rotations append to it."""
_LETTERS: Final = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_CODEC: Final = ("utf-8", "surrogatepass")
