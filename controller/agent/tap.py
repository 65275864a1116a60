"""What answers at the ports of this host's VMs? Told from the packets that arrive at the edge's
DPI port: the switch copies there the first ones of connections to what is not known yet.

The agent only says what single flows look like; what is made of that is the controller's part.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import NamedTuple

from pydantic import ValidationError

from controller.agent.tasks import Workplace
from controller.api import FlowVerdict
from controller.client import Client, Problem
from controller.model.nouns import Vm
from controller.observe.applications import policy as policies
from controller.observe.applications.capture import Sniffer
from controller.observe.applications.identifier import Identifier
from controller.observe.applications.ledger import answered
from controller.observe.applications.records import Endpoint, Service, Verdict
from controller.observe.applications.worker import Worker
from controller.settings import DpiSettings
from controller.waiting import readable

log = logging.getLogger(__name__)

#: Longest wait for frames (s), and frames that are taken in at once.
_TICK_S, _AT_ONCE = 0.1, 1_000
#: Verdicts that are told at once, and that wait while the controller is away.
_TOGETHER, _WAITING = 1_000, 10_000
#: Seconds before the controller is tried again.
_PAUSE_S = 5.0
#: Seconds for which it is taken for granted who has which MAC, and before it is asked again
#: because of one that nobody has.
_FRESH_S, _ANEW_S = 60.0, 2.0


class Owner(NamedTuple):
    """The VM that has a MAC, and its tenant."""

    vm: str
    tenant: str


class Owners:
    """Who has which MAC at this host. `ask` gives its VMs; `clock` seconds that never go back."""

    def __init__(self, ask: Callable[[], Iterable[Vm]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._by_mac: dict[bytes, Owner] = {}
        self._asked: float | None = None

    def of(self, mac: bytes) -> Owner | None:
        """The owner of a MAC, as it was known last."""
        return self._by_mac.get(mac)

    def of_frame(self, frame: bytes) -> Owner | None:
        """A VM of ours that sends or gets an Ethernet frame; None where there is none."""
        found = self._by_mac.get(frame[:6]) or self._by_mac.get(frame[6:12])
        if self._asked is None or self._age() > (_ANEW_S if found is None else _FRESH_S):
            self._refresh()
            found = self._by_mac.get(frame[:6]) or self._by_mac.get(frame[6:12])
        return found

    def _age(self) -> float:
        return self._clock() - (self._asked or 0.0)

    def _refresh(self) -> None:
        self._asked = self._clock()
        try:
            self._by_mac = {
                bytes.fromhex(nic.mac.replace(":", "")): Owner(vm.id, vm.tenant)
                for vm in self._ask()
                for nic in vm.nics
            }
        except Problem as problem:
            log.warning("the VMs of this host are not told", extra={"cause": str(problem)})


class Tap:
    """The task that listens at `interface`, behind the DPI port."""

    name = "tap"

    def __init__(self, work: Workplace, settings: DpiSettings, interface: str) -> None:
        self._work = work
        self._settings = settings
        self._interface = interface
        self._policy = policies.load(settings.policy or policies.DEFAULT)
        self._waiting: deque[FlowVerdict] = deque(maxlen=_WAITING)
        self._not_before = 0.0

    def run(self, stopping: threading.Event) -> None:
        """Listen until `stopping` is set. Raises SnifferError, WorkerError."""
        policy = self._policy
        model = self._settings.model
        with (
            closing(Sniffer(self._interface)) as sniffer,
            closing(self._work.connect()) as client,
            Worker(policy.naming(), policy.limits(), time.monotonic, model) as worker,
        ):
            owners = Owners(lambda: client.list(Vm, host=self._work.host), time.monotonic)
            identifier = Identifier(worker, lambda tenant, end: _whose(owners, tenant, end))
            while not stopping.is_set():
                readable([sniffer.fileno()], _TICK_S)
                for frame in sniffer.frames(_AT_ONCE):
                    owner = owners.of_frame(frame.data)
                    if owner is not None:
                        identifier.feed(owner.tenant, frame.time, frame.data, frame.link)
                self._waiting.extend(verdicts(identifier.poll(time.time())))
                self._tell(client)

    def _tell(self, client: Client) -> None:
        if not self._waiting or time.monotonic() < self._not_before:
            return
        told = [self._waiting[n] for n in range(min(_TOGETHER, len(self._waiting)))]
        try:
            reply = client.tell_flows(told)
        except Problem as problem:
            self._not_before = time.monotonic() + _PAUSE_S
            if 400 <= problem.status < 500 and problem.status != 429:
                self._drop(len(told))  # to say it again would not help
            log.warning("verdicts are not taken", extra={"cause": str(problem)})
            return
        self._drop(len(told))
        for refused in reply.refused:
            log.info(
                "a verdict was refused",
                extra={"vm": told[refused.index].vm, "cause": refused.reason},
            )

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()


def verdicts(found: Iterable[tuple[Service, Verdict]]) -> list[FlowVerdict]:
    """What is told of verdicts: of flows that were answered, and of those that make sense."""
    made = []
    for service, verdict in found:
        if answered(verdict):
            try:
                made.append(_told(service, verdict))
            except ValidationError as error:
                # The words are those of a process that reads what strangers send.
                cause = error.errors()[0]["msg"]
                log.warning("a verdict is dropped: %s", cause, extra={"service": str(service)})
    return made


def _told(service: Service, verdict: Verdict) -> FlowVerdict:
    return FlowVerdict(
        vm=service.vm,
        protocol=service.protocol,
        port=service.port,
        application=verdict.application,
        how=verdict.kind.value,
        category=verdict.category,
        category_how=verdict.category_kind.value,
        confidence=verdict.confidence,
        risks=verdict.risks,
        packets=verdict.packets,
        handshake_s=verdict.handshake_s,
        response_s=verdict.response_s,
    )


def _whose(owners: Owners, tenant: str, end: Endpoint) -> str | None:
    owner = owners.of(bytes.fromhex(end.mac.replace(":", "")))
    return owner.vm if owner is not None and owner.tenant == tenant else None
