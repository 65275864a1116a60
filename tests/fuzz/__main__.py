"""Look for bytes that break something: `python -m tests.fuzz [--seconds N] [--corpus DIR] TARGET`.

Needs atheris, which is none of the dependencies: `.venv/bin/python -m pip install atheris`. What
breaks something is written to the current folder, and told. New bytes that are worth keeping go
into DIR.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["controller"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target for some time."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder to keep what was found in")
    options = parser.parse_args()
    target = TARGETS[options.target]
    with tempfile.TemporaryDirectory(prefix="pleach-fuzz-") as directory:
        for number, seed in enumerate(target.seeds):
            Path(directory, str(number)).write_bytes(seed)
        corpus = [str(options.corpus), directory] if options.corpus else [directory]
        limits = [f"-max_total_time={options.seconds}", "-max_len=8000", "-rss_limit_mb=1024"]
        atheris.Setup([sys.argv[0], *limits, "-timeout=5", *corpus], target.try_out)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
