"""What a phone number looks like, and which digits are none. Pure; linear time.

One that says by its form that it is one is found anywhere; any other where a word before or after
it says so. Whether a number is in use is not asked: the tables of libphonenumber would tell, for
20 MB of memory and 100 us for each candidate, and only where the country is known. Sources: ITU-T
E.164 and E.123; the forms that libphonenumber's examples have.
"""

import re
from collections.abc import Iterator
from typing import Final

from agent.core.spans import Span, blank, merged

_NEVER = re.compile(
    r"(?<![0-9A-Za-z])(?:"
    # UUIDs
    r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"
    # dates, with a time or without
    r"|(?:(?:19|20)[0-9]{2}([-./])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])([-./])(?:0?[1-9]|[12][0-9]|3[01])\2(?:19|20)[0-9]{2})"
    r"(?:[Tt ,_]{1,2}[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?"
    r"(?: ?[+-][0-9]{2}:?[0-9]{2})?[Zz]?)?"
    # orders of a large shop
    r"|[0-9]{3}-[0-9]{7}-[0-9]{7}"
    r")(?![0-9A-Za-z]|[-./][0-9])"
)
"""Digits that are no phone number, whatever stands around them."""
_JOINED = re.compile(r"[0-9][-./][0-9A-Fa-f]")
"""What each of them has, and few texts have."""

_SEP = r"[ ./-]"
_PHONE = re.compile(
    r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][-.])(?:"
    # +49 (0) 30 123456, +1-415-555-0123, 0044 20 7946 0958
    r"(?P<plus>(?:\(\+|\+ ?\(?|00 ?)[1-9][0-9]{0,3}\)?"
    r"(?:(?! 00[1-9][0-9]{1,2}(?: ?[0-9]){6})[ ./()-]{0,3}[0-9]){5,14})"
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
_ANY: Final = r"\+?\(?[0-9](?:[ ./()-]{0,2}[0-9]){6,14}"
_AFTER_A_WORD = re.compile(
    r"(?<![^\W_])(?:(?:tel|tele(?:ph|f)(?:one|ono|oon|on)|tlf|fon|f?phone|mobile?|mobiltelefon"
    r"|m[óo]vil|celular|cell(?:phone)?|call(?: me)?(?: (?:at|on|under))?|fax|whats ?app|sms"
    r"|text me(?: at)?|handy|portable|t[ée]l(?:[ée]phone)?|rufnummer|anrufen?"
    r"|reach me(?: at| on)?|(?:answer(?:ing)?|messages?|dial|ring)(?: me| us)? (?:at|on|to|under)"
    r"|dial|(?:my|our|his|her|their)(?: new| old)? number"
    r"|\u96fb\u8a71|\u7535\u8bdd|\u624b\u673a)"
    r"(?:[ _-]?(?:number|no|num|nummer|nr|numero))?|(?:desk|direct|home|office|work)(?= ?:))"
    r"[^0-9A-Za-z]{0,6}(?:is|est|ist|es|at|on|under|unter|au|al)?[^0-9A-Za-z+]{0,4}"
    rf"({_ANY})(?![0-9A-Za-z]|[./-][0-9])",
    re.IGNORECASE,
)
_PLACE: Final = "(?:cell|desk|direct|fax|home|mobile|office|phone|work)"
_BEFORE_A_WORD = re.compile(
    rf"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][-.])(?<![0-9],)({_ANY})"
    rf"(?:(?:-| ?\(){_PLACE}(?![A-Za-z])|[ ,]{{1,2}}{_PLACE}(?=[ \t]*(?:\Z|[\n,;.)\\/|])))",
    re.IGNORECASE,
)
"""As signatures have it: ``07700 900 123-Fax``. ``1 234 567 mobile users`` is none."""
_OTHER_NUMBER = re.compile(
    r"(?:order|invoice|ref|reference|ticket|case|sku|id|isbn|serial|account|parcel|tracking|part"
    r"|model|version|build|code|error|item|article|zip|bestellung|rechnung|commande)"
    r"(?:[ _-]?(?:number|no|num|nr|id))?[ .:#=-]{0,4}\Z",
    re.IGNORECASE,
)
"""Words that say that a number is none to call."""
_DIGITS = re.compile(r"[0-9](?:[ ./()-]*[0-9]){6,}")
"""What every number of these forms is or is in: digits with what may separate them."""
_NO_BLANK = re.compile(r"[^ \t]")
_BEFORE_CHARACTERS: Final = 64
_BEHIND_CHARACTERS: Final = 40
"""More than any word with what may stand between it and a number."""
_GOES_ON = re.compile(r"[0-9] \Z")
_ZIP_CODE = re.compile(r"[0-9]{5}-[0-9]{4}")
_TRUNK_DIGITS: Final = range(9, 12)
_DIGITS_MIN: Final = 7
_PLUS_DIGITS: Final = range(8, 18)
"""Two more than E.164, for ``00`` and ``(0)``."""
_ZEROS_DIGITS_MIN: Final = 10


def without_others(text: str) -> str:
    """Hide numbers that are none to call by their form."""
    return _NEVER.sub(blank, text) if _JOINED.search(text) else text


def phones(text: str) -> Iterator[Span]:
    """Yield where a number stands, of each form in order; a part may be yielded twice."""
    for start, end in merged(_around(text)):
        yield from _phones(text, start, end)


def _around(text: str) -> Iterator[Span]:
    """Yield all that has to be looked at for a number: enough digits, and the words around them.

    The patterns cost a hundred times as much for each character as this one. The end is none of a
    blank's, for a number ends a line where only blanks follow.
    """
    for digits in _DIGITS.finditer(text):
        end = _NO_BLANK.search(text, min(digits.end() + _BEHIND_CHARACTERS, len(text)))
        yield max(0, digits.start() - _BEFORE_CHARACTERS), end.end() if end else len(text)


def _phones(text: str, begin: int, limit: int) -> Iterator[Span]:
    last = -1
    for match in _PHONE.finditer(text, begin, limit):
        start, end = match.span()
        zeros = text.startswith("00", start)
        before = text[max(0, start - 28) : start]
        if (zeros or match["plus"] is None) and _OTHER_NUMBER.search(before):
            continue
        plain = match["trunk"] or match["weak"] or zeros
        if plain and start - 1 != last and _GOES_ON.search(before):
            continue  # the rest of a longer number, unless that was a phone
        if _is_phone(match):
            yield start, end
            last = end
    for words in (_AFTER_A_WORD, _BEFORE_A_WORD):
        for match in words.finditer(text, begin, limit):
            yield match.span(1)


def _is_phone(match: re.Match[str]) -> bool:
    if (found := match["plus"]) is not None:
        count = _count(found)
        if found.startswith("00"):
            return count >= _ZEROS_DIGITS_MIN
        coordinate = found.count(".") == 1 and not set(found) & set(" /()-")
        return count in _PLUS_DIGITS and not coordinate
    if (found := match["trunk"]) is not None:
        return _count(found) in _TRUNK_DIGITS and not _ZIP_CODE.fullmatch(found)
    return _count(match[0]) >= _DIGITS_MIN


def _count(text: str) -> int:
    return sum("0" <= c <= "9" for c in text)
