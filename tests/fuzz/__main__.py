"""``python -m tests.fuzz <name of a target>``: Atheris on it; see ``scripts/fuzz``.

What follows the name goes to libFuzzer: ``-runs=1000000``, or files to try once more.
"""

import sys
from importlib import import_module


def main() -> None:
    atheris = import_module("atheris")  # only in the environment of scripts/fuzz
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["agent.core", "tests.fuzz"]):
        target = import_module(f"tests.fuzz.{name}")
    atheris.Setup(sys.argv, target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
