"""A fabric of real switches with Pleach on it: saying what there is, and looking at what came
of it."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from controller.act.dataplane.pipeline import Owner, owner_of
from controller.client import Client
from controller.model.nouns import (
    AccessRule,
    Action,
    Migration,
    Nic,
    Record,
    Subnet,
    Tenant,
    Vm,
)
from mininet_labs import netns
from mininet_labs.deployment import Deployment, wait_until
from mininet_labs.lab import Lab
from mininet_labs.vm import LabVm

#: Seconds; a slow machine has time, and what never comes is told all the same.
_WAIT_S = 60.0
_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
_fences = itertools.count(1)
_COUNTERS = re.compile(r"(duration|n_packets|n_bytes|idle_age|hard_age)=[^,]*, ")

_FOLLOWING = (Owner.SIGNATURE, Owner.LEARNED)


def _owner(line: str) -> Owner | None:
    return owner_of(int(line.partition("cookie=")[2].partition(",")[0], 16))


class Tap:
    """Raw frames at a guest's interface: what arrives there, and what it sends."""

    def __init__(self, vm: LabVm) -> None:
        self.vm = vm
        #: All that has arrived and was looked at.
        self.frames: list[Packet] = []
        with netns.entered(vm.name):
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
            )
        self._socket.bind(("eth0", _ETH_P_ALL))

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: Packet | bytes) -> None:
        """Send frames as they are."""
        for frame in frames:
            self._socket.send(bytes(frame))

    def until(
        self, test: Callable[[Packet], object], what: str, timeout_s: float = _WAIT_S
    ) -> Packet:
        """The next frame that passes `test`; AssertionError where none comes."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, where = self._socket.recvfrom(65_535)
            except TimeoutError:
                break
            if where[2] == _PACKET_OUTGOING:
                continue
            frame = Ether(data)
            self.frames.append(frame)
            if test(frame):
                return frame
        heard = "\n".join(frame.summary() for frame in self.frames[-20:])
        raise AssertionError(f"{self.vm.name} did not get {what}; it got:\n{heard}")

    def payload(self, data: bytes) -> Packet:
        """The next frame that carries `data`."""
        return self.until(lambda frame: data in bytes(frame), f"the payload {data!r}")

    def payloads(self, *wanted: bytes) -> None:
        """Wait for frames that carry each of `wanted`, in whatever order."""
        self.until(
            lambda _: all(self.got(data) for data in wanted),
            f"all of {wanted!r}",
        )

    def got(self, data: bytes) -> int:
        """How many of the frames looked at carry `data`."""
        return sum(data in bytes(frame) for frame in self.frames)


class World:
    """A lab, the deployment that controls it, and short ways to say what tests need."""

    def __init__(self, lab: Lab, deployment: Deployment) -> None:
        self.lab = lab
        self.deployment = deployment
        self._numbers = itertools.count(1)
        self._hosts: dict[str, str] = {h.name: h.edge for h in lab.fabric.hosts}
        #: Subnet of each guest.
        self.subnets: dict[str, Subnet] = {}

    # --- Saying what there is

    @property
    def client(self) -> Client:
        """REST, as the operator."""
        return self.deployment.client

    def tenant(self, key: str, inside: Action = Action.ALLOW) -> Tenant:
        """A tenant."""
        return self.client.put(Tenant(id=key, inside=inside))

    def subnet(self, key: str, tenant: str, cidr: str, cidr6: str | None = None) -> Subnet:
        """A subnet, gateway first."""
        record = Subnet.model_validate(
            {"id": key, "tenant": tenant, "cidr": cidr, "cidr6": cidr6, "domain": "pleach.test"}
        )
        return self.client.put(record)

    def rule(self, key: str, tenant: str, **fields: Any) -> AccessRule:
        """An access rule, in force when this returns."""
        record = AccessRule.model_validate({"id": key, "tenant": tenant, **fields})
        stored = self.client.put(record)
        self.applied()
        return stored

    def remove(self, cls: type[Record], key: str, *, force: bool = False) -> None:
        """Delete a record; done at the switches when this returns."""
        self.client.delete(cls, key, force=force)
        self.applied()

    def define(
        self,
        name: str,
        subnet: Subnet,
        *,
        number: int | None = None,
        mac: str | None = None,
        groups: Iterable[str] = (),
        dhcp: bool = False,
    ) -> LabVm:
        """A guest and its record: address `number` of the subnet, plugged in nowhere yet."""
        number = number or next(self._numbers) + 9
        mac = mac or f"02:00:00:00:{next(self._numbers):02x}:{number:02x}"
        ipv4: IPv4Address = subnet.cidr[number]
        ipv6: IPv6Address | None = subnet.cidr6[number] if subnet.cidr6 else None
        guest = self.lab.vm(
            name,
            mac,
            ipv4,
            subnet.cidr.prefixlen,
            subnet.gateway,
            ipv6,
            subnet.gateway6,
            dhcp=dhcp,
        )
        nic = Nic(mac=mac, subnet=subnet.id, ipv4=ipv4, ipv6=ipv6)
        self.client.put(Vm(id=name, tenant=subnet.tenant, nics=(nic,), groups=tuple(groups)))
        self.subnets[name] = subnet
        return guest

    def vm(self, name: str, subnet: Subnet, host: str, **more: Any) -> LabVm:
        """A guest that runs at `host`, and that all switches know of."""
        guest = self.define(name, subnet, **more)
        self.place(guest, host)
        self.applied()
        return guest

    def place(self, guest: LabVm, host: str, port: str | None = None) -> str:
        """Plug a guest in and tell that it runs there; its port."""
        port = self.plug(guest, host, port)
        self.client.place(guest.name, host, [port])
        return port

    def plug(self, guest: LabVm, host: str, port: str | None = None) -> str:
        """Plug a guest in at a host without a word; its port."""
        port = port or f"{guest.name}-{next(self._numbers)}"
        guest.plug(self.edge(host), port)
        return port

    def drop(self, *guests: LabVm) -> None:
        """Take guests out of the lab and their VMs off the records."""
        for guest in guests:
            self.client.delete(Vm, guest.name, force=True)
            self.lab.remove_vm(guest.name)
        self.applied()

    def edge(self, host: str) -> str:
        """The edge switch of a host."""
        return self._hosts[host]

    # --- Waiting

    def applied(self, timeout_s: float = _WAIT_S) -> None:
        """Return once every connected switch has confirmed all that is stored now."""
        wanted = self.client.topology().revision

        def confirmed() -> bool:
            told = self.client.topology().progress
            return all(p.revision >= wanted and p.pending == 0 for p in told if p.connected)

        wait_until(confirmed, f"all switches confirmed revision {wanted}", timeout_s)

    def whole(self, switches: Iterable[str] | None = None) -> None:
        """Return once the given switches, or all, are connected, and all links between all
        switches are known to be up."""
        wanted = {self.lab.dpid(s.name) for s in self.lab.fabric.switches}
        if switches is not None:
            wanted = {self.lab.dpid(s) for s in switches}
        links = 2 * len(self.lab.fabric.cables)

        def complete() -> bool:
            told = self.client.topology()
            connected = {p.datapath for p in told.progress if p.connected}
            return wanted <= connected and sum(link.up for link in told.links) == links

        wait_until(complete, f"{len(wanted)} switches and {links} links")
        self.applied()

    def phase(self, migration: str) -> str:
        """How far a migration has come."""
        return str(self.client.get(Migration, migration).phase)

    def wait_phase(self, migration: str, *phases: str) -> None:
        """Return once a migration is in one of the phases, and the switches know."""
        wait_until(lambda: self.phase(migration) in phases, f"{migration} is {' or '.join(phases)}")
        self.applied()

    # --- Looking at switches

    def flows(self, switch: str, *match: str) -> list[str]:
        """Flow entries of a switch in words, without counters, sorted; without those that count
        who talks to whom, which follow the traffic."""
        lines = self.lab.ofctl("dump-flows", switch, *match).splitlines()
        told = [_COUNTERS.sub("", line).strip() for line in lines if "cookie=" in line]
        return sorted(line for line in told if _owner(line) not in _FOLLOWING)

    def counters(self, switch: str) -> dict[str, int]:
        """Packets that each flow entry of a switch has counted."""
        found: dict[str, int] = {}
        for line in self.lab.ofctl("dump-flows", switch).splitlines():
            if "n_packets=" in line:
                count = int(line.split("n_packets=")[1].split(",")[0])
                found[_COUNTERS.sub("", line).strip()] = count
        return found

    def groups(self, switch: str) -> list[str]:
        """Groups of a switch in words, sorted."""
        lines = self.lab.ofctl("dump-groups", switch).splitlines()
        return sorted(line.strip() for line in lines if "group_id=" in line)

    def meters(self, switch: str) -> str:
        """Meters of a switch in words, without the header, sorted."""
        told = self.lab.ofctl("dump-meters", switch).split("\n", 1)[1]
        return "\n".join(sorted(filter(None, map(str.strip, told.split("\n\n")))))

    def tables(self, *switches: str) -> set[str]:
        """All that switches, or all edges, have been told: flows, groups, meters, a line each."""
        return {
            f"{switch} {line}"
            for switch in switches or self.lab.edges
            for line in (*self.flows(switch), *self.groups(switch), self.meters(switch))
        }

    def received(self, port: str) -> int:
        """Packets that a switch has taken in by a port."""
        return int(self.lab.vsctl("get", "Interface", port, "statistics:rx_packets"))


def udp(
    source: LabVm,
    target: LabVm,
    data: bytes,
    *,
    mac: str | None = None,
    version: int = 4,
    **ip: Any,
) -> Packet:
    """A UDP frame from one guest to another in its subnet, or to `mac`."""
    ether = Ether(src=source.mac, dst=mac or target.mac)
    if version == 4:
        network = IP(**{"src": str(source.ipv4), "dst": str(target.ipv4), **ip})
    else:
        network = IPv6(**{"src": str(source.ipv6), "dst": str(target.ipv6), **ip})
    return ether / network / UDP(sport=4000, dport=4001) / Raw(data)


@contextlib.contextmanager
def end(vm: LabVm, kind: int, port: int = 0, version: int = 4) -> Iterator[socket.socket]:
    """A socket of a guest, bound to its address: SOCK_STREAM or SOCK_DGRAM."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with netns.entered(vm.name):
        opened = socket.socket(family, kind)
    with opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.settimeout(_WAIT_S)
        opened.bind((str(vm.ipv4 if version == 4 else vm.ipv6), port))
        yield opened


def fence(out: Tap, *receivers: Tap) -> None:
    """Return once all that `out` sent before has been dealt with on every path to `receivers`.

    A switch port is read in order, but what takes another way through the fabric may overtake;
    so honest packets of many connections follow, and all of them must arrive.
    """
    for receiver in receivers:
        marks = [b"mark %03d of %d" % (number, next(_fences)) for number in range(16)]
        for mark in marks:
            frame = udp(out.vm, receiver.vm, mark)
            frame[UDP].sport = 5000 + next(_fences) % 20_000
            out.send(frame)
        receiver.payloads(*marks)


def echo(source: LabVm, to: str, data: bytes, *, mac: str, **ip: Any) -> Packet:
    """An ICMP echo request."""
    fields = {"src": str(source.ipv4), "dst": to, **ip}
    return Ether(src=source.mac, dst=mac) / IP(**fields) / ICMP() / Raw(data)
