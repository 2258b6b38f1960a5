"""Sets that others published: presidio-evaluator's synthetic texts, libphonenumber's examples.

Read from their packages, which ``scripts/pii`` fetches; neither is a part of this repository.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.pii.grammar import Sample

OF_PRESIDIO = {
    "EMAIL_ADDRESS": "email",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
    "US_SSN": "ssn",
    "IP_ADDRESS": "ip",
    "PHONE_NUMBER": "phone",
}


def of_presidio(path: Path) -> Iterator[Sample]:
    """Yield a sample for each thing to hide, and one for each text in which there is none.

    Where a text holds several, each sample has the others cut out.
    """
    for record in json.loads(path.read_text("utf-8")):
        spans = [span for span in record["spans"] if span["entity_type"] in OF_PRESIDIO]
        for span in spans:
            yield _alone(record["full_text"], span, spans)
        if not spans:
            yield Sample(record["full_text"], "", f"template {record['template_id']}", 0, 0)


def _alone(text: str, span: dict[str, Any], spans: list[dict[str, Any]]) -> Sample:
    start, end = span["start_position"], span["end_position"]
    for other in spans:
        at, to = other["start_position"], other["end_position"]
        if other is not span:
            text = text[:at] + "_" * (to - at) + text[to:]
    kind = OF_PRESIDIO[span["entity_type"]]
    if kind == "ip":
        kind = "ipv6" if ":" in text[start:end] else "ipv4"
    return Sample(text, kind, "presidio", start, end)


def of_libphonenumber() -> Iterator[Sample]:
    """Yield the example of each type of number in a region, as it is written there and abroad."""
    library = import_module("phonenumbers")
    for region in sorted(library.SUPPORTED_REGIONS):
        for kind in (library.PhoneNumberType.FIXED_LINE, library.PhoneNumberType.MOBILE):
            number = library.example_number_for_type(region, kind)
            if number is None:
                continue
            for name in ("INTERNATIONAL", "E164", "NATIONAL"):
                text = library.format_number(number, getattr(library.PhoneNumberFormat, name))
                before = "my number is " if name != "NATIONAL" else "call me at "
                start = len(before)
                yield Sample(f"{before}{text}.", "phone", name, start, start + len(text))
