"""What does an edge switch of a large fabric have? Entries of the compiler's own making."""

from __future__ import annotations

from controller.act.dataplane.compiler import Entry, compile_all
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.view import FabricView
from controller.model.nouns import (
    AccessRule,
    Action,
    Datapath,
    Host,
    Link,
    Nic,
    Placement,
    Port,
    PortRange,
    Protocol,
    Record,
    Selector,
    Subnet,
    Tenant,
    Vm,
)
from controller.model.state import State

TENANTS, EDGES, CORES = 10, 8, 2
#: VMs of the whole fabric give an edge about ten entries each.
ENTRIES_A_VM = 9


def entries(flows: int) -> list[Entry]:
    """Groups, meters and exactly so many flow entries of an edge of 8, with VMs of ten tenants,
    IPv4 and IPv6, and access rules; what is referred to comes first."""
    compiled = compile_all(FabricView.of(_state(200 + flows // ENTRIES_A_VM)), _dpid(0)).entries
    found = [entry for entry in compiled.values() if isinstance(entry, Flow)]
    if len(found) < flows:
        raise RuntimeError(f"the fabric gives {len(found)} entries; {flows} are needed")
    # In the same order in every process; cookies keep what belongs together beside each other.
    found.sort(key=lambda flow: (flow.cookie, flow.table, flow.priority, repr(flow.match)))
    return [*(e for e in compiled.values() if not isinstance(e, Flow)), *found[:flows]]


def _dpid(switch: int) -> str:
    return f"{switch + 1:016x}"


def _state(vms: int) -> State:
    switches = [Datapath(dpid=_dpid(n), number=n + 1, connected=True) for n in range(EDGES + CORES)]
    records: list[Record] = [*switches]
    for edge in range(EDGES):
        records.append(Host(id=f"host{edge}", datapath=_dpid(edge)))
        for core in range(CORES):
            records += _cable(edge, 1 + core, EDGES + core, 1 + edge)
    for tenant in range(TENANTS):
        records += _tenant(tenant)
    for vm in range(vms):
        records += _vm(vm)
    return State.of(records)


def _cable(a: int, port: int, b: int, to_port: int) -> list[Record]:
    ends = ((a, port, b, to_port), (b, to_port, a, port))
    return [
        record
        for one, number, other, to_number in ends
        for record in (
            Port(datapath=_dpid(one), number=number, name=f"to{other}"),
            Link(
                datapath=_dpid(one), port=number, to_datapath=_dpid(other), to_port=to_number
            ),
        )
    ]  # fmt: skip


def _tenant(tenant: int) -> list[Record]:
    return [
        Tenant(id=f"tenant{tenant}", number=tenant + 1),
        Subnet(
            id=f"net{tenant}",
            tenant=f"tenant{tenant}",
            cidr=f"10.{tenant}.0.0/16",
            cidr6=f"fd00:{tenant}::/64",
            number=tenant + 1,
        ),
        AccessRule(
            id=f"database{tenant}",
            tenant=f"tenant{tenant}",
            number=tenant + 1,
            source=Selector(groups=("web",)),
            destination=Selector(groups=("database",)),
            protocol=Protocol.TCP,
            action=Action.ALLOW,
            ports=(PortRange(first=5432, last=5440),),
        ),
    ]


def _vm(vm: int) -> list[Record]:
    tenant, edge = vm % TENANTS, vm // TENANTS % EDGES
    nic = Nic.model_validate(
        {
            "mac": f"02:00:00:{vm >> 16:02x}:{vm >> 8 & 255:02x}:{vm & 255:02x}",
            "subnet": f"net{tenant}",
            "ipv4": f"10.{tenant}.{1 + (vm >> 8)}.{vm & 255}",
            "ipv6": f"fd00:{tenant}::{vm + 16:x}",
        }
    )
    groups = ("web",) if vm % 3 else ("database",)
    return [
        Vm(id=f"vm{vm}", tenant=f"tenant{tenant}", groups=groups, nics=(nic,)),
        Port(datapath=_dpid(edge), number=100 + vm, name=f"tap{vm}"),
        Placement(vm=f"vm{vm}", host=f"host{edge}", ports=(f"tap{vm}",)),
    ]
