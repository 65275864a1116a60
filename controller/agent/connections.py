"""How many connections has each VM? Counted from conntrack, which knows them by the zone of the
port that a VM is plugged into (`controller.act.dataplane.pipeline.zone`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from controller.act.dataplane.pipeline import zone
from controller.agent.outbox import Outbox
from controller.agent.records import Machine, Raw, SourceAway
from controller.agent.switch import Switch
from controller.agent.tools import appctl, zones
from controller.client import Client, Problem

log = logging.getLogger(__name__)

#: Seconds after which the controller is asked again for the number of this host's datapath.
_KNOWN_S = 3_600.0
_UNKNOWN_S = 60.0
_KEPT = "datapath-number"


class Connections:
    """Counts connections of VMs at a bridge, as long as there are at most `most` in all.
    `machines` tells the VMs that are here."""

    name = "connections"

    def __init__(
        self,
        switch: Switch,
        machines: Callable[[], tuple[Machine, ...]],
        number: Callable[[], int | None],
        most: int,
    ) -> None:
        self._switch = switch
        self._machines = machines
        self._number = number
        self._directory = switch.directory
        self._most = most

    def measure(self) -> Mapping[str, Raw]:
        """Connections of each VM with a port at the bridge. Raises SourceAway."""
        edge = self._number()
        if edge is None:
            raise SourceAway(
                "connections",
                "the number of this host's datapath is not known yet",
                "The controller tells it once it can be reached and this host is defined there.",
            )
        bridge = self._switch.bridge()
        datapath = f"{bridge.kind or 'system'}@ovs-{bridge.kind or 'system'}"
        known = int(appctl(self._directory, "dpctl/ct-get-nconns", datapath) or 0)
        if known > self._most:
            raise SourceAway(
                "connections",
                f"there are {known}, and at most {self._most} are counted by VM",
                "Raise agent.max_connections where the time that it takes is there.",
            )
        counts = zones(appctl(self._directory, "dpctl/dump-conntrack", datapath))
        at = {plug.name: plug.number for plug in bridge.plugs if plug.number}
        found = {}
        for machine in self._machines():
            ports = [at[port] for port in machine.ports if port in at]
            if ports:
                total = sum(counts[zone(edge, port)] for port in ports)
                found[machine.vm] = Raw(gauges={"connections": float(total)})
        return found


class DatapathNumber:
    """The number that the controller gave to the datapath of a host, which zones are made of:
    asked for now and then, and kept on the disk for when it is away."""

    def __init__(self, host: str, outbox: Outbox, connect: Callable[[], Client]) -> None:
        self._host = host
        self._outbox = outbox
        self._connect = connect
        self._asked: float | None = None
        kept = outbox.recall(_KEPT)
        self._number = int(kept) if kept else None

    def __call__(self) -> int | None:
        """The number; None while it is not known."""
        now = time.monotonic()
        patience_s = _UNKNOWN_S if self._number is None else _KNOWN_S
        if self._asked is not None and now - self._asked < patience_s:
            return self._number
        self._asked = now
        try:
            with self._connect() as client:
                topology = client.topology()
        except (Problem, OSError) as error:
            log.debug("the topology could not be asked for", extra={"cause": str(error)})
            return self._number
        datapath = {host.id: host.datapath for host in topology.hosts}.get(self._host)
        numbers = {found.dpid: found.number for found in topology.datapaths}
        number = numbers.get(datapath) if datapath is not None else None
        if number is not None and number != self._number:
            self._outbox.keep(_KEPT, str(number))
            self._number = number
        return self._number
