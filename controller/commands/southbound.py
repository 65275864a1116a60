"""Which Python runs the southbound process? os-ken is beside Pleach itself, Ryu in an environment
of its own, because their requirements differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from controller.commands.common import Failure
from controller.settings import SouthboundSettings

#: Where `make ryu` puts Ryu.
RYU = Path(__file__).resolve().parents[2] / ".venv-ryu" / "bin" / "python"
#: Not one of the working directory, where others may have a folder `apps` of their own.
_MODULE = ("-P", "-m")


def command(settings: SouthboundSettings) -> list[str]:
    """The command that runs the southbound process. Failure where its framework is not there."""
    python = ryu(settings) if settings.framework == "ryu" else sys.executable
    return [python, *_MODULE, "apps.southbound"]


def manager(settings: SouthboundSettings, words: list[str]) -> list[str]:
    """The command that runs Ryu apps as `ryu-manager WORDS` would. Failure as for `command`."""
    return [ryu(settings), *_MODULE, "apps.ryu_manager", *words]


def ryu(settings: SouthboundSettings) -> str:
    """The Python that has Ryu. Failure where there is none."""
    python = settings.ryu_python or RYU
    if not python.exists():
        raise Failure(
            f"Ryu is not there: no {python}",
            f"Run `make ryu` in {RYU.parents[2]}, or name the Python of another environment with "
            "Ryu and Pleach by the setting southbound.ryu_python; or use os-ken.",
        )
    return str(python)
