"""Entries in words: what is matched and done, and whom it serves.

The words for matches and actions are those that `ovs-ofctl dump-flows` uses, so that both can
be laid side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from controller.act.dataplane.compiler import compile_unit
from controller.act.dataplane.impact import Unit, datapaths, units_at
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow import records as r
from controller.act.dataplane.openflow.aliens import AlienFlow, AlienGroup, AlienMeter
from controller.act.dataplane.pipeline import TABLES, Owner, TableId, owner_of
from controller.act.dataplane.view import FabricView
from controller.model.addresses import mac_from_int
from controller.model.signatures import Observed
from controller.model.state import State

_MACS = {f.ETH_SRC, f.ETH_DST, f.ARP_SHA, f.ARP_THA, f.ND_SLL, f.ND_TLL}
_IPV4 = {f.IPV4_SRC, f.IPV4_DST, f.ARP_SPA, f.ARP_TPA}
_IPV6 = {f.IPV6_SRC, f.IPV6_DST, f.ND_TARGET}
_HEX = {f.ETH_TYPE, f.CT_STATE, f.CT_MARK, f.TCP_FLAGS, *f.REG}

#: Units that are named after a VM.
_OF_VM = ("vm", "services", "bandwidth", "marking", "signatures", "capture")
_REASONS = {
    Owner.SWITCH: "frame of the pipeline",
    Owner.PATHS: "labels and paths between edges",
    Owner.TENANT: "the tenant's default policy",
    Owner.SUBNET: "gateway and floods of the subnet",
    Owner.VM: "where the VM is, and what it may send from",
    Owner.ACCESS: "an access rule",
    Owner.BANDWIDTH: "how fast the VM may send and receive",
    Owner.MARKING: "the class of service of what the VM's services are asked and answer",
    Owner.DISCOVERY: "links are discovered by LLDP",
    Owner.DHCP: "DHCP is answered from the store",
    Owner.NEIGHBOUR: "IPv6 neighbours are told by the fabric",
    Owner.GATEWAY: "sent to the gateway itself",
    Owner.EXPIRED: "the TTL ends at the gateway",
    Owner.UNREACHABLE: "no VM has the destination",
    Owner.TAP: "what answers at a port is told from its first packets",
    Owner.CAPTURE: "some packets of the VM are copied for an alert",
    Owner.OBSERVE: "it is counted who talks to whom",
    Owner.SIGNATURE: "whom the VM talks to is known, and counted",
    Owner.LEARNED: "the switch counts what it met, until the controller takes it over",
    Owner.FIRST: "the first packet of whom nobody knew to talk is counted and goes up once",
    Owner.DENIAL: "what access denies is counted and goes up once",
    Owner.ACTIVATION: "the first packet here tells that the VM has arrived",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One flow entry of one datapath, and why it is there. `owner` is such as "vm web-1"."""

    datapath: str
    table: str
    priority: int
    match: str
    actions: str
    owner: str
    reason: str
    cookie: str


def explain(
    state: State,
    *,
    vm: str | None = None,
    datapath: str | None = None,
    cookie: int | None = None,
    tapping: bool = True,
    observed: Observed | None = None,
) -> list[Explanation]:
    """The flow entries that `state` asks for, narrowed by VM, datapath or cookie, in the order
    in which a packet meets them."""
    view = FabricView.of(state, observed, tapping=tapping)
    found = []
    for name in sorted(datapaths(view)):
        if datapath is not None and name != datapath:
            continue
        units: Iterator[Unit] = (
            units_at(view, name) if vm is None else (Unit(kind, vm) for kind in _OF_VM)
        )
        for unit in units:
            for flow in compile_unit(view, unit, name).flows:
                if cookie is None or flow.cookie == cookie:
                    found.append((name, flow, unit))
    found.sort(key=lambda x: (x[0], x[1].table, -x[1].priority))
    return [_explained(name, flow, unit) for name, flow, unit in found]


def _explained(datapath: str, flow: r.Flow, unit: Unit) -> Explanation:
    owner = owner_of(flow.cookie)
    table = TableId(flow.table)
    return Explanation(
        datapath=datapath,
        table=f"{flow.table} {table.name.lower()}: {TABLES[table].answers}",
        priority=flow.priority,
        match=match_text(flow.match) or "any",
        actions=actions_text(flow),
        owner=f"{unit.kind} {unit.key}".strip(),
        reason=_REASONS[owner] if owner else "",
        cookie=f"{flow.cookie:#018x}",
    )


