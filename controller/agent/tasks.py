"""How does the agent do several things at a time? Each task in a thread of its own; one that
fails is begun again, after a pause, and the others go on meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.agent.outbox import Outbox
from controller.client import Client
from controller.settings import AgentSettings

log = logging.getLogger(__name__)

#: Seconds before a task that failed is begun again: at first, and at most.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class Task(Protocol):
    """One of the things that the agent does all the time."""

    #: For logs and the status.
    name: str

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set, and return then, soon."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every task has: the settings, this host's id at the controller, what is to be told,
    and a way to a client of the controller (one a thread, to be closed by who made it)."""

    settings: AgentSettings
    host: str
    outbox: Outbox
    connect: Callable[[], Client]


class Crew:
    """Tasks at work."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=(task,), name=task.name, daemon=True)
            for task in tasks
        ]

    def start(self) -> None:
        """Begin all of them."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float) -> list[str]:
        """End all of them; the names of those that did not end within `patience_s` seconds."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(patience_s)
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _keep(self, task: Task) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                task.run(self._stopping)
                return
            except Exception:
                log.exception("a task failed", extra={"task": task.name, "again_in_s": pause_s})
            self._stopping.wait(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
