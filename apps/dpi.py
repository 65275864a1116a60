"""The app that tells what answers at the ports of VMs, from the packets that edges send up: where
there is no agent that gets them.

nDPI runs in a child process (`controller.observe.applications.worker`), which is spoken to without
ever waiting for it. What is found out is stored, and the fabric then copies no more of it.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from apps.context import Southbound
from apps.framework import MAIN, App, PacketInEvent, hub, on, spawn
from controller.act.dataplane.openflow.decode import PacketIn
from controller.act.dataplane.pipeline import ZONE, Owner, owner_of, zone
from controller.act.dataplane.view import Place
from controller.model.addresses import format_dpid
from controller.model.nouns import Service
from controller.observe.applications import policy as policies
from controller.observe.applications.identifier import Identifier
from controller.observe.applications.ledger import Ledger, keep, renewed
from controller.observe.applications.records import Endpoint
from controller.observe.applications.worker import Worker, WorkerError
from controller.settings import DpiSettings
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Seconds between two looks at what the child process says, and between two looks for services
#: that are to be looked at again.
POLL_S, RENEW_S = 0.05, 5.0
#: Seconds after which it is tried again to start a child process.
AGAIN_S = 60.0
#: Packets that wait for a child process.
EARLY = 1_000
#: Services that are written together.
TOGETHER = 200
#: Where `make setup` puts the Python that has nfstream, which that with Ryu has not.
_PYTHON = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"


class Dpi(App):
    """Copies of packets in, services out."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._settings = southbound.settings.dpi
        self._policy = policies.load(self._settings.policy or policies.DEFAULT)
        self._ledger = Ledger(self._policy.rules(), _jitter)
        #: Made when the first packets come, which wait for it.
        self._identifier: Identifier | None = None
        self._early: deque[tuple[str, float, bytes]] = deque(maxlen=EARLY)
        self._not_before = 0.0
        self._wanted = hub.Event()
        if self._settings.tap:
            spawn(southbound.forever, self._poll)
            spawn(southbound.forever, self._renew)

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """A copy of a packet, from the edge of the VM that its connection leads to."""
        packet: PacketIn = event.msg.packet
        if owner_of(packet.cookie) is not Owner.TAP:
            return
        place = self._place(format_dpid(event.msg.datapath.id), packet.fields.get(ZONE, 0))
        if place is None:
            return
        if self._identifier is not None:
            self._identifier.feed(place.vm, time.time(), packet.data)
        else:
            self._early.append((place.vm, time.time(), packet.data))
            self._wanted.set()

    def _place(self, datapath: str, packet_zone: int) -> Place | None:
        """Where the VM is plugged in of whose port a packet's conntrack zone is."""
        view = self.southbound.view
        port = (packet_zone - zone(view.number(datapath), 0)) & 0xFFFF
        return view.plugged.get((datapath, port))

    def _poll(self) -> None:
        if self._identifier is None:
            self._wanted.wait()
            self._wanted.clear()
            self._start()
            return
        hub.sleep(POLL_S)
        now = time.time()
        known = self.southbound.view.state.services
        settled = self._ledger.judge(known, self._identifier.poll(now), now)
        for at in range(0, len(settled), TOGETHER):
            self._write(settled[at : at + TOGETHER])

    def _start(self) -> None:
        """Have a child process, unless that failed a short while ago."""
        if time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + AGAIN_S
        python = _python(self._settings)
        if python is None:
            log.error(
                "services are not identified: no Python with nfstream is at %s; run `make setup`, "
                "name one by the setting dpi.python, or switch dpi.tap off",
                _PYTHON,
            )
            return
        policy = self._policy
        try:
            worker = Worker(
                policy.naming(),
                policy.limits(),
                time.monotonic,
                self._settings.model,
                python=python,
                vet=False,  # that takes numpy
            )
        except WorkerError as cause:
            log.error("services are not identified: %s", cause)
            return
        self._identifier = Identifier(worker, self._whose)
        while self._early:
            self._identifier.feed(*self._early.popleft())

    def _whose(self, vm: str, end: Endpoint) -> str | None:
        """The VM, where it is the one that answers."""
        machine = self.southbound.view.state.vms.get(vm)
        macs = [] if machine is None else [nic.mac for nic in machine.nics]
        return vm if end.mac in macs else None

    def _renew(self) -> None:
        """Have services looked at again that are due."""
        hub.sleep(RENEW_S)
        now, rules = time.time(), self._ledger.rules
        services = self.southbound.view.state.services.values()
        due = [service for service in services if service.due <= now][:TOGETHER]
        if not due:
            return

        def change(tx: Transaction) -> None:
            for service in due:
                if tx.get(Service, service.key) != service:
                    continue  # something else has become known of it
                later = renewed(service, now, _jitter(), rules)
                if later is None:
                    tx.delete(Service, service.key)
                else:
                    tx.put(later)

        self.southbound.write(change)

    def _write(self, settled: list[Service]) -> None:
        self.southbound.write(lambda tx: keep(tx, settled))
        for service in settled:
            log.info(
                "a service is known",
                extra={
                    "vm": service.vm,
                    "service": f"{service.protocol}/{service.port}",
                    "application": service.application,
                    "how": service.how,
                    "packets": service.packets,
                },
            )


def _jitter() -> float:
    return random.uniform(-1, 1)  # noqa: S311


def _python(settings: DpiSettings) -> str | None:
    """The Python that has nfstream; None where there is none."""
    if settings.python is not None:
        return str(settings.python)
    if importlib.util.find_spec("_lib_engine") is not None:
        return sys.executable
    return str(_PYTHON) if _PYTHON.exists() else None
