"""Has the fabric confirmed what somebody waits for? Looked at whenever the store has news."""

from __future__ import annotations

import time

from controller.api import VmStatus
from controller.northbound.applied import Hindrance, status
from controller.northbound.brain import Brain
from controller.northbound.problems import NOT_APPLIED, TIMEOUT, UNAVAILABLE, Problem
from controller.northbound.record_routes import no_such

#: Seconds for which a missing port or switch may still turn up while somebody waits: a
#: hypervisor tells of a port in the moment in which it plugs it in.
TURN_UP_S = 2.0


def vm_status(brain: Brain, key: str, revision: int) -> tuple[VmStatus, list[Hindrance]]:
    """The VM as the brain knows it now, and what hinders that `revision` is applied."""
    replica = brain.replica
    vm = replica.state.vms.get(key)
    if vm is None:
        raise no_such("vm", key)
    return status(replica.state, replica.progress, replica.port_number, vm, revision)


async def applied(brain: Brain, key: str, revision: int, timeout_s: float) -> VmStatus:
    """The VM's status once it is applied. Raises Problem where that does not come about."""
    began = time.monotonic()
    with brain.waiting():
        while True:
            told, hindrances = vm_status(brain, key, revision)
            if told.applied:
                return told
            waited = time.monotonic() - began
            blocked = any(hindrance.blocked for hindrance in hindrances)
            left = (min(timeout_s, TURN_UP_S) if blocked else timeout_s) - waited
            if left <= 0:
                raise _not_applied(key, revision, hindrances, waited)
            if brain.stopping:
                raise stopping()
            await brain.replica.changed(left)


def _not_applied(key: str, revision: int, hindrances: list[Hindrance], waited: float) -> Problem:
    hindrances = sorted(hindrances, key=lambda hindrance: not hindrance.blocked)
    type_ = NOT_APPLIED if hindrances[0].blocked else TIMEOUT
    more = f" (and {len(hindrances) - 1} more)" if len(hindrances) > 1 else ""
    causes = "; ".join(hindrance.detail for hindrance in hindrances[:5])
    return Problem(
        type_,
        f"vm {key} at revision {revision} after {waited:.1f} s: {causes}{more}",
        hindrances[0].mend,
    )


def stopping() -> Problem:
    """What those are told who wait while the server ends."""
    return Problem(
        UNAVAILABLE, "the server is stopping", "Ask again.", headers={"retry-after": "1"}
    )
