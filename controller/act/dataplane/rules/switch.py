"""Rules that a datapath has by being there: discovery, labels, paths, and the frame of the
pipeline that the other rooms fill.
"""

from __future__ import annotations

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Bucket,
    Ct,
    Flow,
    Group,
    GroupType,
    Meter,
    Move,
    Output,
    PopMpls,
    PushMpls,
    SetField,
    ToGroup,
)
from controller.act.dataplane.pipeline import (
    ALIVE_GROUP,
    ARP,
    BEGUN_MARK,
    CLASS,
    EDGE_MASK,
    EGRESS,
    IPV4,
    IPV6,
    LABEL,
    LABEL_BITS,
    LLDP,
    METER_RATES,
    MPLS,
    PAYLOAD_MASK,
    SEEN,
    TRAFFIC,
    TREE_MASK,
    ZONE,
    Class,
    MeterId,
    Owner,
    Payload,
    Seen,
    TableId,
    after,
    edge_label,
    failover_group,
    path_group,
    tree_bits,
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
from controller.act.dataplane.trees import Hop
from controller.act.dataplane.view import FabricView
from controller.model.nouns import RouteClass

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
        # What is committed has no state any more, and what is committed again is marked.
        yield frame.flow(
            TableId.COMMIT_OUT,
            11,
            kind,
            new,
            (f.CT_MARK, 0, BEGUN_MARK),
            do=(
                SetField(SEEN, Seen.BEGUN, Seen.BEGUN),
                Ct(ZONE, commit=True, sets=(SetField(f.CT_MARK, BEGUN_MARK, BEGUN_MARK),)),
            ),
            goto=after(TableId.COMMIT_OUT),
        )
    passing = (TableId.MARK, TableId.BANDWIDTH_OUT, TableId.BANDWIDTH_IN)
    for table in (TableId.COMMIT_OUT, TableId.COMMIT_IN, *passing):
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
            TableId.CLASSIFY,
            500,
            (f.IN_PORT, port),
            (f.ETH_TYPE, MPLS),
            do=(Move(f.MPLS_LABEL, LABEL, LABEL_BITS),),
            goto=TableId.LABEL,
        )
    slots = view.routes.slots(datapath)
    if slots:
        yield Group(ALIVE_GROUP, GroupType.ALL, (Bucket(()),))
    for hop, slot in slots.items():
        yield _failover(hop, slot)
    for (edge, tree), hop in view.routes.carried(datapath).items():
        label = edge_label(view.number(edge), tree, 0)
        yield _label(w, label, EDGE_MASK | TREE_MASK, do=send(view, datapath, hop))
    own = view.number(datapath)
    if not view.is_edge(datapath) or not own:
        return
    for payload in Payload:
        pop = (PopMpls(payload.ethertype),)
        label = edge_label(own, 0, payload)
        yield _label(w, label, EDGE_MASK | PAYLOAD_MASK, do=pop, goto=TableId.DELIVER)
    for edge in sorted(view.edges):
        if edge != datapath and view.is_edge(edge) and view.number(edge):
            yield from _towards(view, w, datapath, edge)


def _label(
    w: Writer, label: int, mask: int, *, do: tuple[Act, ...], goto: TableId | None = None
) -> Flow:
    return w.flow(TableId.LABEL, 10, (f.ETH_TYPE, MPLS), (LABEL, label, mask), do=do, goto=goto)


def _failover(hop: Hop, slot: int) -> Group:
    """What needs no controller: the port that lives is taken, and the packet put on a detour
    where none of its own does. Where nothing lives it goes out nevertheless: a switch that was
    busy for longer than BFD waits takes all its links for dead at once, and so do those around
    it, while each of them carries packets. On the tree that it is on it cannot go in circles."""
    buckets = [Bucket((Output(port),), watch_port=port) for port in hop.ports]
    if hop.detour is not None:
        turn: tuple[Act, ...] = (
            SetField(LABEL, tree_bits(hop.detour), TREE_MASK),
            Move(LABEL, f.MPLS_LABEL, LABEL_BITS),
            # It may have to go back to where it came from, which a switch does not do otherwise.
            SetField(f.INGRESS, 0),
        )
        buckets += [Bucket((*turn, Output(port)), watch_port=port) for port in hop.around]
    buckets.append(Bucket((Output(hop.ports[0]),), watch_group=ALIVE_GROUP))
    return Group(failover_group(slot), GroupType.FAST_FAILOVER, tuple(buckets))


def send(view: FabricView, datapath: str, hop: Hop) -> tuple[Act, ...]:
    """Actions that send on a packet whose label the register LABEL holds too."""
    slot = view.routes.slots(datapath).get(hop)
    return (Output(hop.ports[0]) if slot is None else ToGroup(failover_group(slot)),)


def push(edge: int, tree: int, payload: Payload) -> tuple[Act, ...]:
    """Actions that put the label towards datapath number `edge` by `tree` on a packet."""
    label = edge_label(edge, tree, payload)
    return (
        PushMpls(),
        SetField(f.MPLS_LABEL, label),
        Move(TRAFFIC, f.MPLS_TC, 3),
        SetField(LABEL, label),
    )


def _towards(view: FabricView, w: Writer, datapath: str, edge: str) -> Entries:
    """The ways to one edge: those chosen for the traffic, else the planned trees. Until it is told
    of fewer of them, the switch goes around a port that is dead by its own fast failover, which
    also knows what to do where none lives. What is in no class of its own goes with the bulk.

    The group stays, and hashes the same fields, however many trees are left, none of them even:
    Open vSwitch before 3.1.2 confuses cached flows that overlap (dpif_netdev_flow_put), and
    could go on dropping by one of them after a way came back.
    """
    number = view.number(edge)
    weighted = view.routes.weighted
    bulk = weighted.buckets(datapath, edge, RouteClass.BULK)
    yield from _spread(view, w, datapath, number, bulk or view.routes.trees(edge, datapath))
    interactive = weighted.buckets(datapath, edge, RouteClass.INTERACTIVE)
    if interactive:
        yield from _spread(view, w, datapath, number, interactive, Class.INTERACTIVE)


def _spread(
    view: FabricView,
    w: Writer,
    datapath: str,
    number: int,
    trees: tuple[tuple[int, Hop], ...],
    traffic_class: Class = Class.DEFAULT,
) -> Entries:
    """A group that spreads packets of a class over trees to datapath `number`, and what leads
    there. A tree that is given twice takes twice as much."""
    priority = 20 if traffic_class else 10
    tests = ((CLASS, traffic_class),) if traffic_class else ()
    for payload, ethertype, hashed in (
        (Payload.IPV4, IPV4, HASHED),
        (Payload.IPV6, IPV6, HASHED6),
    ):
        made = {
            (tree, hop): Bucket((*push(number, tree, payload), *send(view, datapath, hop)))
            for tree, hop in set(trees)
        }
        group = path_group(number, payload, traffic_class)
        yield Group(group, GroupType.SELECT, tuple(made[tree] for tree in trees), hashed)
        test = ((f.ETH_TYPE, ethertype), (EGRESS, number), *tests)
        yield w.flow(TableId.PATH, priority, *test, do=(ToGroup(group),))
