"""A guest on the fabric: a network namespace with one `eth0`, wired to switch ports.

    namespace NAME      namespace of the wires           the sandbox itself
    eth0 ────────────── hub ──(tc redirect)── wire ───── port of a switch

The hub and the wires stand for the hypervisor. A guest is wired to one *active* port; more
may be plugged in beforehand, and a move is one replaced redirection, as a guest's own
interface notices nothing of a migration either.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Protocol

from mininet_labs import dhcp, netns

#: The namespace that holds every hub and wire of a lab.
WIRES = "pleach-wires"

GUEST_MTU = 1_500
#: How many of each announcement: QEMU's announce-self sends 5, spread over some 0.5 s.
_ANNOUNCEMENTS = 3
_ETH_P_ALL = 0x0003


class Ports(Protocol):
    """What a guest needs of its lab."""

    def vsctl(self, *arguments: str) -> str:
        """Run `ovs-vsctl` and return its output."""
        ...

    def next_number(self) -> int:
        """A number that this lab has not used for an interface."""
        ...


@dataclass(slots=True)
class _Wire:
    edge: str
    name: str
    socket: socket.socket


@dataclass(slots=True)
class LabVm:
    """One guest. Made by `Lab.vm`; its addresses are those of its only interface."""

    lab: Ports
    name: str
    mac: str
    ipv4: IPv4Address | None
    prefix: int
    gateway: IPv4Address | None
    ipv6: IPv6Address | None = None
    prefix6: int = 64
    gateway6: IPv6Address | None = None
    active: str | None = None
    _hub: str = ""
    _wires: dict[str, _Wire] = field(default_factory=dict)
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def create(self) -> None:
        """Make the guest's namespace and its interface; called by the lab."""
        self._hub = f"h{self.lab.next_number()}"
        netns.create(self.name)
        with netns.entered(self.name):
            for line in (
                "accept_dad=0",
                "dad_transmits=0",
                "accept_ra=0",
                "router_solicitations=0",
            ):
                name, _, value = line.partition("=")
                Path(f"/proc/sys/net/ipv6/conf/default/{name}").write_text(value)
        netns.batch(
            "ip",
            [
                f"link add eth0 address {self.mac} mtu {GUEST_MTU} type veth "
                f"peer name {self._hub} mtu {GUEST_MTU} netns {WIRES}",
                "link set lo up",
                "link set eth0 up",
                *self._address_lines(),
            ],
            self.name,
        )
        with netns.entered(self.name):
            netns.offloads_off("eth0")
        with netns.entered(WIRES):
            netns.offloads_off(self._hub)
        netns.batch("ip", [f"link set {self._hub} up"], WIRES)
        netns.batch("tc", [f"qdisc add dev {self._hub} ingress"], WIRES)

    def _address_lines(self) -> list[str]:
        lines = []
        if self.ipv4 is not None:
            lines.append(f"addr add {self.ipv4}/{self.prefix} dev eth0")
            if self.gateway is not None:
                lines.append(f"route add default via {self.gateway}")
        if self.ipv6 is not None:
            lines.append(f"addr add {self.ipv6}/{self.prefix6} dev eth0 nodad")
        if self.gateway6 is not None:
            lines.append(f"route add ::/0 via {self.gateway6} dev eth0")
        return lines

    def plug(self, edge: str, port: str) -> None:
        """Make `port` on the switch `edge` and wire it to the guest: actively where the guest
        has no other active port, otherwise for a later `switch_over`.

        ValueError where the guest has that port already.
        """
        if port in self._wires:
            raise ValueError(f"{self.name} is plugged into {port} already")
        wire = f"w{self.lab.next_number()}"
        netns.batch(
            "ip",
            [
                f"link add {port} mtu {GUEST_MTU} type veth "
                f"peer name {wire} mtu {GUEST_MTU} netns {WIRES}",
                f"link set {port} up",
            ],
        )
        netns.batch("ip", [f"link set {wire} up"], WIRES)
        netns.offloads_off(port)
        with netns.entered(WIRES):
            netns.offloads_off(wire)
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sender.bind((wire, 0))
        self._wires[port] = _Wire(edge, wire, sender)
        lines = [f"qdisc add dev {wire} ingress"]
        if self.active is None:
            self.active = port
            lines += [_redirect(wire, self._hub), _redirect(self._hub, wire)]
        netns.batch("tc", lines, WIRES)
        self.lab.vsctl("add-port", edge, port)

    def switch_over(self, port: str, announce: bool = True, overlap_s: float = 0.05) -> None:
        """Move the guest to `port`, where it is plugged in already, in this order: frames from
        the new port reach the guest; the new place announces it (RARP, and GARP where it has an
        IPv4 address); all that the guest sends goes to the new port; frames from the old port
        end.

        For `overlap_s` seconds both places deliver: this stands for the queue of the new tap,
        which holds what arrives before the guest resumes. KeyError for a port not plugged in.
        """
        new, old = self._wires[port], self._wires.get(self.active or "")
        if old is new:
            return
        netns.batch("tc", [_redirect(new.name, self._hub)], WIRES)
        with netns.entered(WIRES):
            # Started beforehand, so that next to no time lies between announcement and data.
            tc = subprocess.Popen(
                ["tc", "-batch", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        if announce:
            self._announce(new)
        _, said = tc.communicate(_redirect(self._hub, new.name) + "\n", timeout=10)
        if tc.returncode != 0:
            raise RuntimeError(f"{self.name} cannot be moved to {port}: {said.strip()}")
        self.active = port
        if old is not None:
            time.sleep(overlap_s)
            netns.batch("tc", [f"filter del dev {old.name} parent ffff:"], WIRES)

    def announce(self) -> None:
        """Send the announcement of the active place once more."""
        if self.active is None:
            raise ValueError(f"{self.name} is plugged in nowhere")
        self._announce(self._wires[self.active])

    def _announce(self, wire: _Wire) -> None:
        mac = bytes.fromhex(self.mac.replace(":", ""))
        ethernet = b"\xff" * 6 + mac
        # RFC 903: "reverse request", both hardware addresses the sender's own.
        rarp = struct.pack("!HHHBBH", 0x8035, 1, 0x0800, 6, 4, 3) + (mac + bytes(4)) * 2
        frames = [ethernet + rarp]
        if self.ipv4 is not None:
            own = self.ipv4.packed
            garp = struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + mac + own + bytes(6) + own
            frames.append(ethernet + garp)
        for _ in range(_ANNOUNCEMENTS):
            for frame in frames:
                wire.socket.send(frame.ljust(60, b"\0"))

    def unplug(self, port: str) -> None:
        """Remove `port` from its switch. KeyError where the guest is not plugged in there."""
        wire = self._wires.pop(port)
        wire.socket.close()
        if self.active == port:
            self.active = None
        self.lab.vsctl("--if-exists", "del-port", wire.edge, port)
        netns.batch("ip", [f"link del {port}"])

    @property
    def ports(self) -> tuple[str, ...]:
        """The names of the ports that the guest is plugged into."""
        return tuple(self._wires)

    def edge_of(self, port: str) -> str:
        """The switch that `port` is on. KeyError where the guest is not plugged in there."""
        return self._wires[port].edge

    def run(self, *command: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Run `command` in the guest to its end; TimeoutExpired where it takes longer."""
        with netns.entered(self.name):
            return subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start `command` in the guest; it ends with the guest at the latest."""
        with netns.entered(self.name):
            process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **options)
        self._processes.append(process)
        return process

    def ping(self, address: object, count: int = 1, timeout_s: int = 1) -> bool:
        """Whether at least one of `count` echo requests, 0.2 s apart, is answered."""
        words = ["ping", "-n", "-q", "-i", "0.2", "-c", str(count), "-W", str(timeout_s)]
        return self.run(*words, str(address), timeout_s=20 + count + timeout_s).returncode == 0

    def lease(self, timeout_s: float = 10.0) -> dhcp.Lease:
        """Ask for an IPv4 address by DHCP and use what is granted. DhcpError where none is."""
        with netns.entered(self.name):
            granted = dhcp.lease("eth0", self.mac, timeout_s)
        self.ipv4, self.prefix, self.gateway = granted.address, granted.prefix, granted.gateway
        lines = [f"addr replace {self.ipv4}/{self.prefix} dev eth0"]
        if self.gateway is not None:
            lines.append(f"route replace default via {self.gateway}")
        netns.batch("ip", lines, self.name)
        return granted

    def forget_neighbours(self) -> None:
        """Empty the guest's ARP and neighbour caches."""
        netns.batch("ip", ["neigh flush dev eth0"], self.name)

    def remove(self) -> None:
        """End the guest and take its ports from their switches."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            for port in tuple(self._wires):
                stack.callback(self.unplug, port)

    def close(self) -> None:
        """End the guest's processes and its namespace, and leave its ports to the lab."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(timeout=10)
        self._processes.clear()
        for wire in self._wires.values():
            wire.socket.close()
        netns.remove(self.name)


def _redirect(source: str, target: str) -> str:
    """The `tc` line that sends all that arrives at `source` out of `target`; where it stands
    already it is replaced in one step, and no frame falls between."""
    return (
        f"filter replace dev {source} parent ffff: protocol all prio 1 handle 800::800 "
        f"u32 match u32 0 0 action mirred egress redirect dev {target}"
    )
