"""What does the Open vSwitch of this host say? Which VMs are plugged into its bridge, by
OVSDB (ovs-vswitchd.conf.db(5)), and what their ports count; for labs without libvirt.

A port names its VM by `external_ids` of its interface: `iface-id`, `vm-uuid` or `vm-id`, and
`attached-mac`. `vm-pid` there names the process that is the VM, and `vm-cpus` how many CPUs
it has, of which CPU and memory are then read from /proc.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ovs import poller
from ovs.db import idl

from controller.agent import proc
from controller.agent.records import Machine, Raw, SourceAway
from controller.agent.tools import control_directory, port_counts
from controller.ovsdb import schema

log = logging.getLogger(__name__)

_COLUMNS = {
    "Bridge": ["name", "ports", "datapath_type"],
    "Port": ["interfaces"],
    "Interface": ["name", "ofport", "external_ids"],
}
#: Milliseconds after which we look whether the task is to end.
_LOOK_MS = 1_000
_RETRY_S = 2.0
#: Seconds to wait for the first answer of the database.
_FIRST_S = 3.0


@dataclass(frozen=True, slots=True)
class Plug:
    """A port of the bridge. `number` is 0 while it has none; `row` is another whenever the port
    was made anew; `external` are its external_ids."""

    name: str
    number: int
    row: str
    external: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bridge:
    """The bridge as it is now, its ports by number. `kind` is its datapath's type."""

    kind: str
    plugs: tuple[Plug, ...]


#: The external_ids that name a VM, by the setting agent.identify.
IDS = {"name": ("iface-id",), "uuid": ("vm-uuid", "vm-id"), "mac": ("attached-mac",)}

#: Tells the VM that has a name, a uuid and MACs.
VmOf = Callable[[str, str, Iterable[str]], str | None]


