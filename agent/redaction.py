"""Reads what redaction needs from files: rules of the user's own, and the key of the hashes.

Rules run on RE2, which finds one match in linear time whatever the pattern; without that engine
they are refused, never run on another one. To find all of them may take it the square: ``a.*b|a``
looks through to the end for each a. So what a rule may look at in one text is bounded.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from agent.core.redact import Redaction, RedactionFailed, Redactor
from agent.core.redaction_rules import KINDS, VERSION, Find, Kind, Rule
from agent.core.spans import Span
from agent.errors import ConfigError
from agent.regular import problem, read
from agent.reloaded import Files, Reloaded

KEY_BYTES_MIN: Final = 16
KEY_BYTES_MAX: Final = 64
RULES_MAX: Final = 64
PATTERN_CHARACTERS_MAX: Final = 4096
FILE_BYTES_MAX: Final = 1 << 20
CUSTOM, HASH_KEY = "redact.custom", "redact.hash_key_file"
LOOKED_AT_MAX: Final = 1 << 28
"""Characters that a rule without an end looks at in one text, at worst: some 0.3 s. A text of
16 KiB is within it whatever it holds."""
_ENDLESS = re.compile(r"[*+]|,\}")
"""A pattern without these has matches of bounded length, and each costs no more than that."""
_NAME = re.compile("[a-z][a-z_]{0,31}")  # without digits: a marker must never look like a number


class Wanted(Protocol):
    """The section ``redact`` of the configuration."""

    @property
    def enabled(self) -> bool: ...
    @property
    def rules(self) -> tuple[Kind, ...]: ...
    @property
    def custom(self) -> Path | None: ...
    @property
    def hash_key_file(self) -> Path | None: ...


def load(wanted: Wanted) -> Redaction | None:
    """Return what to redact, None for nothing. Raises ``ConfigError``."""
    if not wanted.enabled:
        return None
    version, hash_key = VERSION, None
    custom: tuple[Rule, ...] = ()
    kinds = tuple(kind for kind in KINDS if kind in wanted.rules)
    if kinds != KINDS:
        version = f"{version}:{','.join(kinds)}"
    if wanted.custom is not None:
        written = _read(wanted.custom, CUSTOM)
        custom = tuple(_rules(written))
        version = f"{version}+{sha256(written).hexdigest()[:8]}"
    if wanted.hash_key_file is not None:
        hash_key = _read(wanted.hash_key_file, HASH_KEY).removesuffix(b"\n")
        if not KEY_BYTES_MIN <= len(hash_key) <= KEY_BYTES_MAX:
            allowed = f"{KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes"
            raise ConfigError(HASH_KEY, f"found {len(hash_key)} bytes; allowed: {allowed}")
    return Redaction(version=version, kinds=kinds, custom=custom, hash_key=hash_key)


def in_force(wanted: Wanted) -> Reloaded[Redaction | None]:
    """Return what ``load`` does, to be reloaded. Raises ``ConfigError``."""
    files = Files(wanted.custom, wanted.hash_key_file) if wanted.enabled else Files()
    return Reloaded(
        "redaction",
        files,
        lambda: load(wanted),
        value=load(wanted),
        version=lambda redaction: None if redaction is None else redaction.version,
    )


def shown(now: Callable[[], Redaction | None]) -> Callable[[str], str]:
    """Return what says how much of the name of a client or file may be shown.

    From any thread; ``now`` returns the redaction in force.
    """
    made: tuple[Redaction | None, Callable[[str], str]] = (None, str)

    def say(name: str) -> str:
        nonlocal made
        redaction, by = now(), made
        if by[0] is not redaction:
            by = made = redaction, (str if redaction is None else Redactor(redaction).shown)
        return by[1](name)

    return say


def _read(path: Path, key: str) -> bytes:
    try:
        return read(path, FILE_BYTES_MAX).content
    except (OSError, ValueError) as error:
        raise ConfigError(key, f"cannot be read: {problem(error)}") from None


def _rules(written: bytes) -> Iterator[Rule]:
    try:
        engine = import_module("re2")
    except ImportError:
        needed = 'found rules, but not the package google-re2; install the extra "redact"'
        raise ConfigError(CUSTOM, needed) from None
    try:
        entries = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(CUSTOM, "found no YAML; allowed: a list of rules") from None
    if not isinstance(entries, list) or not 0 < len(entries) <= RULES_MAX:
        raise ConfigError(CUSTOM, f"allowed: a list of 1 to {RULES_MAX} rules")
    names: set[str] = set(KINDS)
    for number, entry in enumerate(entries):
        yield _rule(entry, f"{CUSTOM}[{number}]", names, engine)


def _rule(entry: object, where: str, names: set[str], engine: Any) -> Rule:
    if not isinstance(entry, dict) or entry.keys() != {"name", "pattern"}:
        raise ConfigError(where, "allowed: a mapping of name and pattern")
    name, pattern = entry["name"], entry["pattern"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
        allowed = "1 to 32 of a-z and _, a letter first, each name once and none of redact.rules"
        raise ConfigError(f"{where}.name", f"allowed: {allowed}")
    names.add(name)
    if not isinstance(pattern, str) or not 0 < len(pattern) <= PATTERN_CHARACTERS_MAX:
        allowed = f"text of 1 to {PATTERN_CHARACTERS_MAX} characters"
        raise ConfigError(f"{where}.pattern", f"allowed: {allowed}")
    options = engine.Options()
    options.log_errors = False
    try:
        compiled = engine.compile(pattern, options)
    except engine.error:
        raise ConfigError(f"{where}.pattern", "allowed: a pattern in RE2's syntax") from None
    if compiled.search("") is not None:
        raise ConfigError(f"{where}.pattern", "found one that matches nothing at all")

    return Rule(name, _find(compiled), str)


def _find(compiled: Any) -> Find:
    def bounded(text: str) -> Iterator[Span]:
        return (match.span() for match in compiled.finditer(text))

    def endless(text: str) -> Iterator[Span]:
        matches_max = LOOKED_AT_MAX // max(1, len(text))
        for number, span in enumerate(bounded(text)):
            if number >= matches_max:
                raise RedactionFailed
            yield span

    return endless if _ENDLESS.search(compiled.pattern) else bounded
