"""The promise, as a simulation: no program of faults breaks an invariant.

``FEEDBACK_AGENT_MODEL_PROGRAMS`` runs more programs than the default, and
``FEEDBACK_AGENT_MODEL_SEEDS`` tries the planted bug from more seeds.
"""

import os

import pytest

from agent.core.ledger import Chunk, Ledger
from tests.model import Program

PROGRAMS = int(os.environ.get("FEEDBACK_AGENT_MODEL_PROGRAMS", "2000"))
SHARES = 8
SEEDS = int(os.environ.get("FEEDBACK_AGENT_MODEL_SEEDS", "15"))


@pytest.mark.parametrize("share", range(SHARES))
def test_no_program_of_faults_breaks_an_invariant(share: int) -> None:
    """Each program is its seed: ``Program(seed).run()`` runs a failing one again."""
    for seed in range(share, PROGRAMS, SHARES):
        try:
            Program(seed).run()
        except AssertionError as broken:
            broken.add_note(f"seed {seed}")
            raise


class GapSkippingLedger(Ledger):
    """What most shippers do: the last acknowledgement is the position."""

    def settle(self, chunk: Chunk) -> None:
        super().settle(chunk)
        if not chunk.open_batches and chunk.end > self.watermark:
            self.mark = chunk.end, chunk.tail


@pytest.mark.timeout(600)  # 20 s alone, and much of that again beside others
def test_a_ledger_that_skips_a_gap_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that passes whatever the ledger does would prove nothing: 200 programs must do."""
    monkeypatch.setattr("agent.harvester.Ledger", GapSkippingLedger)
    for seed in range(SEEDS):
        for program in range(200):
            try:
                Program(10_000 + seed * 1000 + program).run()
            except (AssertionError, KeyError):  # the books contradict themselves: caught too
                break
        else:
            pytest.fail(f"seed {seed}: not caught within 200 programs")
