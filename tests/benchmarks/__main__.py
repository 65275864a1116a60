"""Run one benchmark, or all: progress goes to stderr, and the last line of stdout is one JSON
object with what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from mininet_labs import sandbox
from tests.benchmarks.harness import Options

#: Name to whether it needs the sandbox.
BENCHMARKS = {
    "fabric": True,
    "restart": True,
    "migration": True,
    "failover": True,
    "frameworks": True,
    "demand": False,
    "dpi": False,
    "dpi_live": True,
    "anomaly": False,
    "behaviour": False,
    "ingest": False,
    "agent": False,
    "bulk": True,
    "bandwidth": True,
    "paths": False,
    "paths_scale": False,
    "paths_live": True,
    "signatures": True,
    "store": False,
}


def main(words: list[str]) -> int:
    """Run what `words` ask for; 0, or the status of the sandbox that had to be entered."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--data", type=Path, help="a folder of data to measure on")
    parser.add_argument("--quick", action="store_true", help="a smaller size of everything")
    options = parser.parse_args(words)
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    if any(BENCHMARKS[name] for name in names) and not sandbox.inside():
        return sandbox.run([sys.executable, "-m", "tests.benchmarks", *words])
    results = {
        name: import_module(f"tests.benchmarks.{name}").run(Options(options.data, options.quick))
        for name in names
    }
    print(json.dumps(results if options.name == "all" else results[options.name]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
