"""Who talks to whom, counted where whoever begins is plugged in; and who tried in vain.

`observe_out` sends all but replies through the counters of `count_out`, `observe_in` replies
through those of `count_in`. Each signature has three counters: what begins a connection, the
rest of what was sent, and the replies. What begins and has no counter makes its own at once, by
`learn`, and goes up once. So nothing is counted late, and connections that begin together go up
as one: the first of them makes the switch look up all others anew, because its way through the
tables depends on its source port. The controller then puts lasting entries in the place of the
learned ones, which takes their counts over.

What access denies is counted likewise, and is left to the switch: it is forgotten when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Clone,
    Flow,
    Learn,
    Learnt,
    Move,
    Output,
    Resubmit,
    SetField,
    Test,
    ToMeter,
)
from controller.act.dataplane.pipeline import (
    IPV4,
    IPV6,
    PORT_SEEN,
    SEEN,
    TENANT,
    MeterId,
    Owner,
    Seen,
    TableId,
    after,
    cookie,
)
from controller.act.dataplane.rules.access import DENIED
from controller.act.dataplane.rules.base import (
    CT_ESTABLISHED,
    CT_RELATED,
    CT_REPLY,
    CT_TRACKED,
    MULTICAST_BIT,
    Entries,
    Writer,
)
from controller.act.dataplane.view import FabricView
from controller.model.addresses import mac_to_int
from controller.model.signatures import SCTP, TCP, UDP, Signature

LEARNED = cookie(Owner.LEARNED)
#: Seconds for which a learned counter stays without a packet: the controller may be away for so
#: long. What was denied is told anew after a minute of silence.
IDLE_S, DENIED_IDLE_S = 300, 60
#: Counters that a switch may have learned and the controller not yet taken over, a table, and
#: denials that it remembers: what a scan may take while nobody watches.
LEARNED_MOST, DENIED_MOST = 3_000, 1_000
#: Bytes of a packet that go up: up to the ports, behind some options of IPv6.
HEAD = 128

_BEGINS, _REST = 40, 38
#: Prefixes come after single addresses.
_WIDE = 10
_CROWDED, _TCP, _BLOCKED, _OTHER = 15, 10, 5, 2
_SYN, _ACK = 0x02, 0x10
_SYN_ONLY: Test = (f.TCP_FLAGS, _SYN, _SYN | _ACK)
_FORTH: Test = (f.CT_STATE, 0, CT_REPLY | CT_RELATED)
_BACK: Test = (f.CT_STATE, CT_REPLY, CT_REPLY | CT_RELATED)
_GOES_ON = CT_TRACKED | CT_ESTABLISHED


class _Kind(NamedTuple):
    """A version of IP, and where its addresses are."""

    ethertype: int
    source: f.Field
    target: f.Field


_KINDS = (_Kind(IPV4, f.IPV4_SRC, f.IPV4_DST), _Kind(IPV6, f.IPV6_SRC, f.IPV6_DST))
_PORTS = {
    TCP: (f.TCP_SRC, f.TCP_DST),
    UDP: (f.UDP_SRC, f.UDP_DST),
    SCTP: (f.SCTP_SRC, f.SCTP_DST),
}
_PROTOCOLS = (*_PORTS, None)


def observe(view: FabricView, key: str, datapath: str) -> Entries:
    """Without a key the frame; with that of a tenant, which destinations are its subnets'."""
    if not view.is_edge(datapath):
        return
    if key:
        yield from _inside(view, key, datapath)
        return
    w = Writer.of(Owner.OBSERVE)
    for table in (TableId.OBSERVE_OUT, TableId.OBSERVE_IN):
        yield w.flow(table, 1, goto=after(table))
    multicast = (f.ETH_DST, MULTICAST_BIT, MULTICAST_BIT)
    yield w.flow(TableId.OBSERVE_OUT, 30, multicast, goto=after(TableId.OBSERVE_OUT))
    for kind in _KINDS:
        ip = (f.ETH_TYPE, kind.ethertype)
        yield w.flow(
            TableId.OBSERVE_OUT,
            10,
            ip,
            _FORTH,
            do=(Resubmit(TableId.COUNT_OUT),),
            goto=after(TableId.OBSERVE_OUT),
        )
        yield w.flow(
            TableId.OBSERVE_IN,
            10,
            ip,
            _BACK,
            do=(Resubmit(TableId.COUNT_IN),),
            goto=after(TableId.OBSERVE_IN),
        )
    yield _to_subnet(w, IPv6Network("fe80::/10"))
    yield from _learning(view)
    yield from _denials()


