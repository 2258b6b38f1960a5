"""Holds the redactor against samples: what it hid, what it left, what it hid for nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from agent.core.folding import folded, unfolded
from agent.core.redact import Redaction, Redactor
from agent.core.redaction_rules import KINDS
from tests.pii.grammar import Sample

EXAMPLES_MAX = 3
EDGES = " \t\n.,;:!?\"'()[]+"
"""What may stand at the ends of a sample and is not the data itself."""


class Found(NamedTuple):
    start: int
    end: int
    kind: str


class Score:
    """Of one kind. A sample is hidden when nothing of it is left, whatever the marker says."""

    def __init__(self) -> None:
        self.samples = 0
        self.hidden = 0
        self.true = 0
        """Markers of this kind where there was something to hide, of any kind."""
        self.false = 0
        self.missed: defaultdict[str, list[str]] = defaultdict(list)
        self.wrong: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def recall(self) -> float:
        return self.hidden / self.samples if self.samples else 1.0

    @property
    def precision(self) -> float:
        return self.true / (self.true + self.false) if self.true + self.false else 1.0


def found_in(redactor: Redactor, text: str) -> Iterator[Found]:
    found = redactor._found(folded(text))
    places = unfolded(text, [span for span, _ in found])
    return (Found(*place, rule.kind) for place, (_, rule) in zip(places, found, strict=True))


def scores(samples: Iterable[Sample]) -> dict[str, Score]:
    """Score each kind over ``samples``, each with one thing to hide or none."""
    redactor = Redactor(Redaction(version="1"))
    of: dict[str, Score] = {kind: Score() for kind in KINDS}
    for sample in samples:
        found = [*found_in(redactor, sample.text)]
        value = sample.text[sample.start : sample.end]
        start, end = core(sample)
        if sample.kind:
            of[sample.kind].samples += 1
            hidden = any(f.start <= start and end <= f.end for f in found)
            of[sample.kind].hidden += hidden
            if not hidden:
                of[sample.kind].missed[sample.form].append(value)
        for f in found:
            right = sample.kind and f.start < sample.end and sample.start < f.end
            of[f.kind].true += bool(right)
            of[f.kind].false += not right
            if not right:
                of[f.kind].wrong[sample.form].append(sample.text[f.start : f.end])
    return of


def core(sample: Sample) -> tuple[int, int]:
    """Return where the data itself stands: without a word beside it, a port behind, or brackets."""
    value = sample.text[sample.start : sample.end]
    start, end = sample.start, sample.end
    if sample.kind in {"phone", "ssn"}:
        start += next((at for at, c in enumerate(value) if c.isdigit() or c in "+("), 0)
        end = sample.start + max(at for at, c in enumerate(value) if c.isdigit()) + 1
    if sample.kind == "card":
        start += next(at for at, c in enumerate(value) if c.isdigit())
    if sample.kind == "ipv4":
        end = sample.start + len(value.partition(":")[0])
    while start < end and sample.text[start] in EDGES.replace('"', "").replace(":", ""):
        start += 1
    while start < end and sample.text[end - 1] in EDGES:
        end -= 1
    return start, end


def table(of: dict[str, Score]) -> str:
    rows = ["| kind | samples | recall | precision |", "|---|---|---|---|"]
    rows += [
        f"| {kind} | {score.samples} | {score.recall:.3f} | {score.precision:.3f} |"
        for kind, score in of.items()
    ]
    return "\n".join(rows)


def remarks(of: dict[str, Score]) -> str:
    """List what was missed and what was hidden for nothing, by the form it had."""
    lines = []
    for kind, score in of.items():
        for word, forms in (("missed", score.missed), ("for nothing", score.wrong)):
            for form, values in forms.items():
                counts = Counter(values).most_common(EXAMPLES_MAX)
                examples = ", ".join(repr(value) for value, _ in counts)
                lines.append(f"  {kind} {word}: {form} ({len(values)}): {examples}")
    return "\n".join(lines)
