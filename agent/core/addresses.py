"""What an address of the internet protocol looks like, and what is only a version. Pure.

Linear time. Sources: RFC 4291 (IPv6), RFC 1123 (IPv4 in dots).
"""

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from agent.core.spans import Span

_IPV6 = re.compile(
    r"(?<![0-9A-Fa-f:.])[0-9A-Fa-f:]{2,45}(?:\.[0-9]{1,3}){0,3}(?![0-9A-Fa-f:]|\.[0-9])"
)
_HEXTETS_SHORT: Final = 12
"""Of a shorter one a digit is asked for, or ``a::b`` and ``dead::beef`` would be addresses."""
_IPV4 = re.compile(
    r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
    r"(?![0-9A-Za-z_]|\.[0-9A-Za-z]|-(?:rc|alpha|beta|dev|pre|snapshot))"
)
_VERSION_BEFORE = re.compile(
    r"(?:(?<![A-Za-z])(?:v|ver|version|release|build|rev|revision|upgraded? (?:to|from)"
    r"|firmware|driver|sdk|android|chrome|firefox|safari|edge|ios|java|jdk|macos|windows|oracle)"
    r"[ .:=]{0,3}"
    r"|[A-Za-z]/|\.-)\Z",
    re.IGNORECASE,
)
"""``version 10.0.0.1`` and ``Chrome/120.0.0.0``."""
_ONE_DIGIT_EACH: Final = 7
"""Characters of ``9.6.0.2``: a version nearly always, since of 400,000 addresses one looks so."""
_ADDRESS_BEFORE = re.compile(
    r"(?<![A-Za-z])(?:ip(?:v4)?|addr(?:ess)?|host|peer|gateway|dns|ping"
    r"|(?:connect(?:ion|ed|ing)?|log(?:in|ged in)|request) (?:from|to))"
    r"(?: (?:is|was))?[^0-9A-Za-z]{0,3}\Z",
    re.IGNORECASE,
)
_PORT_OR_MASK = re.compile(r"[:/][0-9]{1,5}(?![0-9A-Za-z])")
_BEFORE_CHARACTERS: Final = 24
_VERSION_KEY = re.compile(r"(?:version|build|release|firmware)\Z", re.IGNORECASE)


def ipv6s(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        (start, end), found = match.span(), match[0]
        if found[0] == ":" and found[:2] != "::":
            start, found = start + 1, found[1:]
        elif text[max(0, start - 1) : start].isalnum():
            continue  # std::abs
        if found[-1:] == ":" and found[-2:] != "::":
            end, found = end - 1, found[:-1]
        if found.count(":") >= 2 and not text[end : end + 1].isalnum() and _is_ipv6(found):  # noqa: PLR2004  fewer are none
            yield start, end


def _is_ipv6(found: str) -> bool:
    try:
        IPv6Address(found)
    except AddressValueError:
        return False
    return len(found) >= _HEXTETS_SHORT or any("0" <= c <= "9" for c in found)


def ipv4s(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        start, end = match.span()
        if all(int(octet) <= 255 for octet in match[0].split(".")):  # noqa: PLR2004  an octet
            before = text[max(0, start - _BEFORE_CHARACTERS) : start]
            if not _VERSION_BEFORE.search(before) and (
                end - start > _ONE_DIGIT_EACH
                or _ADDRESS_BEFORE.search(before)
                or _PORT_OR_MASK.match(text, end)
            ):
                yield start, end


def is_version(key: str, value: str) -> bool:
    """Return whether ``value`` is what looks like an address, and ``key`` says that it is none."""
    return _VERSION_KEY.search(key) is not None and _IPV4.fullmatch(value) is not None
