"""What Mininet would change for everybody in the process."""

from __future__ import annotations

import subprocess
import sys

AFTERWARDS = """
import logging
import topologies.mininet_topo
import mininet_labs.lab
made = logging.getLogger("made.afterwards")
print(type(made).__name__, made.level, len(made.handlers))
"""


def test_loggers_are_made_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=True
    )
    assert done.stdout == "Logger 0 0\n"
