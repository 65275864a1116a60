r"""Fabrics as Mininet classes: what the labs build, and what `mn` builds by itself.

    mn --custom topologies/mininet_topo.py --topo leafspine,leaves=3,spines=2 \
       --switch ovs,datapath=user,protocols=OpenFlow15 --controller remote

Under `mn` every hypervisor is a Mininet host on its edge; a lab plugs VMs in itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topologies import load  # not `validate` by name: mn takes that for its own hook
from topologies.generate import fat_tree, hybrid, leaf_spine
from topologies.mininet_seam import TCIntf, TCLink, Topo
from topologies.model import CableKind, Fabric

#: Bytes of an IP packet between switches: a VM's 1,500 and labels of 4 bytes with room to spare.
CABLE_MTU = 1_600

# A userspace datapath forwards frames as they are read: a checksum left to hardware, or a
# frame of many segments, never arrives.
_OFFLOADS = ("tx", "off", "tso", "off", "gso", "off", "gro", "off")


class FabricIntf(TCIntf):  # type: ignore[misc]  # Mininet has no types
    """One end of a cable: its MTU leaves room for labels, its offloads are off."""

    def config(self, **params: Any) -> Any:
        """Mininet's hook: apply `params`, then what every cable needs."""
        result = super().config(**params, txo=False)
        self.cmd("ethtool", "-K", self.name, *_OFFLOADS)
        self.cmd("ip", "link", "set", self.name, "mtu", CABLE_MTU)
        return result

    def bwCmds(self, bw: float | None = None, **_: Any) -> tuple[list[str], str]:  # noqa: N802
        """Mininet's hook: the `tc` commands for `bw` Mbit/s, and where they end.

        Mininet's own leave the quantum to the kernel, which warns of it above 16 Mbit/s.
        """
        if bw is None:
            return [], " root "
        shape = f"htb rate {bw:f}Mbit burst 15k quantum {2 * CABLE_MTU}"
        return [
            "%s qdisc add dev %s root handle 5:0 htb default 1",
            f"%s class add dev %s parent 5:0 classid 5:1 {shape}",
        ], " parent 5:1 "


class FabricLink(TCLink):  # type: ignore[misc]
    """A cable or a tunnel."""

    def __init__(self, *nodes: Any, **params: Any) -> None:
        super().__init__(*nodes, cls1=FabricIntf, cls2=FabricIntf, **params)


class FabricTopo(Topo):  # type: ignore[misc]
    """A `Fabric` as Mininet sees it. Port n of a switch is its n-th cable, named `switch-n`."""

    def build(self, fabric: Fabric, with_hosts: bool = True) -> None:
        """Mininet's hook, called by the constructor with its arguments."""
        self.fabric = fabric
        for switch in fabric.switches:
            self.addSwitch(switch.name, dpid=f"{switch.dpid:016x}")
        ports = dict.fromkeys((switch.name for switch in fabric.switches), 0)
        for cable in fabric.cables:
            limited = cable.kind is CableKind.TUNNEL
            ports[cable.a] += 1
            ports[cable.b] += 1
            self.addLink(
                *(cable.a, cable.b, ports[cable.a], ports[cable.b]),
                cls=FabricLink,
                intfName1=cable_port(cable.a, ports[cable.a]),
                intfName2=cable_port(cable.b, ports[cable.b]),
                **({"bw": cable.capacity_bps / 1e6} if limited else {}),
            )
        if with_hosts:
            for host in fabric.hosts:
                self.addHost(host.name)
                self.addLink(host.name, host.edge, cls=FabricLink, intfName1="eth0")


def cable_port(switch: str, number: int) -> str:
    """The name of the port where the `number`-th cable (from 1) of `switch` ends."""
    return f"{switch}-{number}"


class _Generated(FabricTopo):
    """A fabric made from `mn`'s own arguments."""

    def build(self, *numbers: Any, **parameters: Any) -> None:
        super().build(self.make(*numbers, **parameters))


class LeafSpine(_Generated):
    """`--topo leafspine,LEAVES,SPINES,HOSTS`."""

    make = staticmethod(leaf_spine)


class FatTree(_Generated):
    """`--topo fattree,K`."""

    make = staticmethod(fat_tree)


class Hybrid(_Generated):
    """`--topo hybrid`."""

    make = staticmethod(hybrid)


class FromFile(_Generated):
    """`--topo file,PATH` for a YAML file."""

    make = staticmethod(lambda path: load.validate(Path(path)))


topos = {"leafspine": LeafSpine, "fattree": FatTree, "hybrid": Hybrid, "file": FromFile}
