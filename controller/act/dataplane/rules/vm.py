"""Rules of one VM at one datapath: at the edge where it is plugged in, what it may send and
what is delivered to it; at every edge that its tenant is at, how it is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    IN_PORT_NUMBER,
    Act,
    Clone,
    Ct,
    DecTtl,
    Flow,
    Move,
    Output,
    Resubmit,
    SetField,
    ToMeter,
)
from controller.act.dataplane.pipeline import (
    ARP,
    EGRESS,
    IPV4,
    IPV6,
    RARP,
    SUBNET,
    TENANT,
    ZONE,
    MeterId,
    Owner,
    TableId,
    zone,
)
from controller.act.dataplane.rules.base import GATEWAY, Entries, Writer, address_test
from controller.act.dataplane.rules.switch import ADVERTISEMENT, ICMPV6, SOLICITATION
from controller.act.dataplane.view import FabricView, Place
from controller.model.addresses import mac_to_int
from controller.model.nouns import Nic, Phase, Vm

UDP = 17
ARP_REQUEST, ARP_REPLY = 1, 2


def vm(view: FabricView, key: str, datapath: str) -> Entries:
    """All rules of the VM `key` at `datapath`; none where its tenant is not there."""
    machine = view.state.vms.get(key)
    if machine is None or not view.tenant_at(machine.tenant, datapath):
        return
    w = Writer.of(Owner.VM, key)
    local = view.places_at(datapath, key)
    for place in local:
        yield from _plugged(view, w, place)
    for nic in machine.nics:
        here = [p for p in local if p.nic == nic]
        if here:
            yield from _delivered(view, w, machine, nic, here)
        yield from _located(view, w, machine, nic, datapath)


def seen_from(view: FabricView, key: str, datapath: str) -> object | None:
    """All that the rules of a VM at a datapath depend on besides the VM itself, if the VM is
    neither there nor on its way there; None if it is."""
    machine = view.state.vms.get(key)
    if machine is None or any(p.datapath == datapath for p in view.places.get(key, ())):
        return None
    present = tuple(view.subnet_at(nic.subnet, datapath) for nic in machine.nics)
    return key, view.tenant_at(machine.tenant, datapath), present


def _plugged(view: FabricView, w: Writer, place: Place) -> Entries:
    """Classification and port security of one port."""
    subnet = view.subnet(place.nic.subnet)
    tenant = view.tenant(place.tenant)
    if subnet is None or tenant is None or place.port is None:
        return
    yield w.flow(
        TableId.CLASSIFY,
        1100,
        (f.IN_PORT, place.port),
        (f.VLAN_VID, 0),  # tables further on would see through a tag
        do=(
            SetField(TENANT, tenant.number),
            SetField(SUBNET, subnet.number),
            SetField(ZONE, zone(view.number(place.datapath), place.port)),
        ),
        goto=TableId.PORT_SECURITY,
    )
    if place.standby:
        w = Writer.of(Owner.ACTIVATION, place.migration or "")
        tell: tuple[Act, ...] = (Clone((ToMeter(MeterId.ACTIVATIONS), Output(CONTROLLER))),)
        sender = (f.IN_PORT, place.port), (f.ETH_SRC, mac_to_int(place.nic.mac))
        yield w.flow(TableId.PORT_SECURITY, 100, *sender, (f.ETH_TYPE, RARP), do=tell)
    else:
        tell = ()
    yield from _secured(w, place, place.port, tell)


def _secured(w: Writer, place: Place, port: int, tell: tuple[Act, ...]) -> Entries:
    """What a NIC may send: its own addresses and no others."""
    nic = place.nic
    sender = (f.IN_PORT, port), (f.ETH_SRC, mac_to_int(nic.mac))

    def admit(priority: int, *tests: tuple[f.Field, int]) -> Flow:
        ip = (f.ETH_TYPE, IPV4) in tests or (f.ETH_TYPE, IPV6) in tests
        # Classes of service are the fabric's to give: what a VM says of itself is not trusted.
        do = (SetField(f.IP_DSCP, 0), *tell) if ip else tell
        return w.flow(TableId.PORT_SECURITY, priority, *sender, *tests, do=do, goto=TableId.ANSWER)

    arp = (f.ETH_TYPE, ARP), (f.ARP_SHA, mac_to_int(nic.mac))
    yield admit(
        100,
        (f.ETH_TYPE, IPV4),
        (f.IPV4_SRC, 0),
        (f.IP_PROTO, UDP),
        (f.UDP_SRC, 68),
        (f.UDP_DST, 67),
    )
    yield admit(100, *arp, (f.ARP_OP, ARP_REQUEST), (f.ARP_SPA, 0))
    if nic.ipv4 is not None:
        yield admit(100, *address_test(nic.ipv4, source=True))
        yield admit(100, *arp, (f.ARP_SPA, int(nic.ipv4)))
    icmp6 = (f.ETH_TYPE, IPV6), (f.IP_PROTO, ICMPV6)
    # Duplicate address detection comes from the unspecified address (RFC 4862, 5.4.2).
    yield admit(100, *icmp6, (f.IPV6_SRC, 0), (f.ICMPV6_TYPE, SOLICITATION))
    for address in ipv6_addresses(nic):
        yield admit(100, *address_test(address, source=True))
        for target in ipv6_addresses(nic):
            yield admit(
                120,
                *address_test(address, source=True),
                (f.IP_PROTO, ICMPV6),
                (f.ICMPV6_TYPE, ADVERTISEMENT),
                (f.ND_TARGET, int(target)),
            )
    yield w.flow(TableId.PORT_SECURITY, 110, sender[0], *icmp6, (f.ICMPV6_TYPE, ADVERTISEMENT))
    if nic.ipv4 is not None:
        # An announcement of one's own address is no question: an answer to it would tell
        # the VM that another has its address.
        yield w.flow(
            TableId.ANSWER,
            210,
            sender[0],
            (f.ETH_TYPE, ARP),
            (f.ARP_OP, ARP_REQUEST),
            (f.ARP_TPA, int(nic.ipv4)),
        )


def ipv6_addresses(nic: Nic) -> Iterator[IPv6Address]:
    """The IPv6 addresses that a NIC may use."""
    if nic.ipv6 is not None:
        yield nic.ipv6
    yield nic.ipv6_link_local


def _delivered(view: FabricView, w: Writer, machine: Vm, nic: Nic, here: list[Place]) -> Entries:
    """Delivery of what comes for a local NIC."""
    tenant = view.tenant(machine.tenant)
    receivers = receiving(view, here)
    if tenant is None:
        return
    mac = (f.ETH_DST, mac_to_int(nic.mac))
    outputs = tuple(Output(p.port) for p in receivers if p.port)
    yield w.flow(TableId.OUTPUT, 10, mac, do=outputs)
    runs = [p.port for p in receivers if p.port and not p.standby]
    if not runs:
        # What the VM answers still leaves elsewhere. Connections of which only one side is
        # seen would be tracked wrongly, and the VM is not here yet to be protected.
        yield w.flow(TableId.DELIVER, 10, mac, goto=TableId.OUTPUT)
        return
    do = (
        SetField(TENANT, tenant.number),
        SetField(ZONE, zone(view.number(here[0].datapath), runs[0])),
        Ct(ZONE, table=TableId.ACCESS_IN),
    )
    for ethertype in (IPV4, IPV6):
        yield w.flow(TableId.DELIVER, 10, (f.ETH_TYPE, ethertype), mac, do=do)


def receiving(view: FabricView, here: list[Place]) -> list[Place]:
    """Those of a NIC's places at one datapath that packets are delivered to: both while a
    migration between two hosts of one edge is under way, and the target from then on."""
    migration = view.moving.get(here[0].vm)
    if migration is not None and migration.phase is Phase.ACTIVATED:
        return [p for p in here if p.migration == migration.id] or here
    return here


def _located(view: FabricView, w: Writer, machine: Vm, nic: Nic, datapath: str) -> Entries:
    """How VMs at `datapath` reach this NIC, and learn its MAC."""
    subnet, tenant = view.subnet(nic.subnet), view.tenant(machine.tenant)
    where = view.located.get((machine.id, nic.mac), ())
    if subnet is None or tenant is None or not where:
        return
    do, goto = _towards(view, where, datapath)
    mac = mac_to_int(nic.mac)
    here = view.subnet_at(nic.subnet, datapath)
    if here:
        yield w.flow(
            TableId.LOCATE, 100, (SUBNET, subnet.number), (f.ETH_DST, mac), do=do, goto=goto
        )
    routed = (DecTtl(), SetField(f.ETH_SRC, GATEWAY), SetField(f.ETH_DST, mac), *do)
    for address in (nic.ipv4, nic.ipv6):
        if address is not None:
            yield w.flow(
                TableId.LOCATE,
                100,
                (TENANT, tenant.number),
                (f.ETH_DST, GATEWAY),
                *address_test(address, source=False),
                do=routed,
                goto=goto,
            )
    if here and nic.ipv4 is not None:
        yield arp_responder(w, subnet.number, nic.ipv4, mac)


def _towards(
    view: FabricView, where: tuple[str, ...], datapath: str
) -> tuple[tuple[Act, ...], TableId | None]:
    """Actions and next table that take a packet to one or several datapaths."""

    def way(target: str) -> tuple[tuple[Act, ...], TableId]:
        if target == datapath:
            return (), TableId.DELIVER
        return (SetField(EGRESS, view.number(target)),), TableId.PATH

    if len(where) == 1:
        return way(where[0])
    copies = []
    for target in where:
        actions, table = way(target)
        copies.append(Clone((*actions, Resubmit(table))))
    return tuple(copies), None


def arp_responder(w: Writer, subnet: int, address: IPv4Address, mac: int) -> Flow:
    """Turn a question for `address` into its answer, and send it back."""
    return w.flow(
        TableId.ANSWER,
        200,
        (SUBNET, subnet),
        (f.ETH_TYPE, ARP),
        (f.ARP_OP, ARP_REQUEST),
        (f.ARP_TPA, int(address)),
        do=(
            Move(f.ETH_SRC, f.ETH_DST, 48),
            SetField(f.ETH_SRC, mac),
            SetField(f.ARP_OP, ARP_REPLY),
            Move(f.ARP_SHA, f.ARP_THA, 48),
            Move(f.ARP_SPA, f.ARP_TPA, 32),
            SetField(f.ARP_SHA, mac),
            SetField(f.ARP_SPA, int(address)),
            Output(IN_PORT_NUMBER),
        ),
    )
