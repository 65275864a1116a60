"""What the benchmarks share: options, progress, percentiles, and a fabric with VMs on it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from controller.model.nouns import Host, Nic, Subnet, Tenant, Vm
from mininet_labs.deployment import Deployment, wait_until
from mininet_labs.lab import Lab
from mininet_labs.vm import LabVm
from topologies.model import Fabric

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Options:
    """How a benchmark was called."""

    data: Path | None
    quick: bool


def say(*words: object) -> None:
    """Progress, with the time."""
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 1).__int__() - 1))]


class Bench:
    """A running fabric, the two processes, and VMs by number.

    VM n is of tenant n mod `tenants` and sits at edge n mod edges; its addresses say so.
    """

    def __init__(self, lab: Lab, deployment: Deployment, tenants: int) -> None:
        self.lab = lab
        self.deployment = deployment
        self.client = deployment.client
        self.store = deployment.store
        self.tenants = tenants
        self.guests: dict[int, LabVm] = {}

    def tenant_of(self, number: int) -> int:
        """Number of the tenant of a VM."""
        return number % self.tenants

    def edge_of(self, number: int) -> int:
        """Index of the edge where a VM begins."""
        return number // self.tenants % len(self.lab.edges)

    @staticmethod
    def mac(number: int) -> str:
        """MAC of a VM."""
        return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"

    def address(self, number: int) -> IPv4Address:
        """Address of a VM; its tenant's number is the second octet."""
        return IPv4Address((10 << 24) + (self.tenant_of(number) << 16) + 10 + number)

    def gateway(self, number: int) -> IPv4Address:
        """Gateway of a VM's subnet."""
        return IPv4Address((10 << 24) + (self.tenant_of(number) << 16) + 1)

    def define(self, numbers: Sequence[int], groups: Mapping[int, tuple[str, ...]] = {}) -> None:
        """Make the VMs known."""
        for number in numbers:
            nic = Nic(
                mac=self.mac(number),
                subnet=f"net{self.tenant_of(number)}",
                ipv4=self.address(number),
            )
            self.client.put(
                Vm(
                    id=f"vm{number}",
                    tenant=f"tenant{self.tenant_of(number)}",
                    nics=(nic,),
                    groups=groups.get(number, ()),
                )
            )

    def guest(self, number: int) -> LabVm:
        """A real guest for a VM, plugged in where the VM begins."""
        vm = self.lab.vm(
            f"vm{number}", self.mac(number), self.address(number), 16, self.gateway(number)
        )
        vm.plug(self.lab.edges[self.edge_of(number)], f"tap{number}")
        self.guests[number] = vm
        return vm

    def place(self, number: int) -> float:
        """Place a VM by REST; milliseconds from the request to the last switch's barrier."""
        begin = time.time()
        edge = self.edge_of(number)
        reply = self.client.place(f"vm{number}", f"host{edge}", [f"tap{number}"], wait=True)
        assert reply.confirmed_at is not None
        return (reply.confirmed_at - begin) * 1000


@contextlib.contextmanager
def bench(fabric: Fabric, *, tenants: int, settings: Mapping[str, str] = {}) -> Iterator[Bench]:
    """Lab and processes running, links discovered, tenants, subnets and hosts known."""
    # What is not about chosen paths is not to be disturbed by decisions on them.
    settings = {"PLEACH_PATHS__ENABLED": "false", **settings}
    with (
        tempfile.TemporaryDirectory(prefix="pleach-bench-") as directory,
        Deployment(Path(directory), settings) as deployment,
    ):
        deployment.start()
        with Lab(fabric, controller=deployment.controller) as lab, contextlib.ExitStack() as stack:
            running = Bench(lab, deployment, tenants)
            lab.wait_connected()
            # To write the counters of a thousand ports to its database, for nobody, stops all
            # bridges of this one daemon for a tenth of a second every five.
            lab.vsctl("set", "Open_vSwitch", ".", "other_config:stats-update-interval=3600000")
            # Which controllers are connected is written with them: the next lab waits for that.
            stack.callback(
                lab.vsctl, "remove", "Open_vSwitch", ".", "other_config", "stats-update-interval"
            )
            links = 2 * len(fabric.cables)
            wait_until(
                lambda: sum(link.up for link in running.client.topology().links) == links,
                "every link is discovered",
            )
            for tenant in range(tenants):
                running.client.put(Tenant(id=f"tenant{tenant}"))
                running.client.put(
                    Subnet(id=f"net{tenant}", tenant=f"tenant{tenant}", cidr=f"10.{tenant}.0.0/16")
                )
            for index, edge in enumerate(lab.edges):
                running.client.put(Host(id=f"host{index}", datapath=lab.dpid(edge)))
            yield running
