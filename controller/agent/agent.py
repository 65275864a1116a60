"""What does an agent consist of? Sources, a watcher, a sender, and whatever tasks there are
beside them; all started and ended together.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.act.queues.plan import plan
from controller.agent import mapping
from controller.agent.auditing import Auditor
from controller.agent.hypervisor import Libvirt
from controller.agent.naming import Names
from controller.agent.outbox import Outbox
from controller.agent.prometheus import Prometheus
from controller.agent.queues import Queues
from controller.agent.sending import Sender
from controller.agent.tap import Tap
from controller.agent.tasks import Crew, Task, Workplace
from controller.agent.watching import Gauge, Watcher
from controller.client import Client
from controller.decide.bandwidth import qos
from controller.settings import Settings

if TYPE_CHECKING:
    from controller.agent.connections import Connections
    from controller.agent.switch import Switch

log = logging.getLogger(__name__)

#: The directory of the agent in `state_dir`, and the file in it that says how it is.
DIRECTORY = "agent"
STATUS = "status.json"
#: Seconds between two writings of that.
STATUS_S = 5.0
#: Seconds that tasks have to end.
PATIENCE_S = 10.0


class Agent:
    """An agent of the host `host`, with its files in `directory`."""

    def __init__(self, settings: Settings, host: str, connect: Callable[[], Client]) -> None:
        chosen = settings.agent
        self._directory = settings.state_dir / DIRECTORY
        self.outbox = Outbox(self._directory, chosen.queue_bytes)
        self._work = Workplace(chosen, host, self.outbox, connect)
        names = Names(chosen.identify, self.outbox, connect)
        self.sender = Sender(self.outbox, connect, chosen.batch_values)
        self.watcher = Watcher(host, self.outbox, chosen.interval_s, chosen.look_s)
        self.auditor = Auditor(
            host, self.outbox, connect, lambda: self.watcher.sight.machines, self.watcher.wake
        )
        self._tasks: list[Task] = [self.watcher, self.sender, self.auditor]
        self._switch: Switch | None = None
        gauges: list[Gauge] = []
        if chosen.bridge:
            # Here, because with it comes all of eventlet, which a host without it needs not.
            # That it is in maintenance is known (see ARCHITECTURE.md), and no operator's concern.
            warnings.filterwarnings("ignore", message="(?s).*Eventlet is deprecated")
            from controller.agent.switch import IDS, Switch

            self._switch = Switch(
                chosen.ovsdb,
                chosen.bridge,
                names.vm,
                self.watcher.wake,
                () if chosen.libvirt else IDS[chosen.identify],
            )
            self._tasks.append(self._switch)
        if chosen.libvirt:
            libvirt = Libvirt(chosen.libvirt, names.vm, self.watcher.wake)
            self._tasks.append(libvirt)
            gauges.append(libvirt)
            self.watcher.source = libvirt
        elif self._switch is not None:
            gauges.append(self._switch)
            self.watcher.source = self._switch
        if self._switch is not None and chosen.max_connections:
            gauges.append(self._connections(self._switch))
        if self._switch is not None:
            self._tasks.append(_queues(self._switch, settings))
        self.watcher.gauges = gauges
        self._prometheus: Prometheus | None = None
        if chosen.prometheus:
            called = mapping.load(chosen.prometheus_names or mapping.DEFAULT)
            self._prometheus = Prometheus(chosen.prometheus, called, self.outbox, chosen.interval_s)
            self._tasks.append(self._prometheus)
        if chosen.dpi_interface:
            self._tasks.append(Tap(self._work, settings.dpi, chosen.dpi_interface))

    def _connections(self, switch: Switch) -> Connections:
        from controller.agent.connections import Connections, DatapathNumber

        work = self._work
        return Connections(
            switch,
            lambda: self.watcher.sight.machines,
            DatapathNumber(work.host, self.outbox, work.connect),
            work.settings.max_connections,
        )

    def once(self) -> None:
        """Look, measure and send a single time."""
        if self._switch is not None:
            self._switch.wait_read(PATIENCE_S)
        self.watcher.look()
        self.watcher.measure()
        if self._prometheus is not None:
            self._prometheus.once(time.time())
        self.sender.once()

    def run(self, stopping: threading.Event) -> None:
        """Work until `stopping` is set."""
        crew = Crew(self._tasks)
        crew.start()
        notify("READY=1")
        log.info(
            "agent started",
            extra={"host": self._work.host, "tasks": [task.name for task in self._tasks]},
        )
        while not stopping.wait(STATUS_S):
            self.write_status()
            notify("WATCHDOG=1")
        notify("STOPPING=1")
        for name in crew.stop(PATIENCE_S):
            log.error("a task did not end", extra={"task": name})
        self.write_status()

    def close(self) -> None:
        """Let others have the outbox."""
        self.outbox.close()

    def status(self) -> dict[str, Any]:
        """How it is, for `pleach agent --status`."""
        sight, lost = self.watcher.sight, self.outbox.lost()
        troubles = dict(sight.troubles)
        if self._prometheus is not None and self._prometheus.trouble is not None:
            troubles["prometheus"] = self._prometheus.trouble
        hint = None if self._switch is None else self._switch.hint
        hints = {} if hint is None else {"VMs": hint}
        return {
            "at": time.time(),
            "pid": os.getpid(),
            "host": self._work.host,
            "vms": [asdict(machine) for machine in sight.machines],
            "elsewhere": self.auditor.elsewhere,
            "looked_at": sight.looked_at,
            "measured_at": sight.measured_at,
            "values": sight.values,
            "prometheus_values": self._prometheus.values if self._prometheus else 0,
            "troubles": _worded(troubles),
            "hints": _worded(hints),
            "sent": self.sender.account.told(),
            "waiting": asdict(self.outbox.depth()),
            "lost": None if lost is None else asdict(lost),
            "refused_events": [
                {"at": at, "type": fact.type, "vm": fact.vm, "cause": cause}
                for at, fact, cause in self.outbox.refusals()
            ],
        }

    def write_status(self) -> None:
        """Put the status where `pleach agent --status` reads it."""
        file = self._directory / STATUS
        beside = file.with_suffix(".new")
        try:
            beside.write_text(json.dumps(self.status()))
            beside.replace(file)
        except OSError as error:
            log.warning("the status cannot be written", extra={"cause": str(error)})


def _worded(told: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    return {name: {"cause": cause, "mend": mend} for name, (cause, mend) in told.items()}


def _queues(switch: Switch, settings: Settings) -> Queues:
    """The task of queues, as the settings ask for. Raises SettingsError."""
    chosen, wanted = settings.agent, None
    if chosen.port_mbps:
        policy = qos.load(settings.bandwidth.policy)
        wanted = plan(policy.classes, policy.default, chosen.port_mbps * 1e6)

    def ports() -> tuple[str, ...]:
        here = {name for _, name in socket.if_nameindex()}
        return tuple(plug.name for plug in switch.bridge().plugs if plug.name in here)

    return Queues(ports, wanted, chosen.look_s)


def read_status(state_dir: Path) -> dict[str, Any]:
    """What the agent of this machine last wrote. Raises OSError and ValueError."""
    found: dict[str, Any] = json.loads((state_dir / DIRECTORY / STATUS).read_text())
    return found


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def notify(state: str) -> None:
    """Tell systemd, where that started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
        try:
            speaking.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd cannot be told", extra={"state": state, "cause": str(error)})
