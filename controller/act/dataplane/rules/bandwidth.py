"""Meters of VMs, one for each direction, and the class of service of packets.

A VM is metered where it is: what it sends before its way is chosen, what it receives when all
else is decided. What is marked is the packet at the edge where it came in; no VM's own marks
are kept (`vm.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import Act, Flow, Meter, SetField, ToMeter
from controller.act.dataplane.pipeline import (
    CLASS,
    IPV4,
    IPV6,
    TENANT,
    TRAFFIC,
    Owner,
    TableId,
    after,
    vm_meter,
)
from controller.act.dataplane.rules.base import Entries, Writer, address_test
from controller.act.dataplane.view import FabricView, Place
from controller.model.addresses import mac_to_int
from controller.model.nouns import BURST_MS, Mark, Nic, ServiceMark
from controller.model.state import State

_SOURCE = {"tcp": f.TCP_SRC, "udp": f.UDP_SRC}
_DESTINATION = {"tcp": f.TCP_DST, "udp": f.UDP_DST}
_PROTOCOL = {"tcp": 6, "udp": 17}


class Rate(NamedTuple):
    """kbit/s of one direction, None where there is no meter; the burst in kbit; and why."""

    kbit: int | None
    burst: int
    reason: str


def effective(state: State, vm: str) -> tuple[Rate, Rate]:
    """What a VM may send, and receive: what was decided, and no more than the operator's limit."""
    limit, decided = state.rate_limits.get(vm), state.bandwidths.get(vm)
    burst_ms = next((r.burst_ms for r in (limit, decided) if r is not None), BURST_MS)
    return (
        _least(
            limit.out_kbit if limit else None,
            (decided.out_kbit, decided.out_reason) if decided else (None, ""),
            burst_ms,
        ),
        _least(
            limit.in_kbit if limit else None,
            (decided.in_kbit, decided.in_reason) if decided else (None, ""),
            burst_ms,
        ),
    )


def _least(limit: int | None, decided: tuple[int | None, str], burst_ms: int) -> Rate:
    kbit, reason = decided
    if limit is not None and (kbit is None or limit <= kbit):
        kbit, reason = limit, "the operator's limit"
    if kbit is None:
        return Rate(None, 0, reason or "nothing limits it")
    return Rate(kbit, max(1, min(kbit * burst_ms // 1_000, 0xFFFF_FFFF)), reason)


def bandwidth(view: FabricView, key: str, datapath: str) -> Entries:
    """The meters of a VM at a datapath where it is, or is about to be."""
    places = view.places_at(datapath, key)
    if not places:
        return
    out, into = effective(view.state, key)
    w = Writer.of(Owner.BANDWIDTH, key)
    ports = sorted({place.port for place in places if place.port})
    if out.kbit is not None:
        meter = vm_meter(ports[0], out=True)
        yield Meter(meter, out.kbit, burst=out.burst)
        for port in ports:
            yield w.flow(
                TableId.BANDWIDTH_OUT,
                10,
                (f.IN_PORT, port),
                do=(ToMeter(meter),),
                goto=after(TableId.BANDWIDTH_OUT),
            )
    if into.kbit is not None:
        meter = vm_meter(ports[0], out=False)
        yield Meter(meter, into.kbit, burst=into.burst)
        for mac in sorted({mac_to_int(place.nic.mac) for place in places}):
            yield w.flow(
                TableId.BANDWIDTH_IN,
                10,
                (f.ETH_DST, mac),
                do=(ToMeter(meter),),
                goto=after(TableId.BANDWIDTH_IN),
            )


def marking(view: FabricView, key: str, datapath: str) -> Entries:
    """The marks of what goes to a VM's services, at every edge where its tenant is, and of what
    it sends, where it is."""
    machine, known = view.state.vms.get(key), view.state.markings.get(key)
    if machine is None or known is None or not view.places.get(key):
        return
    tenant = view.tenant(machine.tenant)
    if tenant is None or not view.tenant_at(machine.tenant, datapath):
        return
    w = Writer.of(Owner.MARKING, key)
    for place in view.places_at(datapath, key):
        yield from _sent(w, place, known.default, known.services)
    for nic in machine.nics:
        yield from _asked(w, tenant.number, nic, known.services)


def _sent(
    w: Writer, place: Place, default: Mark | None, services: tuple[ServiceMark, ...]
) -> Entries:
    """What a VM sends by one port: answers of its services, and all else."""
    assert place.port is not None
    port = (f.IN_PORT, place.port)
    for ethertype in (IPV4, IPV6):
        kind = (f.ETH_TYPE, ethertype)
        for service in _each(services):
            protocol = (f.IP_PROTO, _PROTOCOL[service.protocol])
            source = (_SOURCE[service.protocol], service.port)
            yield _mark(w, 20, service.mark, port, kind, protocol, source)
        if default is not None:
            yield _mark(w, 10, default, port, kind)


def _asked(w: Writer, tenant: int, nic: Nic, services: tuple[ServiceMark, ...]) -> Entries:
    """What VMs of the tenant send to a VM's services. It comes first: a VM whose own port is a
    service's port asks more often than it answers from there."""
    for address in (nic.ipv4, nic.ipv6):
        if address is None:
            continue
        to = address_test(address, source=False)
        for service in _each(services):
            protocol = (f.IP_PROTO, _PROTOCOL[service.protocol])
            target = (_DESTINATION[service.protocol], service.port)
            yield _mark(w, 30, service.mark, (TENANT, tenant), *to, protocol, target)


def _each(services: tuple[ServiceMark, ...]) -> Iterator[ServiceMark]:
    """Services, each protocol and port once."""
    yield from {(service.protocol, service.port): service for service in services}.values()


def _mark(w: Writer, priority: int, mark: Mark, *tests: tuple[f.Field, int]) -> Flow:
    do: tuple[Act, ...] = (
        SetField(f.IP_DSCP, mark.dscp),
        SetField(CLASS, mark.paths),
        SetField(TRAFFIC, mark.traffic),
    )
    return w.flow(TableId.MARK, priority, *tests, do=do, goto=after(TableId.MARK))
