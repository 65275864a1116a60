"""Which packets are copied, so that it is known what answers at a VM's port?

The first packets of each connection, counted in the connection's own mark, at the edge of the VM
that it leads to: there both directions pass. A service that is known is no longer tapped: its
connections never get a mark, so that nothing but their first packet is looked at. What is copied
goes to the port behind which an agent listens, where the edge has one, else up to the controller;
either way through a meter. The packet itself goes on, whatever becomes of the copy.

    tap_in     first packet of a connection, to a service that is known     go on
               first packet of a connection, to any other           copy, count 1
               of a connection that counts, below the limit        copy, count on
    tap_out    answers of a connection that counts, below the limit copy, count on
    commit_in  what counts is not committed again, which would hide its mark
"""

from __future__ import annotations

from collections.abc import Iterator

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Clone,
    Ct,
    Output,
    SetField,
    ToMeter,
)
from controller.act.dataplane.pipeline import (
    IPV4,
    IPV6,
    TAP_COUNT,
    TAPPED,
    ZONE,
    MeterId,
    Owner,
    TableId,
    after,
)
from controller.act.dataplane.rules.base import CT_NEW, CT_REPLY, CT_TRACKED, Entries, Writer
from controller.act.dataplane.view import FabricView
from controller.model.addresses import mac_to_int
from controller.model.nouns import MAX_SERVICES, Service

#: Packets of a connection that are copied, both ways together. nDPI looks at ten of them.
PACKETS = 12
_MARK = TAPPED | TAP_COUNT
#: To commit a connection leaves the packet untracked in the tables that follow (ovs-actions(7),
#: "ct"), so that what comes here like that has just begun one.
_FIRST = (f.CT_STATE, 0, CT_TRACKED)
_NEW = (f.CT_STATE, CT_TRACKED | CT_NEW, CT_TRACKED | CT_NEW)
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_PORTS = {"tcp": f.TCP_DST, "udp": f.UDP_DST, "sctp": f.SCTP_DST}
#: Pings are no service.
_ICMP = {IPV4: 1, IPV6: 58}


def tap(view: FabricView, datapath: str) -> Entries:
    """The frame of the tables: what is copied, however many VMs there are."""
    if not view.is_edge(datapath):
        return
    w = Writer.of(Owner.TAP)
    for table in (TableId.TAP_OUT, TableId.TAP_IN):
        yield w.flow(table, 1, goto=after(table))
    if not view.tapping:
        return
    port = view.dpi_port(datapath)
    for ethertype in (IPV4, IPV6):
        kind, icmp = (f.ETH_TYPE, ethertype), (f.IP_PROTO, _ICMP[ethertype])
        into, counts = TableId.TAP_IN, (f.CT_MARK, TAPPED, TAPPED)
        yield w.flow(TableId.COMMIT_IN, 20, kind, _NEW, counts, goto=after(TableId.COMMIT_IN))
        yield w.flow(into, 300, kind, _FIRST, icmp, goto=after(into))
        yield w.flow(into, 100, kind, _FIRST, do=_copied(port, 1), goto=after(into))
        for count in range(1, PACKETS):
            copy = _copied(port, count + 1)
            for table, reply in ((TableId.TAP_OUT, CT_REPLY), (into, 0)):
                way = (f.CT_STATE, CT_TRACKED | reply, CT_TRACKED | CT_REPLY)
                counted = (f.CT_MARK, TAPPED | count, _MARK)
                yield w.flow(table, 100, kind, way, counted, do=copy, goto=after(table))


def _copied(port: int | None, count: int) -> tuple[Act, ...]:
    """Count the packet, and give a copy to who looks at it: at a port, or the controller."""
    counted = Ct(ZONE, commit=True, sets=(SetField(f.CT_MARK, TAPPED | count, _MARK),))
    if port is None:
        return (Clone((counted, ToMeter(MeterId.TAP), Output(CONTROLLER))),)
    return (Clone((counted, ToMeter(MeterId.DPI), Output(port))),)


def services(view: FabricView, key: str, datapath: str) -> Entries:
    """What the VM `key`, where it is plugged in at `datapath`, is known to offer, and is let by."""
    known, here = sorted(view.vm_services.get(key, ())), view.places_at(datapath, key)
    if not known or not view.tapping or not here or view.tenant(here[0].tenant) is None:
        return
    w, table = Writer.of(Owner.TAP, key), TableId.TAP_IN
    for mac in sorted({mac_to_int(p.nic.mac) for p in here}):
        to = (f.ETH_DST, mac)
        for name in known:
            service = view.state.services[name]
            if not service.tapped:
                for tests in _tests(service):
                    yield w.flow(table, 200, _FIRST, to, *tests, goto=after(table))
        if len(known) >= MAX_SERVICES:
            yield w.flow(table, 150, _FIRST, to, goto=after(table))


def _tests(service: Service) -> Iterator[tuple[tuple[f.Field, int], ...]]:
    """What tells packets to a service, in either version of IP."""
    number = _NUMBERS.get(service.protocol)
    for ethertype in (IPV4, IPV6):
        if number is None:
            yield (f.ETH_TYPE, ethertype), (f.IP_PROTO, int(service.protocol))
        else:
            at = (_PORTS[service.protocol], service.port)
            yield (f.ETH_TYPE, ethertype), (f.IP_PROTO, number), at
