"""Rules that a datapath has by being there: discovery, labels, paths, and the frame of the
pipeline that the other rooms fill.
"""

from __future__ import annotations

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Bucket,
    Ct,
    Flow,
    Group,
    GroupType,
    Meter,
    Output,
    PopMpls,
    PushMpls,
    SetField,
    ToGroup,
)
from controller.act.dataplane.pipeline import (
    ARP,
    EGRESS,
    IPV4,
    IPV6,
    LLDP,
    METER_RATES,
    MPLS,
    ZONE,
    MeterId,
    Owner,
    Payload,
    TableId,
    after,
    edge_label,
    path_group,
)
from controller.act.dataplane.rules.base import (
    CT_ESTABLISHED,
    CT_INVALID,
    CT_NEW,
    CT_RELATED,
    CT_REPLY,
    CT_TRACKED,
    GATEWAY,
    MULTICAST_BIT,
    Entries,
    Writer,
    punt,
)
from controller.act.dataplane.view import FabricView

#: Hashed by the groups that spread connections over paths.
HASHED = (f.IPV4_SRC, f.IPV4_DST, f.IP_PROTO, f.TCP_SRC, f.TCP_DST, f.UDP_SRC, f.UDP_DST)
HASHED6 = (f.IPV6_SRC, f.IPV6_DST, *HASHED[2:])

ICMPV6 = 58
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, SOLICITATION, ADVERTISEMENT, REDIRECT = range(133, 138)


def switch(view: FabricView, datapath: str) -> Entries:
    """The frame: what does not depend on which VMs or links there are."""
    discovery = Writer.of(Owner.DISCOVERY)
    yield discovery.flow(TableId.CLASSIFY, 1000, (f.ETH_TYPE, LLDP), do=(Output(CONTROLLER),))
    if not view.is_edge(datapath):
        return
    for meter in MeterId:
        rate = METER_RATES[meter]
        yield Meter(meter, rate, burst=rate, packets=True)
    yield from _answer_frame()
    yield from _state_frame()
    unreachable = Writer.of(Owner.UNREACHABLE)
    for ethertype in (IPV4, IPV6):
        yield unreachable.flow(
            TableId.LOCATE,
            50,
            (f.ETH_TYPE, ethertype),
            (f.ETH_DST, GATEWAY),
            do=punt(MeterId.ERRORS),
        )


def _answer_frame() -> Entries:
    frame = Writer.of(Owner.SWITCH)
    neighbour = Writer.of(Owner.NEIGHBOUR)
    expired = Writer.of(Owner.EXPIRED)
    table = TableId.ANSWER
    for icmp in (SOLICITATION, ROUTER_SOLICITATION):
        yield neighbour.flow(
            table,
            300,
            (f.ETH_TYPE, IPV6),
            (f.IP_PROTO, ICMPV6),
            (f.ICMPV6_TYPE, icmp),
            do=punt(MeterId.REQUESTS),
        )
    for icmp in (ADVERTISEMENT, ROUTER_ADVERTISEMENT, REDIRECT):
        # Neighbours are told by the fabric alone, so nobody can be told a lie.
        yield frame.flow(
            table, 300, (f.ETH_TYPE, IPV6), (f.IP_PROTO, ICMPV6), (f.ICMPV6_TYPE, icmp)
        )
    for ethertype in (IPV4, IPV6):
        for ttl in (0, 1):
            yield expired.flow(
                table,
                150,
                (f.ETH_TYPE, ethertype),
                (f.ETH_DST, GATEWAY),
                (f.IP_TTL, ttl),
                do=punt(MeterId.ERRORS),
            )
    yield frame.flow(table, 55, (f.ETH_DST, MULTICAST_BIT, MULTICAST_BIT))
    yield frame.flow(table, 50, (f.ETH_TYPE, ARP))
    for ethertype in (IPV4, IPV6):
        yield frame.flow(table, 1, (f.ETH_TYPE, ethertype), goto=after(table))