def text(key: object, entry: object) -> str:
    """Any entry, or just its key, in one line."""
    if isinstance(entry, r.Flow | AlienFlow):
        owner = owner_of(entry.cookie)
        whose = owner.name.lower() if owner else f"nobody we know ({entry.cookie:#x})"
        where = f"table {entry.table}, priority {entry.priority}"
        if isinstance(entry, AlienFlow):
            return f"flow in {where} of {whose}: {entry.why}"
        return f"flow in {where} of {whose}: {match_text(entry.match)} -> {actions_text(entry)}"
    if isinstance(entry, r.Group):
        return f"group {entry.id:#x} with {len(entry.buckets)} buckets"
    if isinstance(entry, AlienGroup | AlienMeter):
        return f"{type(entry).__name__} {entry.id:#x}: {entry.why}"
    if isinstance(entry, r.Meter):
        unit = "packets/s" if entry.packets else "kbit/s"
        return f"meter {entry.id} of {entry.rate} {unit}"
    return f"entry at {key}"


def value_text(field: f.Field, value: int) -> str:
    """A field's value as people write it."""
    if field in _MACS:
        return mac_from_int(value)
    if field in _IPV4:
        return str(IPv4Address(value))
    if field in _IPV6:
        return str(IPv6Address(value))
    return f"{value:#x}" if field in _HEX else str(value)


def match_text(match: r.Match) -> str:
    """A match as a list of field=value."""
    words = []
    for field, value, mask in match:
        shown = value_text(field, value)
        words.append(
            f"{field.name}={shown}" + ("" if mask is None else f"/{value_text(field, mask)}")
        )
    return ",".join(words)


def actions_text(flow: r.Flow) -> str:
    """Actions and the table after them; "drop" where there is neither."""
    words = [_action(a) for a in flow.actions]
    if flow.goto is not None:
        words.append(f"goto_table:{flow.goto}")
    return ",".join(words) or "drop"


_PORTS = {r.CONTROLLER: "CONTROLLER", r.IN_PORT_NUMBER: "IN_PORT", r.LOCAL: "LOCAL"}


def _action(action: r.Act) -> str:
    match action:
        case r.Output(port):
            return f"output:{_PORTS.get(port, port)}"
        case r.SetField(field, value, mask):
            bits = "" if mask is None else f"/{value_text(field, mask)}"
            return f"set_field:{value_text(field, value)}{bits}->{field.name}"
        case r.Move(source, target):
            return f"move:{source.name}->{target.name}"
        case r.ToGroup(group):
            return f"group:{group:#x}"
        case r.ToMeter(meter):
            return f"meter:{meter}"
        case r.Ct(zone, table, commit, sets):
            where = zone.name if isinstance(zone, f.Field) else zone
            rest = (",commit" if commit else "") + ("" if table is None else f",table={table}")
            rest += f",exec({','.join(_action(a) for a in sets)})" if sets else ""
            return f"ct(zone={where}{rest})"
        case r.Clone(actions):
            return f"clone({','.join(_action(a) for a in actions)})"
        case r.Conjunction(number, clause, clauses):
            return f"conjunction({number},{clause + 1}/{clauses})"
        case _:
            return _plain(action)


def _plain(action: r.Act) -> str:
    match action:
        case r.PushMpls(ethertype):
            return f"push_mpls:{ethertype:#06x}"
        case r.PopMpls(ethertype):
            return f"pop_mpls:{ethertype:#06x}"
        case r.Resubmit(table):
            return f"resubmit(,{table})"
        case r.Learn(table, priority, _, specs):
            tests = ",".join(map(_learnt, specs))
            return f"learn(table={table},priority={priority},{tests})"
        case r.OutputField(field):
            return f"output:{field.name}"
        case r.DecTtl():
            return "dec_ttl"
        case _:
            return "ct_clear"


def _learnt(spec: r.Learnt) -> str:
    def part(field: f.Field, offset: int) -> str:
        return f"{field.name}[{offset}..{offset + spec.bits - 1}]"

    where = part(spec.field, spec.offset)
    if spec.source is None:
        return f"{where}={spec.value:#x}"
    return f"{where}={part(spec.source, spec.source_offset)}"
