"""Which loops does a brain run?"""

from __future__ import annotations

from controller.loops.base import Loop
from controller.settings import Settings


def loops_of(settings: Settings) -> list[Loop]:
    """The loops that `settings` ask for."""
    del settings
    return []
