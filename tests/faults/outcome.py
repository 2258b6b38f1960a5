"""What one run of a fault came to."""

import traceback
from threading import BrokenBarrierError
from typing import Self

from msgspec import Struct

from agent.demo.oracle import Verdict


class Outcome(Struct, kw_only=True):
    """What the oracle found, or ``error``: why it was not asked.

    Attributes:
        ends: Producers that ended while they may have had something on its way.
        copies_max: What these ends may cost: what may be in flight, for each.
        recovery_s: From the end of the fault to the arrival of the last line written before it.
    """

    fault: str
    seed: str
    verdict: Verdict
    ends: int = 0
    copies_max: int = 0
    recovery_s: float | None = None
    error: str = ""

    @classmethod
    def broken(cls, fault: str, seed: str, error: BaseException) -> Self:
        if isinstance(error, BrokenBarrierError):
            text = "another fault, which it went through the same trouble with, broke off"
        else:
            text = "".join(traceback.format_exception(error))
        return cls(fault=fault, seed=seed, verdict=Verdict(), error=text)

    @property
    def problem(self) -> str | None:
        """Return what did not hold that must, or None."""
        verdict = self.verdict
        found = self.error
        if not found and not verdict.ok:
            found = "; ".join(verdict.examples)
        elif not found and not 0 < verdict.lines == verdict.delivered + verdict.dead_lettered:
            found = f"{verdict.lines} lines and {verdict.delivered} + {verdict.dead_lettered}"
        elif not found and verdict.copies > self.copies_max:
            found = f"{verdict.copies} copies after {self.ends} ends, {self.copies_max} allowed"
        return f"{self.fault}, seed {self.seed}: {found}" if found else None