class Switch:
    """The bridge `name` in the database at `remote`; `changed` is called when ports came, went,
    or have another VM, from the task's thread. It is told where no port ever had one of the
    external_ids `ids`: none are looked for where others know which VMs there are."""

    name = "switch"

    def __init__(
        self,
        remote: str,
        name: str,
        vm_of: VmOf,
        changed: Callable[[], None],
        ids: Collection[str] = (),
    ) -> None:
        self._remote = remote
        #: Where its sockets are.
        self.directory = control_directory(remote)
        self._bridge = name
        self._vm_of = vm_of
        self._changed = changed
        self._ids = ids
        #: Why no VM is found though all is in order, and what to do.
        self.hint: tuple[str, str] | None = None
        self._named = not ids
        self._now: Bridge | None = None
        self._cause = "it has not been read yet"
        #: Whether there was a first answer, of whatever kind.
        self._answered = threading.Event()

    def bridge(self) -> Bridge:
        """The bridge. Raises SourceAway."""
        self._answered.wait(_FIRST_S)
        now = self._now
        if now is None:
            raise SourceAway(
                f"bridge {self._bridge} at {self._remote}",
                self._cause,
                "See that Open vSwitch runs, that this user may read its database, and that "
                "agent.bridge and agent.ovsdb are right.",
            )
        return now

    def machines(self) -> tuple[Machine, ...]:
        """The VMs whose ports are there. Raises SourceAway."""
        return tuple(
            Machine(
                vm,
                tuple(plug.name for plug in plugs),
                tuple(plug.external.get("attached-mac", "").lower() for plug in plugs),
            )
            for vm, plugs in self._by_vm().items()
        )

    def measure(self) -> dict[str, Raw]:
        """What the VMs use. Raises SourceAway."""
        by_vm = self._by_vm()
        counts = port_counts(self.directory, self._bridge)
        return {vm: _raw(plugs, counts) for vm, plugs in by_vm.items()}

    def _by_vm(self) -> dict[str, list[Plug]]:
        found: dict[str, list[Plug]] = defaultdict(list)
        for plug in self.bridge().plugs:
            ids = plug.external
            uuid = ids.get("vm-uuid") or ids.get("vm-id", "")
            macs = [ids["attached-mac"]] if "attached-mac" in ids else []
            vm = self._vm_of(ids.get("iface-id", ""), uuid, macs)
            if vm is not None:
                found[vm].append(plug)
        return found

    def run(self, stopping: threading.Event) -> None:
        """Follow the database."""
        while not stopping.is_set():
            try:
                self._follow(stopping)
            except OSError as error:
                self._cause = str(error)
                self._answered.set()
            self._now = None
            stopping.wait(_RETRY_S)

    def wait_read(self, patience_s: float) -> None:
        """Read the bridge once, without a task."""
        stopping = threading.Event()
        reading = threading.Thread(target=self._until_read, args=(stopping,), daemon=True)
        reading.start()
        reading.join(patience_s)
        stopping.set()
        reading.join()

    def _until_read(self, stopping: threading.Event) -> None:
        try:
            self._follow(stopping, once=True)
        except OSError as error:
            self._cause = str(error)

    def _follow(self, stopping: threading.Event, once: bool = False) -> None:
        helper = idl.SchemaHelper(schema_json=schema(self._remote))
        for table, columns in _COLUMNS.items():
            helper.register_columns(table, columns)
        replica = idl.Idl(self._remote, helper)
        try:
            seen = replica.change_seqno
            while not stopping.is_set() and not (once and self._now is not None):
                replica.run()
                if replica.change_seqno != seen:
                    seen = replica.change_seqno
                    self._take(read(replica, self._bridge))
                # There is no public word for it; what was read before would look like now.
                if not replica._session.is_connected():
                    self._now, self._cause = None, "its database is not connected"
                _wait(replica)
        finally:
            replica.close()

    def _take(self, found: Bridge | None) -> None:
        before, self._now = self._now, found
        if found is None:
            self._cause = "there is no such bridge"
        self._answered.set()
        if found is None:
            return
        if found != before:
            self._look_for_ids(found)
            self._changed()

    def _look_for_ids(self, found: Bridge) -> None:
        """Where a port once named its VM, it is known how to."""
        ports = [plug for plug in found.plugs if plug.name != self._bridge]
        self._named = self._named or any(plug.external.keys() & self._ids for plug in ports)
        told, self.hint = self.hint, None
        if self._named or not ports:
            return
        wanted = " or ".join(self._ids)
        self.hint = (
            f"no port of bridge {self._bridge} says which VM is plugged in there: external_ids "
            f"{wanted} of its interface is looked for",
            "Set it at each VM's port, by `ovs-vsctl set Interface PORT external_ids:"
            f"{next(iter(self._ids))}=…`, or choose another by agent.identify.",
        )
        if told is None:
            cause, mend = self.hint
            log.warning("no VM is found", extra={"cause": cause, "mend": mend})


def read(replica: Any, name: str) -> Bridge | None:
    """The bridge `name` in a replica of the database."""
    for bridge in replica.tables["Bridge"].rows.values():
        if bridge.name == name:
            plugs = [
                # One that has no number, as while the switch starts, is plugged in all the same.
                Plug(row.name, max([0, *row.ofport]), str(row.uuid), dict(row.external_ids))
                for port in bridge.ports
                for row in port.interfaces
            ]
            return Bridge(bridge.datapath_type, tuple(sorted(plugs, key=lambda p: p.number)))
    return None


def _raw(plugs: Sequence[Plug], counted: Mapping[int, Mapping[str, float]]) -> Raw:
    counts: dict[str, dict[str, float]] = defaultdict(dict)
    for plug in plugs:
        for counter, value in counted.get(plug.number, {}).items():
            counts[counter][f"{plug.name} {plug.row}"] = value
    found = Raw(counts=counts)
    pid = next((plug.external["vm-pid"] for plug in plugs if "vm-pid" in plug.external), "")
    cpus = next((plug.external["vm-cpus"] for plug in plugs if "vm-cpus" in plug.external), "1")
    if not pid.isdigit() or not cpus.isdigit() or not int(cpus):
        return found
    try:
        used = proc.process(int(pid), float(cpus))
    except (OSError, IndexError, ValueError):  # it has ended, perhaps while it was read
        return found
    return replace(used, counts={**counts, **used.counts})


def _wait(replica: Any) -> None:
    waiting = poller.Poller()
    replica.wait(waiting)
    waiting.timer_wait(_LOOK_MS)
    waiting.block()
