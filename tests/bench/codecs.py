"""Prints what each codec costs and how small it makes batches of the corpus.

scripts/bench/codecs
scripts/bench/codecs --lines 100000
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import click

from agent import codecs
from tests.bench import corpus

BATCH_BYTES = 256 << 10  # batch.bytes_max
ROUNDS = 3
CASES: list[tuple[str, int | None]] = [
    ("none", None),
    *(("gzip", level) for level in (0, 1, 2, 3, 4, 6, 9)),
    *(("zstd", level) for level in (1, 2, 3, 6, 9, 15)),
    *(("lz4", level) for level in (1, 3, 6, 9, 12)),
    ("snappy", None),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/codecs")
    parser.add_argument("--lines", type=int, default=20_000)
    count = parser.parse_args().lines
    text = b"".join(corpus.lines(count))
    batches = [text[at : at + BATCH_BYTES] for at in range(0, len(text), BATCH_BYTES)]
    click.echo(f"{count} lines of {len(text) // count} bytes, in batches of {BATCH_BYTES} bytes")
    click.echo(f"{'codec':8} {'level':>5} {'ratio':>6} {'us a line':>10} {'us to open':>11}")
    for name, level in CASES:
        made = codecs.codec(name, level)
        packed = [made.compress(batch) for batch in batches]
        there = _cpu_s(made.compress, batches) * 1e6 / count
        back = _cpu_s(partial(codecs.decompress, made.number), packed)
        ratio = len(text) / sum(map(len, packed))
        shown = "" if level is None else level
        click.echo(f"{name:8} {shown:>5} {ratio:6.2f} {there:10.2f} {back * 1e6 / count:11.2f}")


def _cpu_s(work: Callable[[bytes], bytes], batches: list[bytes]) -> float:
    """Return CPU seconds of the fastest round: what others do adds, and never takes away."""
    rounds = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for batch in batches:
            work(batch)
        rounds.append(time.process_time() - began_s)
    return min(rounds)


if __name__ == "__main__":
    main()
