"""``python -m tests.pii [synth_dataset_v2.json]``: recall and precision for each kind.

With presidio-evaluator's data set, and libphonenumber's examples, where ``scripts/pii`` has them.
"""

import sys
from pathlib import Path

from tests.pii.grammar import samples
from tests.pii.measure import remarks, scores, table
from tests.pii.published import of_libphonenumber, of_presidio

SEED = 1


def main() -> None:
    sets = {"the grammar of tests/pii": samples(SEED)}
    if len(sys.argv) > 1:
        sets["presidio-evaluator: synth_dataset_v2.json"] = of_presidio(Path(sys.argv[1]))
        sets["libphonenumber: the examples of all regions"] = of_libphonenumber()
    for name, found in sets.items():
        of = scores(found)
        sys.stdout.write(f"{name}\n\n{table(of)}\n\n{remarks(of)}\n\n")


if __name__ == "__main__":
    main()
