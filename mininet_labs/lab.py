"""A fabric of real Open vSwitch bridges under Mininet, and guests on it.

    with Lab(leaf_spine(), controller=("127.0.0.1", 6653)) as lab:
        vm = lab.vm("vm1", "02:00:00:00:00:01", "10.0.0.1", 24, "10.0.0.254")
        vm.plug("leaf1", "tap1")

Runs inside the sandbox only, which ends all of it whatever happens.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mininet_labs import netns
from mininet_labs.sandbox import SandboxError, inside
from mininet_labs.vm import WIRES, LabVm
from topologies.mininet_seam import Mininet, OVSSwitch, setLogLevel
from topologies.mininet_topo import FabricTopo, cable_port
from topologies.model import Fabric, Role, Switch

_VSCTL_TIMEOUT_S = 120
#: Arguments of one `ovs-vsctl`, well below the 128 KiB that Linux allows one of them.
_PORTS_A_CALL = 500


class Lab:
    """One running fabric. `controller` is (address, TCP port), or None for switches that
    are told what to do by hand."""

    def __init__(self, fabric: Fabric, controller: tuple[str, int] | None = None) -> None:
        self.fabric = fabric
        self.controller = controller
        self.vms: dict[str, LabVm] = {}
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()
        self._ports: dict[str, list[tuple[str, str]]] = {s.name: [] for s in fabric.switches}
        counts = dict.fromkeys(self._ports, 0)
        for cable in fabric.cables:
            for switch, peer in ((cable.a, cable.b), (cable.b, cable.a)):
                counts[switch] += 1
                self._ports[switch].append((cable_port(switch, counts[switch]), peer))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Build the fabric and point it at the controller. What was built is taken down again
        where that fails. SandboxError outside of the sandbox; RuntimeError where a switch or a
        port cannot be made."""
        if not inside():
            raise SandboxError(
                "a lab runs inside the sandbox only: python -m mininet_labs.sandbox -- COMMAND"
            )
        try:
            self._build()
        except BaseException:
            self.stop()
            raise

    def _build(self) -> None:
        try:
            netns.create(WIRES)
        except FileExistsError as error:
            raise RuntimeError("a lab runs in this sandbox already: stop it first") from error
        self._stack.callback(netns.remove, WIRES)
        with netns.entered(WIRES):
            # Frames that no guest waits for must not be answered by the hypervisor itself.
            for scope in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
        setLogLevel("error")
        # Mininet would otherwise raise limits of the whole machine, and not restore them.
        Mininet.inited = True
        net = Mininet(
            FabricTopo(self.fabric, with_hosts=False),
            switch=_LabSwitch,
            controller=None,
            build=False,
        )
        self._stack.callback(net.stop)
        net.build()
        net.start()
        self._verify()
        if self.controller is not None:
            self.connect_to(*self.controller)

    def stop(self) -> None:
        """End guests, switches and namespaces; may be called more than once."""
        ports = [f"link del {port}" for vm in self.vms.values() for port in vm.ports]
        with self._stack:
            # All ports at once, and without a word to the bridges, which end next.
            self._stack.callback(netns.batch, "ip", ports)
            for vm in self.vms.values():
                self._stack.callback(vm.close)
            self.vms.clear()

    def _verify(self) -> None:
        """RuntimeError where Open vSwitch refused a bridge or a port (Mininet only prints it)."""
        want = {port for ports in self._ports.values() for port, _ in ports} | set(self._ports)
        bare = ("-f", "csv", "-d", "bare", "--no-heading", "--columns=name,ofport")
        found = dict(
            line.split(",", 1) for line in self.vsctl(*bare, "list", "Interface").splitlines()
        )
        bad = sorted(name for name in want if not found.get(name, "").isdigit())
        if bad:
            raise RuntimeError(f"Open vSwitch has not made these ports: {', '.join(bad)}")

    def connect_to(self, address: str, port: int) -> None:
        """Point every switch at the controller there; it tries again at least every second.

        A switch that had no controller before forgets its flow entries (Open vSwitch does so).
        """
        words: list[str] = []
        for switch in self._ports:
            words += ["--", "set-controller", switch, f"tcp:{address}:{port}"]
            words += ["--", "set", "Controller", switch, "max_backoff=1000"]
            words += ["inactivity_probe=1000", "connection_mode=out-of-band"]
        self.vsctl(*words[1:])
        self.controller = (address, port)

    def wait_connected(self, timeout_s: int = 20) -> None:
        """Return once every switch has its controller; RuntimeError after `timeout_s`."""
        for switch in self._ports:
            netns.call(
                *("ovs-vsctl", f"--timeout={timeout_s}"),
                *("wait-until", "Controller", switch, "is_connected=true"),
            )

    @property
    def edges(self) -> tuple[str, ...]:
        """The names of the edge switches."""
        return tuple(switch.name for switch in self.fabric.of_role(Role.EDGE))

    @property
    def cores(self) -> tuple[str, ...]:
        """The names of the core switches."""
        return tuple(switch.name for switch in self.fabric.of_role(Role.CORE))

    def switch(self, name: str) -> Switch:
        """The switch called `name`; KeyError where there is none."""
        return self.fabric.switch(name)

    def dpid(self, name: str) -> str:
        """The datapath id of a switch as 16 hex digits."""
        return f"{self.fabric.switch(name).dpid:016x}"

    def cable_ports(self, a: str, b: str | None = None) -> tuple[str, ...]:
        """The names of the ports of `a` that lead to `b`, or to any switch.

        KeyError where no cable joins them.
        """
        ports = tuple(port for port, peer in self._ports[a] if b in (None, peer))
        if not ports:
            raise KeyError(f"no cable joins {a} and {b or 'any switch'}")
        return ports

    def link_down(self, a: str, b: str) -> None:
        """Cut every cable between two switches: both ends lose their carrier."""
        self._set_links(self.cable_ports(a, b), "down")

    def link_up(self, a: str, b: str) -> None:
        """Mend every cable between two switches."""
        self._set_links(self.cable_ports(a, b), "up")

    def mute(self, a: str, b: str) -> None:
        """Let nothing through between two switches, though both ends keep their carrier.

        Not on a tunnel: its limit of bandwidth has the place of the filter.
        """
        # A frame that is larger than the bucket never gets through (tc-tbf(8)).
        filtering = "root tbf rate 8bit burst 10b limit 10b"
        ports = (*self.cable_ports(a, b), *self.cable_ports(b, a))
        netns.batch("tc", [f"qdisc add dev {port} {filtering}" for port in ports])

    def unmute(self, a: str, b: str) -> None:
        """Let everything through again."""
        ports = (*self.cable_ports(a, b), *self.cable_ports(b, a))
        netns.batch("tc", [f"qdisc del dev {port} root" for port in ports])

    def isolate(self, switch: str) -> None:
        """Cut every cable of a switch."""
        self._set_links(self.cable_ports(switch), "down")

    def rejoin(self, switch: str) -> None:
        """Mend every cable of a switch."""
        self._set_links(self.cable_ports(switch), "up")

    @staticmethod
    def _set_links(ports: Iterable[str], state: str) -> None:
        netns.batch("ip", [f"link set {port} {state}" for port in ports])

    def vm(
        self,
        name: str,
        mac: str,
        ipv4: str | IPv4Address | None,
        prefix: int = 24,
        gateway: str | IPv4Address | None = None,
        ipv6: str | IPv6Address | None = None,
        gateway6: str | IPv6Address | None = None,
        *,
        prefix6: int = 64,
        dhcp: bool = False,
    ) -> LabVm:
        """A guest, plugged in nowhere yet. With `dhcp` it has no IPv4 address or route until
        its `lease` is called. ValueError where the name is taken or an address is none."""
        if name in self.vms:
            raise ValueError(f"there is a guest {name} already")
        vm = LabVm(
            lab=self,
            name=name,
            mac=mac.lower(),
            ipv4=None if dhcp or ipv4 is None else IPv4Address(ipv4),
            prefix=prefix,
            gateway=None if dhcp or gateway is None else IPv4Address(gateway),
            ipv6=None if ipv6 is None else IPv6Address(ipv6),
            prefix6=prefix6,
            gateway6=None if gateway6 is None else IPv6Address(gateway6),
        )
        vm.create()
        self.vms[name] = vm
        return vm

    def remove_vm(self, name: str) -> None:
        """End a guest and all that it has. KeyError where there is none of that name."""
        self.vms.pop(name).remove()

    def silent_port(self, edge: str, port: str) -> None:
        """Make `port` on `edge` with nobody behind it: it costs no interface and says nothing."""
        self.silent_ports(edge, [port])

    def silent_ports(self, edge: str, ports: Iterable[str]) -> None:
        """Make many silent ports at once."""
        remaining = list(ports)
        while remaining:
            words: list[str] = []
            for port in remaining[:_PORTS_A_CALL]:
                words += ["--", "add-port", edge, port, "--", "set", "Interface", port]
                words += ["type=patch", f"options:peer=none-{port}"]
            self.vsctl(*words[1:])
            del remaining[:_PORTS_A_CALL]

    def remove_ports(self, edge: str, ports: Iterable[str]) -> None:
        """Remove silent ports from `edge`."""
        words = [word for port in ports for word in ("--", "del-port", edge, port)]
        if words:
            self.vsctl(*words[1:])

    def port_number(self, port: str) -> int:
        """The OpenFlow number of the port of that name; RuntimeError where there is none."""
        return int(self.vsctl("get", "Interface", port, "ofport"))

    def vsctl(self, *arguments: str) -> str:
        """Run `ovs-vsctl`, wait until the switches have done it, and return its output.

        RuntimeError with what it said where it fails.
        """
        return netns.call("ovs-vsctl", f"--timeout={_VSCTL_TIMEOUT_S}", *arguments)

    def ofctl(self, command: str, switch: str, *arguments: str) -> str:
        """Run `ovs-ofctl COMMAND SWITCH ...` in OpenFlow 1.5 and return its output."""
        return netns.call("ovs-ofctl", "-O", "OpenFlow15", command, switch, *arguments)

    def appctl(self, *arguments: str) -> str:
        """Run `ovs-appctl` against the switches' daemon and return its output."""
        return netns.call("ovs-appctl", *arguments)

    def next_number(self) -> int:
        """A number that this lab has not used for an interface."""
        return next(self._numbers)


class _LabSwitch(OVSSwitch):  # type: ignore[misc]  # Mininet has no types
    """A bridge in the userspace datapath that forwards nothing it was not told to."""

    def __init__(self, name: str, **parameters: Any) -> None:
        super().__init__(
            name, datapath="user", protocols="OpenFlow15", failMode="secure", **parameters
        )

    @classmethod
    def isOldOVS(cls) -> bool:  # noqa: N802
        """Mininet's hook: whether this is Open vSwitch before 1.10, of 2013; Debian 12 has 3.1."""
        return False
