"""Texts with personal data in the forms that people write it in, and texts with none.

A form is a template: ``#`` is a digit, ``N`` one that is not 0, ``A`` an upper-case letter, ``a`` a
lower-case one, ``h`` a hexadecimal digit. What stands in ``{}`` is taken as it is, and ``|`` is
between forms.
"""

import random
import re
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Sample(NamedTuple):
    text: str
    kind: str
    """Empty where there is nothing to find."""
    form: str
    start: int
    end: int


PHONES = {
    "US": "(N##) N##-####|N##-N##-####|N##.N##.####|{1-}N##-N##-####"
    "|{+1} N## N## ####|{+1}N##N######",
    "GB": "{020 7}### ####|{07}### ######|{0161} ### ####|{+44 20 7}### ####|{+44 7}### ######"
    "|{07}#########|{+44 (0)20 7}### ####",
    "DE": "{030} ######|{0171} #######|{0171}/#######|{+49 30} ######|{+49 (0)171} #######"
    "|{(089)} #######|{0049 171} #######|{0221-}#######",
    "FR": "{01} ## ## ## ##|{06}.##.##.##.##|{+33 6} ## ## ## ##|{+33 (0)1} ## ## ## ##"
    "|{06}########",
    "IT": "{06} #### ####|{+39 06} #### ####|{+39} 3## ### ####|{02-}########",
    "ES": "{+34 6}## ### ###|{+34 91} ### ## ##",
    "NL": "{06-}########|{020-}#######|{+31 6} ########",
    "CH": "{044} ### ## ##|{+41 79} ### ## ##",
    "SE": "{08-}### ### ##|{070-}### ## ##|{+46 70} ### ## ##",
    "DK": "{+45} ## ## ## ##",
    "PL": "{+48} ### ### ###",
    "RU": "{8 (495)} ###-##-##|{+7 916} ###-##-##|{8 916} ###-##-##",
    "IN": "{9}#### #####|{+91 9}#### #####|{022-}########",
    "CN": "{13}# #### ####|{139-}####-####|{+86 13}# #### ####",
    "JP": "{03-}####-####|{090-}####-####|{+81 3-}####-####",
    "KR": "{010-}####-####|{+82 10-}####-####",
    "BR": "({11}) {9}####-####|{+55 11 9}####-####",
    "AU": "({02}) {9}### ####|{04}## ### ###|{+61 4}## ### ###",
    "named": "{tel. }### ####|{call }N######|{phone: }N## ### ###"
    "|{Tel: }## ## ## ##|{mobile }N#########",
    "signed": "{0}N## ### ####{-Fax}|N## ## ###{ office}|N##-####{ (home)}|{Desk: }N#########"
    "|{They do not answer at }## ### ###|{my number is }N## ####",
    "bare": "N#########|## ## ## ##|N## ### ###|{13}#########",
}
CARDS = {
    "visa": "4###############|4### #### #### ####|4###-####-####-####",
    "mastercard": "{5}1##############|{52}## #### #### ####",
    "amex": "{37}#############|{34}## ###### #####",
    "diners": "{36}############|{36}## ###### ####",
    "discover": "{6011}############|{6011}-####-####-####",
    "jcb": "{3530}############",
    "unionpay": "{62}##############",
    "spaced oddly": "4### ######## ####",
    "named": "{my card }50##########|{card number }35## #### #### ####|{cc 4}### ######## ####",
}
IBANS = {
    "DE": "##################|#### #### #### #### ##",
    "FR": "#######################",
    "GB": "AAAA##############|AAAA #### #### #### ##",
    "NL": "AAAA##########",
    "ES": "#### #### #### #### ####",
    "CH": "#################",
    "NO": "###########",
    "MT": "AAAA##################AAAAA",
    "PL": "#### #### #### #### #### ####",
}
EMAILS = {
    "plain": "aaaa@aaaaaa.{com}|aaa.aaaaa@aaaaa.{co.uk}|Aaaa.Aaaaa@aaaaa.{de}",
    "tagged": "aaa+aaaa@aaaaa.{org}|a_a-a@aaa-aaa.{io}|aaa##@a#.{fr}",
    "international": "{jürgen}@{müller}.{de}|{用户}@{例子}.{中国}|aaa@aaaa.{xn--p1ai}",
    "encoded": "aaa{%40}aaaaa.{com}",
    "spelt out": "aaa{ (at) }aaaaa.{com}",
    "quoted": '"aaa aaa"@aaaa.{com}',
}
SSNS = {
    "hyphens": "{2}##-4#-1###",
    "spaces": "{3}## 5# 2###",
    "named": "{SSN 4}##4#1###|{ssn: 2}##4#1###",
}
IPV4S = {"plain": "{10}.##.#.##|{192.168}.#.##|8#.N#.N#.N#", "port": "{172.16}.#.#{:8080}"}
IPV6S = {
    "full": "{2001:0db8:}hhhh:hhhh:hhhh:hhhh:hhhh:hhh1",
    "short": "{2001:db8::}Nhhh|{fe80::}hhhh:hhh1|{::1}",
    "mapped": "{::ffff:10}.#.#.##",
}
NOTHING = {
    "version": "v#.##.#|#.#.#.#|{version }#.#.#.#|{1}#.#.#.#|{Chrome/12}#.{0.0.0}|#.#.#-{rc}#"
    "|#.##.{20240131}",
    "uuid": "hhhhhhhh-hhhh-4hhh-8hhh-hhhhhhhhhhhh|########-####-4###-9###-############",
    "hash": f"{'h' * 32}|{'h' * 40}|{'h' * 64}|hhhhhhh|{{sha256:}}{'h' * 64}",
    "order": "{order }#########|{order #}########|{ORD-}########|{invoice 0171} #######"
    "|{INV-2026-}#####|###-#######-#######|{ticket }N##-N##-####",
    "timestamp": "{2026-01-3}1T1#:2#:3#Z|{2026-02-1}# 1#:2#:3#.######|{1764}######|{1764}#########"
    "|{1764}###############|{0}N/{0}N/20#2|{1}#.{0}N.{2026}|{20260131}|1#:2#:3#",
    "price": "$N,###.##|N.###,##{ EUR}|N### ###{ EUR}|$N##.##|N#######{ VND}",
    "coordinates": "##.######, ##.######|-##.####, +##.######",
    "code": "{std::vector}|{a::b}|aa@aaa|{icon@2x.png}|{lodash@4.17.21}|hh:hh:hh:hh:hh:hh",
    "card-like": "N### #### #### ####|################",
    "words": "N ### ###{ mobile users}|{home }N####|{call }N##{ times}|{at }#####{ dollars}"
    "|{text }N#{ of }N###|{office }N### ####{ B}|{discard }############",
    "counts": "N###{ of }N#####|#### ####|##.##%|N-N#",
    "address": "N###{ Main Street}|#####|#####-####",
    "dimensions": "N###x####|N##-N##{ pages}|N.##{e-}##|0.########|N####.#######",
}
CARRIERS = [
    "{}",
    "My contact: {}.",
    "please write to {} or forget it",
    "It failed again ({}), why?",
    "value={} and nothing else",
    'He said "{}" to me',
    "{} is wrong!",
    "a\nline {}\nand more",
]
EXAMPLES = 40
"""Of each form."""


