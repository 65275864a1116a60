"""What does the brain do again and again, by itself? A loop a room of the floors."""

from controller.loops.base import Ground, Loop, Loops, LoopStatus, Pool

__all__ = ["Ground", "Loop", "LoopStatus", "Loops", "Pool"]
