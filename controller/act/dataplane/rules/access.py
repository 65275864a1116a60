"""The access rules of one tenant at one datapath.

A rule is a conjunction of source, destination and service, so it costs the sum of their
sizes and not the product (ovs-fields(7), "Conjunctive Match Fields"). Rules stand on both
sides: where the source is plugged in (`access_out`) and where the destination is
(`access_in`), each with only those members that are local on its own side.

A VM that has just moved takes connections along that its new edge never saw begin. While it
is given grace, each rule holds for it in the other direction too, for TCP only without SYN,
and nothing is committed by that: the connection is entered in conntrack, the right way
round, by the next packet that goes in the rule's own direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import Conjunction, Match, Resubmit, Test, match
from controller.act.dataplane.pipeline import IPV4, IPV6, TENANT, Owner, TableId, after
from controller.act.dataplane.rules.base import Entries, Writer
from controller.act.dataplane.view import FabricView
from controller.model.nouns import AccessRule, Action, Nic, PortRange, Protocol, Selector

Network = IPv4Network | IPv6Network
#: One way of satisfying a clause.
Tests = tuple[Test, ...]

#: Where it is counted what one of the tables denies.
DENIED = {TableId.ACCESS_OUT: TableId.DENIED_OUT, TableId.ACCESS_IN: TableId.DENIED_IN}
_GRACE = 3000
_TCP_SYN = 0x002
_PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_PORT_FIELDS = {
    Protocol.TCP: (f.TCP_SRC, f.TCP_DST),
    Protocol.UDP: (f.UDP_SRC, f.UDP_DST),
    Protocol.SCTP: (f.SCTP_SRC, f.SCTP_DST),
}


@dataclass(slots=True)
class _Sheet:
    """Entries under construction: rules of equal priority may share a place."""

    direct: dict[tuple[TableId, int, Match], tuple[TableId | None, str]] = field(
        default_factory=dict
    )
    clauses: dict[tuple[TableId, int, Match], dict[Conjunction, str]] = field(default_factory=dict)


def access(view: FabricView, key: str, datapath: str) -> Entries:
    """All access rules of the tenant `key` at `datapath`."""
    tenant = view.tenant(key)
    rules = view.tenant_rules.get(key)
    if tenant is None or not rules or not view.tenant_at(key, datapath):
        return
    local = frozenset(
        p.nic.mac for vm in view.tenant_vms.get(key, ()) for p in view.places_at(datapath, vm)
    )
    graced = frozenset(
        p.nic.mac
        for vm in view.tenant_vms.get(key, ())
        if vm in view.moving
        for p in view.places_at(datapath, vm)
        if p.grace
    )
    sheet = _Sheet()
    for rule_key in sorted(rules):
        rule = view.state.access_rules[rule_key]
        for table in (TableId.ACCESS_OUT, TableId.ACCESS_IN):
            _write(sheet, view, tenant.number, rule, table, local, graced=False)
            if graced:
                _write(sheet, view, tenant.number, rule, table, graced, graced=True)
    yield from _entries(sheet)


def _entries(sheet: _Sheet) -> Entries:
    for (table, priority, tests), (goto, owner) in sheet.direct.items():
        do = (Resubmit(DENIED[table]),) if goto is None else ()
        yield Writer.of(Owner.ACCESS, owner).flow(table, priority, *tests, do=do, goto=goto)
    for place, conjunctions in sheet.clauses.items():
        # What a rule decides by this clause alone needs no conjunction at the same priority.
        if place not in sheet.direct:
            table, priority, tests = place
            owner = next(iter(conjunctions.values()))
            ordered = sorted(conjunctions, key=lambda c: (c.id, c.clause))
            yield Writer.of(Owner.ACCESS, owner).flow(table, priority, *tests, do=ordered)


def _write(
    sheet: _Sheet,
    view: FabricView,
    tenant: int,
    rule: AccessRule,
    table: TableId,
    local: frozenset[str],
    *,
    graced: bool,
) -> None:
    """Enter one rule for one table. With `graced`, source and destination change places."""
    outwards = table is TableId.ACCESS_OUT
    source, destination = (
        (rule.destination, rule.source) if graced else (rule.source, rule.destination)
    )
    clauses = [
        _side(view, rule, source, local if outwards else None, force=graced and outwards),
        _side(view, rule, destination, None if outwards else local, force=graced and not outwards),
    ]
    tests = [
        None if networks is None else [_network(n, source=i == 0) for n in networks]
        for i, networks in enumerate(clauses)
    ]
    tests.append(_service(rule, reverse=graced))
    wanted = [clause for clause in tests if clause is not None]
    if any(not clause for clause in wanted):
        return
    priority = 100 + 2 * rule.priority + (rule.action is Action.DENY) + (_GRACE if graced else 0)
    goto = _next(table, graced=graced) if rule.action is Action.ALLOW else None
    scope: Test = (TENANT, tenant, None)
    if len(wanted) < 2:
        for test in wanted[0] if wanted else [()]:
            sheet.direct[table, priority, match(scope, *test)] = (goto, rule.id)
        return
    number = rule.number * 2 + graced
    for position, clause in enumerate(wanted):
        conjunction = Conjunction(number, position, len(wanted))
        for test in clause:
            place = (table, priority, match(scope, *test))
            sheet.clauses.setdefault(place, {})[conjunction] = rule.id
    sheet.direct[table, priority, match(scope, (f.CONJ_ID, number))] = (goto, rule.id)


def _next(table: TableId, *, graced: bool) -> TableId:
    """The table after; what passes by grace alone is not committed on its way."""
    commit = after(table)
    return after(commit) if graced else commit


def _network(network: Network, *, source: bool) -> Tests:
    if isinstance(network, IPv4Network):
        kind, where = IPV4, f.IPV4_SRC if source else f.IPV4_DST
    else:
        kind, where = IPV6, f.IPV6_SRC if source else f.IPV6_DST
    return (
        (f.ETH_TYPE, kind, None),
        (where, int(network.network_address), int(network.netmask)),
    )


def _side(
    view: FabricView,
    rule: AccessRule,
    selector: Selector,
    local: frozenset[str] | None,
    *,
    force: bool,
) -> list[Network] | None:
    """Networks that a selector stands for; None where it selects everything. Members are
    limited to the NICs in `local` if given; `force` lists them even for "everything"."""
    if not force:
        if selector.any:
            return None
        if not (selector.vms or selector.groups):
            return sorted(_plain(view, selector), key=str)
    found: set[Network] = set()
    for nic in _members(view, rule.tenant, selector):
        if local is None or nic.mac in local:
            found.update(_addresses(nic, selector))
    return sorted(found, key=str)


def _plain(view: FabricView, selector: Selector) -> Iterator[Network]:
    """Networks of a selector that names subnets, prefixes, or both (what lies in both)."""
    subnets: list[Network] = []
    for key in selector.subnets:
        subnet = view.subnet(key)
        if subnet is not None:
            subnets.append(subnet.cidr)
            if subnet.cidr6 is not None:
                subnets.append(subnet.cidr6)
    if not selector.cidrs:
        yield from subnets
    elif not selector.subnets:
        yield from selector.cidrs
    else:
        for a in subnets:
            for b in selector.cidrs:
                if _inside(a, b):
                    yield a
                elif _inside(b, a):
                    yield b


def _inside(a: Network, b: Network) -> bool:
    if isinstance(a, IPv4Network):
        return isinstance(b, IPv4Network) and a.subnet_of(b)
    return isinstance(b, IPv6Network) and a.subnet_of(b)


def _members(view: FabricView, tenant: str, selector: Selector) -> Iterator[Nic]:
    for key in view.tenant_vms.get(tenant, ()):
        vm = view.state.vms[key]
        if selector.vms and key not in selector.vms:
            continue
        if selector.groups and not set(selector.groups) & set(vm.groups):
            continue
        for nic in vm.nics:
            if not selector.subnets or nic.subnet in selector.subnets:
                yield nic


def _addresses(nic: Nic, selector: Selector) -> Iterator[Network]:
    for address in (nic.ipv4, nic.ipv6, nic.ipv6_link_local):
        if address is None:
            continue
        network = ip_network(address)
        if not selector.cidrs or any(_inside(network, cidr) for cidr in selector.cidrs):
            yield network


def _service(rule: AccessRule, *, reverse: bool) -> list[Tests] | None:
    """Tests for protocol and ports; None for any. Reversed, the ports are the source's, and
    TCP must not begin a connection."""
    if rule.protocol is Protocol.ANY:
        if not reverse:
            return None
        tests: list[Tests] = []
        for protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP, Protocol.ICMP):
            tests.extend(_protocol(protocol, (), reverse=True))
        return tests
    return list(_protocol(rule.protocol, rule.ports, reverse=reverse))


def _protocol(protocol: Protocol, ports: Iterable[PortRange], *, reverse: bool) -> Iterator[Tests]:
    for kind in (IPV4, IPV6):
        number = _PROTOCOLS.get(protocol, 1 if kind == IPV4 else 58)
        base: Tests = ((f.ETH_TYPE, kind, None), (f.IP_PROTO, number, None))
        if reverse and protocol is Protocol.TCP:
            base = (*base, (f.TCP_FLAGS, 0, _TCP_SYN))
        ranges = tuple(ports)
        if not ranges:
            yield base
        for span in ranges:
            where = _PORT_FIELDS[protocol][0 if reverse else 1]
            for value, mask in port_masks(span.first, span.last):
                yield (*base, (where, value, mask))


def port_masks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (value, mask) pairs of 16 bits that match exactly `first` to `last`."""
    while first <= last:
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        yield first, 0xFFFF & ~(size - 1)
        first += size
