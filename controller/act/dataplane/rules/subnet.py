"""Rules of a subnet and of a tenant at one datapath: the distributed gateway, DHCP, floods
inside the subnet, and what a tenant's VMs may do where no access rule speaks.
"""

from __future__ import annotations

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    IN_PORT_NUMBER,
    Act,
    Bucket,
    Group,
    GroupType,
    Move,
    Output,
    PopMpls,
    PushMpls,
    SetField,
    ToGroup,
)
from controller.act.dataplane.pipeline import (
    IPV4,
    IPV6,
    MPLS,
    SUBNET,
    TENANT,
    MeterId,
    Owner,
    Payload,
    TableId,
    after,
    flood_group,
    local_flood_group,
    subnet_label,
)
from controller.act.dataplane.rules.base import (
    GATEWAY,
    GATEWAY_LINK_LOCAL,
    MULTICAST_BIT,
    Entries,
    Writer,
    address_test,
    punt,
)
from controller.act.dataplane.rules.switch import ICMPV6, push, send
from controller.act.dataplane.rules.vm import UDP, arp_responder, receiving
from controller.act.dataplane.view import FabricView, Place
from controller.model.addresses import IPv4Address, IPv6Address
from controller.model.nouns import Action, Subnet, Tenant

ICMP = 1


def tenant(view: FabricView, key: str, datapath: str) -> Entries:
    """What the VMs of a tenant may do by default."""
    known = view.tenant(key)
    if known is None or not view.tenant_at(key, datapath) or known.inside is not Action.ALLOW:
        return
    w = Writer.of(Owner.TENANT, key)
    for table in (TableId.ACCESS_OUT, TableId.ACCESS_IN):
        yield w.flow(table, 10, (TENANT, known.number), goto=after(table))


def subnet(view: FabricView, key: str, datapath: str) -> Entries:
    """The gateway where the tenant is present; the rest where the subnet itself is."""
    net = view.subnet(key)
    owner = view.tenant(net.tenant) if net else None
    if net is None or owner is None or not view.tenant_at(net.tenant, datapath):
        return
    w = Writer.of(Owner.SUBNET, key)
    for address in (net.gateway, net.gateway6):
        if address is not None:
            yield from _gateway(w, key, (TENANT, owner.number), address)
    if not view.subnet_at(key, datapath):
        return
    yield arp_responder(w, net.number, net.gateway, GATEWAY)
    yield from _gateway(w, key, (SUBNET, net.number), GATEWAY_LINK_LOCAL)
    if net.dhcp:
        yield Writer.of(Owner.DHCP, key).flow(
            TableId.ANSWER,
            400,
            (SUBNET, net.number),
            (f.ETH_TYPE, IPV4),
            (f.IP_PROTO, UDP),
            (f.UDP_SRC, 68),
            (f.UDP_DST, 67),
            do=punt(MeterId.REQUESTS),
        )
        # Nobody but the fabric speaks to who asks for an address.
        for ethertype, client in ((IPV4, 68), (IPV6, 546)):
            kind = (f.ETH_TYPE, ethertype), (f.IP_PROTO, UDP)
            yield w.flow(TableId.ANSWER, 400, (SUBNET, net.number), *kind, (f.UDP_DST, client))
    yield from _flood(view, w, net, owner, datapath)


def _gateway(
    w: Writer, key: str, where: tuple[f.Field, int], address: IPv4Address | IPv6Address
) -> Entries:
    """Echo answered in the switch; what else is meant for the gateway itself goes up."""
    kind, destination = address_test(address, source=False)
    if isinstance(address, IPv4Address):
        source, proto, icmp, request, reply = f.IPV4_SRC, ICMP, f.ICMPV4_TYPE, 8, 0
    else:
        source, proto, icmp, request, reply = f.IPV6_SRC, ICMPV6, f.ICMPV6_TYPE, 128, 129
    swap: tuple[Act, ...] = (
        Move(f.ETH_SRC, f.ETH_DST, 48),
        SetField(f.ETH_SRC, GATEWAY),
        Move(source, destination[0], source.bits),
        SetField(source, int(address)),
        SetField(icmp, reply),
        SetField(f.IP_TTL, 64),
        Output(IN_PORT_NUMBER),
    )
    yield w.flow(
        TableId.ANSWER,
        200,
        where,
        kind,
        destination,
        (f.IP_PROTO, proto),
        (icmp, request),
        do=swap,
    )
    yield Writer.of(Owner.GATEWAY, key).flow(
        TableId.ANSWER, 190, where, kind, destination, do=punt(MeterId.ERRORS)
    )


def _flood(view: FabricView, w: Writer, net: Subnet, owner: Tenant, datapath: str) -> Entries:
    """Broadcast and multicast: to every VM of the subnet, and to nobody else."""
    if owner.inside is not Action.ALLOW:
        return
    local = local_flood_group(net.number)
    ports = _local_ports(view, net.id, datapath)
    yield Group(local, GroupType.ALL, tuple(Bucket((Output(port),)) for port in ports))
    remote = flood_group(net.number)
    yield Group(remote, GroupType.ALL, tuple(_remote_buckets(view, net, datapath)))
    for payload, ethertype in ((Payload.IPV4, IPV4), (Payload.IPV6, IPV6)):
        inner = subnet_label(net.number, payload)
        yield w.flow(
            TableId.DELIVER,
            10,
            (f.ETH_TYPE, MPLS),
            (f.MPLS_LABEL, inner),
            do=(PopMpls(ethertype), ToGroup(local)),
        )
        yield w.flow(
            TableId.ANSWER,
            60,
            (SUBNET, net.number),
            (f.ETH_TYPE, ethertype),
            (f.ETH_DST, MULTICAST_BIT, MULTICAST_BIT),
            # A bucket is an action set, which pushes one label only: the inner one is pushed here.
            do=(ToGroup(local), PushMpls(), SetField(f.MPLS_LABEL, inner), ToGroup(remote)),
        )


def _local_ports(view: FabricView, key: str, datapath: str) -> list[int]:
    by_nic: dict[str, list[Place]] = {}
    for place in view.subnet_places.get((key, datapath), ()):
        if place.port:
            by_nic.setdefault(place.nic.mac, []).append(place)
    return sorted({p.port for here in by_nic.values() for p in receiving(view, here) if p.port})


def _remote_buckets(view: FabricView, net: Subnet, datapath: str) -> list[Bucket]:
    buckets = []
    for edge in sorted(view.edges_of_subnet(net.id)):
        trees = view.routes.trees(edge, datapath)
        if edge == datapath or not trees:
            continue
        tree, hop = trees[net.number % len(trees)]
        labelled = push(view.number(edge), tree, Payload.LABEL)
        buckets.append(Bucket((*labelled, *send(view, datapath, hop))))
    return buckets