def samples(seed: int) -> Iterator[Sample]:
    rng = random.Random(seed)  # noqa: S311  not for secrets
    for kind, families, finish in (
        ("email", EMAILS, None),
        ("iban", IBANS, _with_iban_check),
        ("card", CARDS, _with_luhn),
        ("ssn", SSNS, None),
        ("ipv6", IPV6S, None),
        ("ipv4", IPV4S, None),
        ("phone", PHONES, None),
        ("", NOTHING, _without_luhn),
    ):
        for family, forms in families.items():
            for form in forms.split("|"):
                for _ in range(EXAMPLES):
                    value = _filled(form, rng)
                    value = finish(value, family, rng) if finish else value
                    yield _carried(value, kind, family, rng)


def _filled(form: str, rng: random.Random) -> str:
    makes: dict[str, Callable[[], str]] = {
        "#": lambda: rng.choice(string.digits),
        "N": lambda: rng.choice("23456789"),
        "A": lambda: rng.choice(string.ascii_uppercase),
        "a": lambda: rng.choice(string.ascii_lowercase),
        "h": lambda: rng.choice("0123456789abcdef"),
    }
    parts = re.split(r"(\{[^{}]*\})", form)
    return "".join(
        part[1:-1]
        if part.startswith("{")
        else "".join(makes[c]() if c in makes else c for c in part)
        for part in parts
    )


def _carried(value: str, kind: str, family: str, rng: random.Random) -> Sample:
    carrier = rng.choice(CARRIERS)
    start = carrier.index("{}")
    return Sample(carrier.replace("{}", value), kind, family, start, start + len(value))


def _luhn_sum(number: str) -> int:
    total = 0
    for place, digit in enumerate(reversed(number)):
        twice = int(digit) * (1 + place % 2)
        total += twice - 9 if twice > 9 else twice
    return total % 10


def _with_luhn(value: str, family: str, rng: random.Random) -> str:
    digits = re.sub("[^0-9]", "", value[:-1] + "0")
    return value[:-1] + str((10 - _luhn_sum(digits)) % 10)


def _without_luhn(value: str, family: str, rng: random.Random) -> str:
    digits = re.sub("[^0-9]", "", value)
    if family == "card-like" and _luhn_sum(digits) == 0:
        return value[:-1] + str((int(value[-1]) + 1) % 10)
    return value


def _with_iban_check(value: str, family: str, rng: random.Random) -> str:
    bare = value.replace(" ", "") + family + "00"
    check = 98 - int("".join(str(int(c, 36)) for c in bare)) % 97
    head = f"{family}{check:02}"
    return f"{head} {value}" if " " in value else head + value
