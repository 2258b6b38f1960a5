"""What personal data looks like: one rule for each kind, and what only looks like it. Pure.

A rule is a pattern and a test of what it found. Every quantifier is bounded, so a rule takes time
in proportion to the text, whatever the text. Sources: RFC 5321 and 6531 (addresses), ISO/IEC 7812
(cards), ISO 13616 (IBAN), SSA (social security numbers); phones are in ``core/phones``.
"""

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Final, Literal, NamedTuple, get_args

from agent.core.addresses import ipv4s, ipv6s
from agent.core.phones import phones, without_others
from agent.core.spans import Span, blank

VERSION: Final = "3"
"""Of the rules, sent with every event. To be raised when any of them finds more or less."""

Kind = Literal["email", "iban", "card", "ssn", "ipv6", "ipv4", "phone"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order in which they look: what one found the next ones do not see."""

DIGITS: Final = "0123456789"

Find = Callable[[str], Iterator[Span]]


class Rule(NamedTuple):
    kind: str
    find: Find
    """Yield where it is found in a folded text; overlaps and any order are allowed."""
    canonical: Callable[[str], str]
    """The same for each way to write the same thing, so that hashes of it are equal."""
    needed: tuple[str, int] = ("", 0)
    """It finds nothing in a text that has fewer than so many of these characters."""
    digits_min: int = 0
    """Nor in one with fewer digits,"""
    shape: re.Pattern[str] | None = None
    """nor in one in which this is not found: many times as fast as what it finds it by."""
    seen: Callable[[str], str] = str
    """Hides what is not its kind: ``find`` must not see that, and other rules may."""

    def may_find(self, text: str, digits: int) -> bool:
        """Return False only if it finds nothing in ``text``, which has so many ``DIGITS``."""
        characters, least = self.needed
        return (
            digits >= self.digits_min
            and sum(map(text.count, characters)) >= least
            and (self.shape is None or self.shape.search(text) is not None)
        )


# ---- e-mail: from each at sign to both sides

_DOMAIN = re.compile(
    r"(?:@|%40)(?![1-4]x\.)"  # icon@2x.png
    r"(?:(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}"
    r"|\[?[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])\]?)"
)
_LOCAL_REVERSED = re.compile(
    r"[\w.!#$%*+^~'-]{0,127}[\w!#$%*+^~-]"
    r'|"[^"\n\\:,{}\[\]]{1,64}"'  # "jo doe"@example.com
)
"""Without what RFC 5322 allows and texts use around an address: / = ? & | { } and the backtick."""


def _emails(text: str) -> Iterator[Span]:
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        if local := _LOCAL_REVERSED.match(text[max(0, at - 128) : at][::-1]):
            yield at - local.end(), domain.end()


# ---- IBAN: the country says how long it is, the checksum whether it is one

_IBAN_HEAD = re.compile(r"(?<![0-9A-Za-z])([A-Za-z]{2})[ -]?[0-9][ -]?[0-9](?=[ .-]?[0-9A-Za-z])")
_IBAN_SHAPE = re.compile(r"[A-Za-z][ -]?[0-9][ -]?[0-9]")
_SEVEN = re.compile(r"[0-9]{7}")
_IBAN_BODY = re.compile(r"(?:[ .-]?[0-9A-Za-z]){11,30}")
_IBAN_LENGTHS: Final = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FK FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ DZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
}
"""Of the registry of ISO 13616 (SWIFT)."""


def _ibans(text: str) -> Iterator[Span]:
    for head in _IBAN_HEAD.finditer(text):
        length = _IBAN_LENGTHS.get(head[1].upper())
        body = _IBAN_BODY.match(text, head.end()) if length is not None else None
        if length is None or body is None:
            continue
        places = [at for at in range(body.start(), body.end()) if text[at].isalnum()]
        if len(places) < length - 4:
            continue
        end = places[length - 5] + 1
        if not text[end : end + 1].isalnum() and _iban_checks(_alnum(text[head.start() : end])):
            yield head.start(), end


def _iban_checks(iban: str) -> bool:
    """ISO 7064, MOD 97-10. In every country's form the number of the bank or account is long."""
    return (
        _SEVEN.search(iban) is not None
        and int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1
    )


# ---- payment cards: grouped as they are printed, of a known issuer, with a checksum

_CARD = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9][-.])(?:"
    r"[0-9]{4}([ .-]{1,3})[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?"
    r"|[0-9]{4}[ .-][0-9]{6}[ .-][0-9]{4,5}"
    r"|[0-9]{13,19}"
    r")(?![0-9A-Za-z]|[-.][0-9])"
)
_CARD_SHAPE = re.compile(r"[0-9](?:[ .-]{0,3}[0-9]){11}")
_ISSUER = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-59]|[689][0-9])[0-9]{11,13}"  # Diners
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}|(?:1800|2131)[0-9]{11}"  # JCB
    r"|(?:6011|65[0-9]{2}|64[4-9][0-9])[0-9]{12}"  # Discover
    r"|(?:62|81)[0-9]{14,17}"  # UnionPay
    r"|(?:50|5[6-9]|6[0-9])[0-9]{14,17}"  # Maestro, RuPay
    r"|220[0-4][0-9]{12}|9792[0-9]{12}"  # Mir, Troy
)
_CARD_NAMED = re.compile(
    r"(?<![A-Za-z])(?:card|cc|visa|master ?card|maestro|amex|american express)"
    r"[^0-9\n]{0,24}([0-9](?:[ -]?[0-9]){11,18})(?![0-9A-Za-z]|[-.][0-9])",
    re.IGNORECASE,
)
"""Of any issuer and in any groups: the word says what it is, the checksum that it may be one."""


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = _digits(match[0])
        if _ISSUER.fullmatch(number) and _luhn(number):
            yield match.span()
    for match in _CARD_NAMED.finditer(text):
        if _luhn(_digits(match[1])):
            yield match.span(1)


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = sum(int("0246813579"[int(digit)]) for digit in number[-2::-2])
    return (doubled + sum(map(int, number[-1::-2]))) % 10 == 0


