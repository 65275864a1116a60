"""What runs at the services whose packets we are given?

What the hypervisor's agent and the southbound process call: `feed` for each frame, which costs
little more than a copy, and `poll` some times a second, which gives what was found out.
"""

from __future__ import annotations

from collections.abc import Callable

from .frames import ETHERNET
from .records import Endpoint, Service, Verdict
from .worker import Worker

#: Tells the VM behind an end of a flow of a scope; None where it is none of ours.
Whose = Callable[[str, Endpoint], str | None]
#: Seconds between two looks for flows that are over.
EXPIRE_S = 5.0


class Identifier:
    """Looks at flows of several scopes, such as tenants, whose addresses may overlap."""

    def __init__(self, worker: Worker, whose: Whose) -> None:
        self.worker = worker
        self._whose = whose
        self._scopes: dict[str, int] = {}
        self._names: list[str] = []
        self._swept = 0.0

    def feed(self, scope: str, time: float, frame: bytes, link: int = ETHERNET) -> bool:
        """Look at a frame of a scope, seen at `time` (seconds since 1970); False where it had
        to be dropped."""
        number = self._scopes.get(scope)
        if number is None:
            number = self._scopes[scope] = len(self._names)
            self._names.append(scope)
        return self.worker.feed(number, time, frame, link)

    def poll(self, now: float) -> list[tuple[Service, Verdict]]:
        """The verdicts on flows since the last call, at `now` (seconds since 1970), each with the
        service that it is about. Flows to what is no VM of ours are left out."""
        if now - self._swept > EXPIRE_S:
            self._swept = now
            self.worker.expire(now)
        return self._found(self.worker.poll())

    def finish(self, timeout_s: float) -> list[tuple[Service, Verdict]]:
        """End all flows, and tell what that gives. Raises WorkerError where the worker does not
        answer within `timeout_s`."""
        return self._found(self.worker.finish(timeout_s))

    def _found(self, verdicts: list[Verdict]) -> list[tuple[Service, Verdict]]:
        found = []
        for verdict in verdicts:
            if not 0 <= verdict.scope < len(self._names):
                continue  # none that we gave: the worker is not to be believed
            vm = self._whose(self._names[verdict.scope], verdict.responder)
            if vm is not None:
                found.append((Service(vm, verdict.protocol, verdict.responder.port), verdict))
        return found