def _state_frame() -> Entries:
    frame = Writer.of(Owner.SWITCH)
    for ethertype in (IPV4, IPV6):
        kind = (f.ETH_TYPE, ethertype)
        yield frame.flow(TableId.CONNTRACK, 1, kind, do=(Ct(ZONE, table=TableId.ACCESS_OUT),))
        new = (f.CT_STATE, CT_TRACKED | CT_NEW, CT_TRACKED | CT_NEW)
        for table in (TableId.COMMIT_OUT, TableId.COMMIT_IN):
            yield frame.flow(table, 10, kind, new, do=(Ct(ZONE, commit=True),), goto=after(table))
    for table in (TableId.COMMIT_OUT, TableId.COMMIT_IN):
        yield frame.flow(table, 1, goto=after(table))
    for table in (TableId.ACCESS_OUT, TableId.ACCESS_IN):
        reply = CT_TRACKED | CT_ESTABLISHED | CT_REPLY
        related = CT_TRACKED | CT_RELATED
        invalid = CT_TRACKED | CT_INVALID
        yield frame.flow(table, 6000, (f.CT_STATE, reply, reply | CT_INVALID), goto=after(table))
        yield frame.flow(
            table, 6000, (f.CT_STATE, related, related | CT_INVALID), goto=after(table)
        )
        yield frame.flow(table, 2900, (f.CT_STATE, invalid, invalid))


def uplinks(view: FabricView, datapath: str) -> list[int]:
    """Ports that lead to other switches. A port that a VM was plugged into is never one,
    whatever it claims."""
    return sorted(
        link.port
        for link in view.state.links.values()
        if link.datapath == datapath and (datapath, link.port) not in view.plugged
    )


def paths(view: FabricView, datapath: str) -> Entries:
    """Labels in and out, and on an edge the groups that put labels on."""
    w = Writer.of(Owner.PATHS)
    for port in uplinks(view, datapath):
        yield w.flow(
            TableId.CLASSIFY, 500, (f.IN_PORT, port), (f.ETH_TYPE, MPLS), goto=TableId.LABEL
        )
    for edge, tree, port in sorted(view.routes.carried.get(datapath, ())):
        number = view.number(edge)
        for payload in Payload:
            yield _label(w, edge_label(number, tree, payload), do=(Output(port),))
    if not view.is_edge(datapath) or not view.number(datapath):
        return
    yield from _own_labels(view, w, datapath)
    for edge in sorted(view.edges):
        out = view.routes.trees(edge, datapath)
        if edge != datapath and view.is_edge(edge) and out:
            yield from _towards(w, view.number(edge), out)


def _label(
    w: Writer, label: int, *, do: tuple[Output | PopMpls, ...], deliver: bool = False
) -> Flow:
    goto = TableId.DELIVER if deliver else None
    return w.flow(TableId.LABEL, 10, (f.ETH_TYPE, MPLS), (f.MPLS_LABEL, label), do=do, goto=goto)


def _own_labels(view: FabricView, w: Writer, datapath: str) -> Entries:
    number = view.number(datapath)
    trees = max((len(p) for (_, e), p in view.routes.ports.items() if e == datapath), default=0)
    for tree in range(trees):
        for payload in Payload:
            label = edge_label(number, tree, payload)
            yield _label(w, label, do=(PopMpls(payload.ethertype),), deliver=True)


def push(
    edge: int, tree: int, payload: Payload, port: int
) -> tuple[PushMpls | SetField | Output, ...]:
    """Actions that send a packet towards datapath number `edge` by `tree`."""
    return (
        PushMpls(),
        SetField(f.MPLS_LABEL, edge_label(edge, tree, payload)),
        Output(port),
    )


def _towards(w: Writer, number: int, out: tuple[int, ...]) -> Entries:
    for payload, ethertype, hashed in (
        (Payload.IPV4, IPV4, HASHED),
        (Payload.IPV6, IPV6, HASHED6),
    ):
        buckets = tuple(Bucket(push(number, tree, payload, port)) for tree, port in enumerate(out))
        yield Group(
            path_group(number, payload),
            GroupType.SELECT,
            buckets,
            hashed if len(buckets) > 1 else (),
        )
        yield w.flow(
            TableId.PATH,
            10,
            (f.ETH_TYPE, ethertype),
            (EGRESS, number),
            do=(ToGroup(path_group(number, payload)),),
        )
