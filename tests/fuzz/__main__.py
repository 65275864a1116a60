"""Look for bytes that break something: `python -m tests.fuzz [--seconds N] TARGET`.

Needs atheris, which is none of the dependencies: `.venv/bin/python -m pip install atheris`. What
was found worth keeping, and what broke something, lies in `.build/fuzz/TARGET`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["controller"]):
    from tests.fuzz.targets import TARGETS

_KEPT = Path(__file__).parents[2] / ".build" / "fuzz"


def main() -> None:
    """Fuzz one target for some time; the process ends with it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    target = TARGETS[options.target]
    kept = _KEPT / options.target
    corpus = kept / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = {
        "max_total_time": options.seconds,
        "max_len": 8_000,
        "timeout": 5,
        "rss_limit_mb": 1_024,
        "artifact_prefix": f"{kept}/",
    }
    words = [f"-{name}={value}" for name, value in limits.items()]
    atheris.Setup([sys.argv[0], *words, str(corpus)], target.try_out)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
