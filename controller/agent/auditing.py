"""Does the controller still know what it was told? Asked now and then: its store may have been
restored from an older copy, or someone may have taken a VM off the records by mistake.

A VM that runs here and is placed nowhere is told of anew. One that the controller has elsewhere
is left there: which of the two is right is not for this agent to say, so it is logged.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from controller.agent.outbox import Outbox
from controller.agent.records import Machine
from controller.client import Client, Problem
from controller.model.nouns import Vm

log = logging.getLogger(__name__)

#: Seconds between two comparisons.
EVERY_S = 600.0


class Auditor:
    """The task that compares. `machines` tells what runs here; `wake` has it looked at."""

    name = "auditing"

    def __init__(
        self,
        host: str,
        outbox: Outbox,
        connect: Callable[[], Client],
        machines: Callable[[], tuple[Machine, ...]],
        wake: Callable[[], None],
    ) -> None:
        self._host = host
        self._outbox = outbox
        self._connect = connect
        self._machines = machines
        self._wake = wake
        #: VMs that the controller has elsewhere, with where that is.
        self.elsewhere: dict[str, str] = {}

    def run(self, stopping: threading.Event) -> None:
        """Compare every while."""
        while not stopping.wait(EVERY_S):
            try:
                self.once()
            except (Problem, OSError) as error:
                log.debug("the controller could not be asked", extra={"cause": str(error)})

    def once(self) -> None:
        """Compare. Raises Problem, and OSError of the files of the token and certificates."""
        if self._outbox.depth().events:
            return  # what it is to know is under way
        running = {machine.vm for machine in self._machines() if not machine.arriving}
        told = {vm for vm, after in self._outbox.told().items() if after.migration is None}
        elsewhere = {}
        with self._connect() as client:
            believed = {vm.id for vm in client.list(Vm, host=self._host)}
            for vm in sorted((told & running) - believed):
                try:
                    placement = client.vm(vm).placement
                except Problem as problem:
                    if problem.status != 404:
                        raise
                    placement = None
                if placement is None:
                    log.warning("the controller has forgotten a VM", extra={"vm": vm})
                    self._outbox.forget(vm)
                elif placement.host != self._host:
                    elsewhere[vm] = placement.host
        for vm in elsewhere.keys() - self.elsewhere.keys():
            log.warning(
                "a VM runs here that the controller has elsewhere",
                extra={"vm": vm, "host": elsewhere[vm]},
            )
        self.elsewhere = elsewhere
        self._wake()
