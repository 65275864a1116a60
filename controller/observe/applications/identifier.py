"""What runs at the services whose packets we are given?

What the hypervisor's agent and the southbound process call: `feed` for each frame, which costs
little more than a copy, and `poll` some times a second, which gives what was found out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .frames import ETHERNET
from .records import Application, Endpoint, Service, Verdict
from .services import Services
from .worker import Worker

#: Tells the VM behind an end of a flow of a tenant; None where it is none of ours.
Whose = Callable[[str, Endpoint], str | None]


class Found(NamedTuple):
    """What a call of `poll` found out."""

    #: The verdicts on flows, each with the service that it is about.
    verdicts: list[tuple[Service, Verdict]]
    #: The services whose identification has come to an end.
    applications: list[Application]


class Identifier:
    """Identifies the services of several tenants, whose addresses may overlap."""

    def __init__(self, worker: Worker, services: Services, whose: Whose) -> None:
        self.worker = worker
        self.services = services
        self._whose = whose
        self._scopes: dict[str, int] = {}
        self._tenants: list[str] = []

    def feed(self, tenant: str, time: float, frame: bytes, link: int = ETHERNET) -> bool:
        """Look at a frame of a tenant, seen at `time` (seconds since 1970); False where it had
        to be dropped."""
        scope = self._scopes.get(tenant)
        if scope is None:
            scope = self._scopes[tenant] = len(self._tenants)
            self._tenants.append(tenant)
        return self.worker.feed(scope, time, frame, link)

    def poll(self, now: float) -> Found:
        """What was found out since the last call, at `now` (seconds since 1970).

        Flows to what is no VM of ours are left out.
        """
        return self._found(self.worker.poll(), now)

    def finish(self, now: float, timeout_s: float) -> Found:
        """End all flows, and tell what that gives. Raises WorkerError where the worker does not
        answer within `timeout_s`."""
        return self._found(self.worker.finish(timeout_s), now)

    def _found(self, verdicts: list[Verdict], now: float) -> Found:
        found = Found([], [])
        for verdict in verdicts:
            if not 0 <= verdict.scope < len(self._tenants):
                continue  # none that we gave: the worker is not to be believed
            vm = self._whose(self._tenants[verdict.scope], verdict.responder)
            if vm is None:
                continue
            service = Service(vm, verdict.protocol, verdict.responder.port)
            found.verdicts.append((service, verdict))
            application = self.services.judge(service, verdict, now)
            if application is not None:
                found.applications.append(application)
        found.applications.extend(self.services.tick(now))
        return found
