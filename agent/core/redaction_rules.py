"""What personal data looks like: one rule for each kind, and what only looks like it. Pure.

A rule is a pattern and a test of what it found. Every quantifier is bounded, so a rule takes time
in proportion to the text, whatever the text. Sources: RFC 5321 and 6531 (addresses), ISO/IEC 7812
(cards), ISO 13616 (IBAN), ITU-T E.164 and E.123 (phones), SSA (social security numbers).
"""

import re
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv6Address
from typing import Final, Literal, NamedTuple, get_args

VERSION: Final = "1"
"""Of the rules, sent with every event. To be raised when any of them finds more or less."""

Kind = Literal["email", "iban", "card", "ssn", "ipv6", "ipv4", "phone"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""In the order in which they look: what one found the next ones do not see."""

Span = tuple[int, int]
Find = Callable[[str], Iterator[Span]]

NEVER = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    # UUIDs
    r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
    # dates, with a time or without
    r"|(?:(?:19|20)[0-9]{2}([-./])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])([-./])(?:0?[1-9]|[12][0-9]|3[01])\2(?:19|20)[0-9]{2})"
    r"(?:[Tt ,_]{1,2}[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?"
    r"(?: ?[+-][0-9]{2}:?[0-9]{2})?[Zz]?)?"
    r")(?![0-9A-Za-z]|[-./][0-9])"
)
"""Digits that are no phone number, whatever stands around them."""


class Rule(NamedTuple):
    kind: str
    find: Find
    """Yield where it is found in a folded text, in order."""
    canonical: Callable[[str], str]
    """The same for each way to write the same thing, so that hashes of it are equal."""


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


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = _digits(match[0])
        if _ISSUER.fullmatch(number) and _luhn(number):
            yield match.span()


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = sum(int("0246813579"[int(digit)]) for digit in number[-2::-2])
    return (doubled + sum(map(int, number[-1::-2]))) % 10 == 0


# ---- US social security numbers: with hyphens or spaces, or named as what they are

_SSN = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9A-Za-z][-.])"
    r"(?!000|666|9)[0-9]{3}([- ])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![0-9A-Za-z]|[-.][0-9A-Za-z])"
)
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


# ---- addresses of the internet protocol

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
    r"(?:(?<![A-Za-z])(?:v|ver|version|release|build|rev|revision|upgraded? (?:to|from))[ .:=]{0,3}"
    r"|[A-Za-z]/|\.-)\Z",
    re.IGNORECASE,
)
"""``version 10.0.0.1`` and ``Chrome/120.0.0.0``."""


def _ipv6s(text: str) -> Iterator[Span]:
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


def _ipv4s(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        start, end = match.span()
        if all(int(octet) <= 255 for octet in match[0].split(".")):  # noqa: PLR2004  an octet
            before = text[max(0, start - 16) : start]
            if not _VERSION_BEFORE.search(before):
                yield start, end


# ---- phones: what says by its form that it is one; else the words before must say so

_SEP = r"[ ./-]"
_PHONE = re.compile(
    r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][-.])(?:"
    # +49 (0) 30 123456, +1-415-555-0123, 0044 20 7946 0958
    r"(?P<plus>(?:\(\+|\+ ?\(?|00 ?)[1-9][0-9]{0,3}\)?"
    r"(?:(?! 00[1-9][0-9]{1,2} )[ ./()-]{0,3}[0-9]){5,14})"
    # (415) 555-0123, 1-415-555-0123, (030) 1234567, (11) 91234-5678
    r"|(?:\+?1[ .-]?)?\([0-9]{2,5}\)[ -]{0,2}[0-9]{3,5}(?:[ -]?[0-9]{2,5}){0,3}"
    r"|(?:1[ .-]?)?[2-9][0-9]{2}([ .-])[0-9]{3}\2[0-9]{4}"
    # 8 (495) 123-45-67
    rf"|8[ -]?\(?[0-9]{{3}}\)?[ -][0-9]{{3}}[ -][0-9]{{2}}[ -][0-9]{{2}}"
    # 020 7946 0958, 01 23 45 67 89, 0171/1234567, 07700900123
    rf"|(?P<trunk>0[1-9][0-9]{{0,4}}(?:{_SEP}{{0,2}}[0-9]){{5,9}})"
    # 138 1234 5678, 98765 43210
    r"|(?P<weak>1[3-9][0-9]([ -])[0-9]{4}\5[0-9]{4}|[6-9][0-9]{4}[ -][0-9]{5})"
    r")(?:[ ,;]{0,2}(?:ext|x|extension|#)[. :]{0,2}[0-9]{1,6})?"
    r"(?![0-9A-Za-z_]|[./-][0-9A-Za-z])",
)
_PHONE_NAMED = re.compile(
    r"(?<![^\W_])(?:tel|tele(?:ph|f)(?:one|ono|oon|on)|tlf|fon|f?phone|mobile?|mobiltelefon|m[óo]vil"
    r"|celular|cell(?:phone)?|call(?: me)?(?: (?:at|on|under))?|fax|whats ?app|sms|text me(?: at)?"
    r"|handy|portable|t[ée]l(?:[ée]phone)?|rufnummer|anrufen?|reach me(?: at| on)?"
    r"|\u96fb\u8a71|\u7535\u8bdd|\u624b\u673a)"
    r"(?:[ _-]?(?:number|no|num|nummer|nr|numero))?"
    r"[^0-9A-Za-z\n]{0,6}(?:is|est|ist|es|at|on|under|unter|au|al)?[^0-9A-Za-z+\n]{0,4}"
    r"(\+?\(?[0-9](?:[ ./()-]{0,2}[0-9]){6,14})(?![0-9A-Za-z]|[./-][0-9])",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"(?:order|invoice|ref|reference|ticket|case|sku|id|isbn|serial|account|parcel|tracking|part"
    r"|model|version|build|code|error|item|article|zip|bestellung|rechnung|commande)"
    r"(?:[ _-]?(?:number|no|num|nr|id))?[ .:#=-]{0,4}\Z",
    re.IGNORECASE,
)
"""Words that say that a number is none to call."""
_GOES_ON = re.compile(r"[0-9] \Z")
_TRUNK_DIGITS: Final = range(9, 12)
_DIGITS: Final = range(7, 16)
_PLUS_DIGITS: Final = range(8, 18)
"""Two more than E.164, for ``00`` and ``(0)``."""


def _phones(text: str) -> Iterator[Span]:
    last = -1
    for match in _PHONE.finditer(text):
        start, end = match.span()
        if match["plus"] is None and _OTHER_NUMBER.search(text[max(0, start - 28) : start]):
            continue
        plain = match["trunk"] or match["weak"] or text.startswith("00", start)
        if plain and start - 1 != last and _GOES_ON.search(text[max(0, start - 2) : start]):
            continue  # the rest of a longer number, unless that was a phone
        if _is_phone(match):
            yield start, end
            last = end
    for match in _PHONE_NAMED.finditer(text):
        yield match.span(1)


def _is_phone(match: re.Match[str]) -> bool:
    if (found := match["plus"]) is not None:
        count = len(_digits(found))
        coordinate = found.count(".") == 1 and not set(found) & set(" /()-")
        return count in _PLUS_DIGITS and not coordinate
    if (found := match["trunk"]) is not None:
        return len(_digits(found)) in _TRUNK_DIGITS
    return len(_digits(match[0])) >= _DIGITS.start


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


def _alnum(text: str) -> str:
    return re.sub(r"[^0-9A-Z]", "", text.upper())


RULES: Final[dict[Kind, Rule]] = {
    "email": Rule("email", _emails, lambda found: found.replace("%40", "@").lower()),
    "iban": Rule("iban", _ibans, _alnum),
    "card": Rule("card", _cards, _digits),
    "ssn": Rule("ssn", _ssns, _digits),
    "ipv6": Rule("ipv6", _ipv6s, lambda found: str(IPv6Address(found))),
    "ipv4": Rule("ipv4", _ipv4s, lambda found: ".".join(str(int(n)) for n in found.split("."))),
    "phone": Rule("phone", _phones, _digits),
}
assert tuple(RULES) == KINDS