def _inside(view: FabricView, key: str, datapath: str) -> Entries:
    tenant = view.tenant(key)
    if tenant is None or not view.tenant_at(key, datapath):
        return
    w = Writer.of(Owner.OBSERVE, key)
    networks: set[IPv4Network | IPv6Network] = set()
    for name in view.tenant_subnets.get(key, ()):
        subnet = view.subnet(name)
        if subnet is not None:
            networks |= {n for n in (subnet.cidr, subnet.cidr6) if n is not None}
    for network in networks:
        yield _to_subnet(w, network, (TENANT, tenant.number, None))


def _to_subnet(w: Writer, network: IPv4Network | IPv6Network, *tests: Test) -> Flow:
    """What goes to a subnet is told apart by address."""
    kind = _KINDS[network.version == 6]
    where = (kind.target, int(network.network_address), int(network.netmask))
    return w.flow(
        TableId.OBSERVE_OUT,
        20,
        (f.ETH_TYPE, kind.ethertype, None),
        where,
        _FORTH,
        *tests,
        do=(SetField(SEEN, Seen.INSIDE, Seen.INSIDE), Resubmit(TableId.COUNT_OUT)),
        goto=after(TableId.OBSERVE_OUT),
    )


# --- What is not known yet -------------------------------------------------------------------


def _learning(view: FabricView) -> Entries:
    """What begins and has no counter goes up. What goes on, because its counter was given up
    while it was silent, has it made without a word."""
    first, frame = Writer.of(Owner.FIRST), Writer.of(Owner.OBSERVE)
    up = Clone((ToMeter(MeterId.SIGNATURES), Output(CONTROLLER, HEAD)))
    for kind in _KINDS:
        ip: Test = (f.ETH_TYPE, kind.ethertype, None)
        # What is no beginning, nor known to go on, is neither: conntrack was emptied.
        yield frame.flow(TableId.COUNT_OUT, _TCP - 1, ip, (f.IP_PROTO, TCP))
        for protocol in _PROTOCOLS:
            tests = _protocol(ip, protocol)
            apart = _apart(protocol)
            priority = _TCP if protocol == TCP else _OTHER + (protocol is not None)
            for inside in (Seen.INSIDE, Seen(0)):
                bits = kind.target.bits if inside else _prefix(view, kind)
                learned = tuple(_learned(kind, protocol, bits))
                begins: Test = (SEEN, Seen.BEGUN | inside, Seen.BEGUN | Seen.INSIDE)
                syn = (_SYN_ONLY,) if protocol == TCP else ()
                yield first.flow(
                    TableId.COUNT_OUT, priority, *tests, begins, *syn, do=(*apart, *learned, up)
                )
                goes_on = (f.CT_STATE, _GOES_ON, _GOES_ON)
                where: Test = (SEEN, inside, Seen.BEGUN | Seen.INSIDE)
                yield frame.flow(
                    TableId.COUNT_OUT, priority, *tests, where, goes_on, do=(*apart, *learned)
                )


def _prefix(view: FabricView, kind: _Kind) -> int:
    return view.observed.prefix4 if kind.ethertype == IPV4 else view.observed.prefix6


def _protocol(ip: Test, protocol: int | None) -> tuple[Test, ...]:
    return (ip,) if protocol is None else (ip, (f.IP_PROTO, protocol, None))


def _apart(protocol: int | None) -> tuple[Act, ...]:
    """Nothing but a dependency on the source port."""
    return () if protocol is None else (Move(_PORTS[protocol][0], PORT_SEEN, 16),)


def _learned(kind: _Kind, protocol: int | None, bits: int) -> Iterator[Learn]:
    """The counters that a packet makes, for as many `bits` of its destination."""
    wide = bits < kind.target.bits
    offset = kind.target.bits - bits
    common = (Learnt(f.ETH_TYPE, 16, kind.ethertype), _learnt_protocol(protocol))

    def peer(field: f.Field) -> Learnt:
        return Learnt(field, bits, source=kind.target, offset=offset, source_offset=offset)

    def learn(table: TableId, priority: int, *specs: Learnt) -> Learn:
        level = priority - _WIDE * wide
        return Learn(table, level, LEARNED, (*common, *specs), idle_s=IDLE_S, limit=LEARNED_MOST)

    sender = Learnt(f.ETH_SRC, 48, source=f.ETH_SRC)
    forth, back = [sender, peer(kind.target)], [Learnt(f.ETH_DST, 48, source=f.ETH_SRC)]
    back.append(peer(kind.source))
    if protocol is not None:
        source, target = _PORTS[protocol]
        forth.append(Learnt(target, 16, source=target))
        back.append(Learnt(source, 16, source=target))
    syn = (
        (Learnt(f.TCP_FLAGS, 1, 1, offset=1), Learnt(f.TCP_FLAGS, 1, 0, offset=4))
        if protocol == TCP
        else ()
    )
    yield learn(TableId.COUNT_OUT, _BEGINS, *forth, Learnt(SEEN, 1, 1), *syn)
    yield learn(TableId.COUNT_OUT, _REST, *forth)
    yield learn(TableId.COUNT_IN, _REST, *back)