# ---- US social security numbers: with hyphens or spaces, or named as what they are

_SSN = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9A-Za-z][-.])"
    r"(?<!\+[0-9][ -])(?<!\+[0-9]{2}[ -])(?<!\+[0-9]{3}[ -])"  # +992 372 12 3456
    r"(?!000|666|9)[0-9]{3}([- ])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![0-9A-Za-z]|[-.][0-9A-Za-z])"
)
_SSN_SHAPE = re.compile(r"[0-9]{3}[-. ]?[0-9]{2}[-. ]?[0-9]{4}")
_SSN_NAMED = re.compile(
    r"(?<![A-Za-z])(?:ssn|social[ _-]?security)[^0-9\n]{0,24}"
    r"((?!000|666|9)[0-9]{3}[-. ]?[0-9]{2}[-. ]?[0-9]{4})(?![0-9A-Za-z])",
    re.IGNORECASE,
)


def _ssns(text: str) -> Iterator[Span]:
    for match in _SSN.finditer(text):
        yield match.span()
    for match in _SSN_NAMED.finditer(text):
        yield match.span(1)


# ---- all together


_UUID = re.compile(
    r"(?<![0-9A-Za-z])[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z])"
)
"""The last two parts of one in 60,000 are together a valid Belgian IBAN."""
_UUID_DASHES: Final = 4


def without_uuids(text: str) -> str:
    return _UUID.sub(blank, text) if text.count("-") >= _UUID_DASHES else text


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def _alnum(text: str) -> str:
    return re.sub(r"[^0-9A-Z]", "", text.upper())


RULES: Final[dict[Kind, Rule]] = {
    "email": Rule("email", _emails, lambda found: found.replace("%40", "@").lower(), ("@%", 1)),
    "iban": Rule("iban", _ibans, _alnum, digits_min=7, shape=_IBAN_SHAPE, seen=without_uuids),
    "card": Rule("card", _cards, _digits, digits_min=12, shape=_CARD_SHAPE, seen=without_uuids),
    "ssn": Rule("ssn", _ssns, _digits, digits_min=9, shape=_SSN_SHAPE),
    "ipv6": Rule("ipv6", ipv6s, lambda found: str(IPv6Address(found)), (":", 2)),
    "ipv4": Rule(
        "ipv4", ipv4s, lambda found: ".".join(str(int(n)) for n in found.split(".")), (".", 3)
    ),
    "phone": Rule("phone", phones, _digits, digits_min=7, seen=without_others),
}
assert tuple(RULES) == KINDS