def _learnt_protocol(protocol: int | None) -> Learnt:
    if protocol is None:
        return Learnt(f.IP_PROTO, 8, source=f.IP_PROTO)
    return Learnt(f.IP_PROTO, 8, protocol)


# --- What is known ---------------------------------------------------------------------------


def signatures(view: FabricView, key: str, datapath: str) -> Entries:
    """The counters of one VM where it is plugged in."""
    here = view.places_at(datapath, key)
    if not here or view.tenant(here[0].tenant) is None:
        return
    w = Writer.of(Owner.SIGNATURE, key)
    for port in {p.port for p in here if p.grace and p.port}:
        # Its edge has not seen connections begin: what it answers would look like a beginning.
        yield w.flow(TableId.COUNT_OUT, _BLOCKED, (f.IN_PORT, port))
    macs = {p.nic.mac for p in here}
    for signature in view.observed.signatures.get(key, ()):
        if signature.mac in macs:
            yield from _counters(w, signature)
    if key in view.observed.crowded:
        for mac in macs:
            sender = (f.ETH_SRC, mac_to_int(mac))
            begun: Test = (SEEN, Seen.BEGUN, Seen.BEGUN)
            yield w.flow(TableId.COUNT_OUT, _CROWDED + 1, sender, begun)
            yield w.flow(TableId.COUNT_OUT, _CROWDED, sender)
            yield w.flow(TableId.COUNT_IN, _CROWDED, (f.ETH_DST, mac_to_int(mac)))


def _counters(w: Writer, signature: Signature) -> Entries:
    kind = _KINDS[signature.peer.version == 6]
    mac, peer = mac_to_int(signature.mac), signature.peer
    wide = peer.prefixlen < peer.max_prefixlen
    common: tuple[Test, ...] = (
        (f.ETH_TYPE, kind.ethertype, None),
        (f.IP_PROTO, signature.protocol, None),
    )
    address, mask = int(peer.network_address), int(peer.netmask)
    forth: tuple[Test, ...] = (*common, (f.ETH_SRC, mac, None), (kind.target, address, mask))
    back: tuple[Test, ...] = (*common, (f.ETH_DST, mac, None), (kind.source, address, mask))
    ports = _PORTS.get(signature.protocol)
    if ports is not None:
        back = (*back, (ports[0], signature.port, None))
        forth = (*forth, (ports[1], signature.port, None))
    syn = (_SYN_ONLY,) if signature.protocol == TCP else ()
    begun: Test = (SEEN, Seen.BEGUN, Seen.BEGUN)
    yield w.flow(TableId.COUNT_OUT, _BEGINS - _WIDE * wide, *forth, begun, *syn)
    yield w.flow(TableId.COUNT_OUT, _REST - _WIDE * wide, *forth)
    yield w.flow(TableId.COUNT_IN, _REST - _WIDE * wide, *back)


# --- What was denied -------------------------------------------------------------------------


def _denials() -> Entries:
    """What access denies, at either end, goes up once for as long as it goes on."""
    frame, denial = Writer.of(Owner.OBSERVE), Writer.of(Owner.DENIAL)
    up = Clone((ToMeter(MeterId.DENIALS), Output(CONTROLLER, HEAD)))
    for access, denied in DENIED.items():
        multicast = (f.ETH_DST, MULTICAST_BIT, MULTICAST_BIT)
        yield frame.flow(denied, 30, multicast)
        for kind in _KINDS:
            ip: Test = (f.ETH_TYPE, kind.ethertype, None)
            yield frame.flow(access, 1, ip, do=(Resubmit(denied),))
            for protocol in _PROTOCOLS:
                priority = _OTHER + (protocol is not None)
                learned = _denied(denied, kind, protocol)
                yield denial.flow(
                    denied,
                    priority,
                    *_protocol(ip, protocol),
                    do=(*_apart(protocol), learned, up),
                )


def _denied(table: TableId, kind: _Kind, protocol: int | None) -> Learn:
    end = f.ETH_SRC if table is TableId.DENIED_OUT else f.ETH_DST
    specs = [
        Learnt(f.ETH_TYPE, 16, kind.ethertype),
        _learnt_protocol(protocol),
        Learnt(end, 48, source=end),
        Learnt(kind.source, kind.source.bits, source=kind.source),
        Learnt(kind.target, kind.target.bits, source=kind.target),
    ]
    if protocol is not None:
        target = _PORTS[protocol][1]
        specs.append(Learnt(target, 16, source=target))
    return Learn(table, _REST, LEARNED, tuple(specs), idle_s=DENIED_IDLE_S, limit=DENIED_MOST)
