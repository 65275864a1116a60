"""Does Open vSwitch do what Pleach relies on? Each behaviour alone, by messages of the codec.

What bundles, modifications, dumps by cookie and packet-ins do is in `test_openflow_codec_ovs`;
what the pipeline makes of all this is in the tests with a `world`. The match fields and actions of
the pipeline are also put through os-ken's own switch tests.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from controller.act.dataplane.openflow import counters, decode, encode, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.encode import Bundle, Change, Command
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Bucket,
    Conjunction,
    Ct,
    Flow,
    Group,
    GroupType,
    Meter,
    Output,
    PopMpls,
    SetField,
    ToGroup,
    ToMeter,
    match,
)
from mininet_labs.deployment import wait_until
from tests.fabric import direct, osken_tester
from tests.fabric.direct import BRIDGE, Session, vsctl

pytestmark = pytest.mark.fabric

TABLE = 0xFFFFFFF9
IS_IP, IS_UDP, IS_MPLS = (f.ETH_TYPE, 0x0800), (f.IP_PROTO, 17), (f.ETH_TYPE, 0x8847)
NEW, EST, TRACKED = 1, 2, 0x20
A, B = "10.0.0.1", "10.0.0.2"


@pytest.fixture(scope="module")
def bridge() -> Iterator[int]:
    """A bridge with two ports; the port at which it listens."""
    with direct.bridge() as port:
        for number in (1, 2):
            name = f"port{number}"
            vsctl("add-port", BRIDGE, name, "--", "set", "interface", name, "type=internal",
                  f"ofport_request={number}")  # fmt: skip
            _link(name, "up")
        yield port


@pytest.fixture
def session(bridge: int) -> Iterator[Session]:
    """A connection to an empty switch that sends whole packets up."""
    with direct.session(bridge) as made:
        assert made.do(encode.set_config(made.xid(), 0, 0xFFFF)) == []
        yield made


def _link(name: str, state: str) -> None:
    subprocess.run(["ip", "link", "set", name, state], check=True)


def udp(source: str = A, to: str = B, sport: int = 1000, dport: int = 2000) -> Packet:
    return (
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / IP(src=source, dst=to)
        / UDP(sport=sport, dport=dport)
        / Raw(b"payload")
    )


def up(number: int) -> tuple[Act, ...]:
    """Say by a register which way the packet took, and send it up."""
    return (SetField(f.REG[7], number), Output(CONTROLLER))


def add(session: Session, *entries: Flow | Group | Meter) -> None:
    """Have entries, each of which is taken."""
    for entry in entries:
        if isinstance(entry, Flow):
            message = encode.flow_mod(session.xid(), Command.ADD, entry)
        elif isinstance(entry, Group):
            message = encode.group_mod(session.xid(), Change.ADD, entry)
        else:
            message = encode.meter_mod(session.xid(), Change.ADD, entry)
        assert session.do(message) == [], entry


def send(session: Session, *packets: Packet, port: int = 1) -> list[decode.PacketIn]:
    """Put packets into the tables as if they had come in by a port; what comes up of them at
    once. What goes round again (conntrack, labels popped) comes later: see `sent_round`."""
    # Packets come up in order, but perhaps after the answer to a barrier.
    fence = b"fence".ljust(60)
    _put(session, port, *map(bytes, packets))
    session.send(encode.packet_out(session.xid(), port, (Output(CONTROLLER),), fence))
    found = [_come_up(session)]
    while found[-1].data != fence:
        found.append(_come_up(session))
    return found[:-1]


def sent_round(session: Session, packet: Packet, port: int = 1) -> decode.PacketIn:
    """As `send`, waiting for what comes up of one packet."""
    _put(session, port, bytes(packet))
    return _come_up(session)


def _put(session: Session, port: int, *frames: bytes) -> None:
    outs = [encode.packet_out(session.xid(), port, (Output(TABLE),), frame) for frame in frames]
    session.send(*outs)


def _come_up(session: Session) -> decode.PacketIn:
    found = session.receive()
    while found[1] != wire.PACKET_IN:
        found = session.receive()
    return decode.packet_in(found)


def ways(session: Session, *packets: Packet) -> list[int]:
    """Which way each packet took that came up at once."""
    return [found.fields[f.REG[7]] for found in send(session, *packets)]


@pytest.mark.parametrize("bundled", [False, True])
def test_an_entry_that_is_added_again_keeps_its_counters(session: Session, bundled: bool) -> None:
    """Reconciliation replaces entries in place, and what they have counted goes on."""
    old = Flow(0, 1, match((f.IN_PORT, 1)), cookie=1)
    new = replace(old, actions=(Output(CONTROLLER),), cookie=2)
    add(session, old)
    send(session, udp(), udp(), udp())
    if bundled:
        inner = encode.flow_mod(session.xid(), Command.ADD, new)
        steps = [
            encode.bundle_control(session.xid(), 1, Bundle.OPEN),
            encode.bundle_add(1, inner),
            encode.bundle_control(session.xid(), 1, Bundle.COMMIT),
        ]
        assert session.do(*steps) == []
    else:
        add(session, new)
    (found,) = session.installed()
    assert (found.flow, found.packets) == (new, 3)
    send(session, udp())
    assert session.installed()[0].packets == 4


def test_a_group_or_meter_takes_the_entries_with_it_that_lead_to_it(session: Session) -> None:
    """So entries are changed before what they lead to is removed."""
    add(session, Group(1, GroupType.ALL, (Bucket(up(1)),)), Meter(1, 100, packets=True))
    stays = Flow(0, 1, match((f.IN_PORT, 1)), up(9))
    add(session, stays, Flow(0, 1, match((f.IN_PORT, 2)), (ToGroup(1),)))
    add(session, Flow(0, 1, match((f.IN_PORT, 3)), (ToMeter(1), Output(4))))
    assert len(session.flows()) == 3
    assert session.do(encode.group_delete(session.xid(), 1)) == []
    assert len(session.flows()) == 2
    assert session.do(encode.meter_delete(session.xid(), 1)) == []
    assert session.flows() == [stays]


FIVE_TUPLE = (f.IPV4_SRC, f.IPV4_DST, f.IP_PROTO, f.UDP_SRC, f.UDP_DST)


@pytest.mark.parametrize(("fields", "spread"), [(FIVE_TUPLE, True), ((f.IPV4_SRC,), False)])
def test_a_select_group_hashes_the_named_fields_and_no_others(
    session: Session, fields: tuple[f.Field, ...], spread: bool
) -> None:
    buckets = tuple(Bucket(up(number)) for number in range(1, 5))
    add(session, Group(1, GroupType.SELECT, buckets, fields))
    add(session, Flow(0, 1, match(IS_IP, IS_UDP), (ToGroup(1),)))
    packets = [udp(sport=port) for port in range(1000, 1040)]
    first = ways(session, *packets)
    assert (len(set(first)) == 4) is spread
    assert (len(set(first)) == 1) is not spread
    assert ways(session, *packets) == first


def test_a_select_group_keeps_to_the_weights(session: Session) -> None:
    buckets = (Bucket(up(1), weight=1), Bucket(up(2), weight=7))
    add(session, Group(1, GroupType.SELECT, buckets, FIVE_TUPLE))
    add(session, Flow(0, 1, match(IS_IP, IS_UDP), (ToGroup(1),)))
    found = Counter(ways(session, *(udp(sport=port) for port in range(1000, 1400))))
    assert 10 < found[1] < 100
    assert found[2] == 400 - found[1]


def test_a_fast_failover_group_follows_the_ports(session: Session) -> None:
    buckets = (Bucket(up(1), watch_port=1), Bucket(up(2), watch_port=2))
    add(session, Group(1, GroupType.FAST_FAILOVER, buckets))
    add(session, Flow(0, 1, match(IS_IP), (ToGroup(1),)))

    def way(*expected: int) -> Callable[[], bool]:
        return lambda: ways(session, udp()) == list(expected)

    wait_until(way(1), "the first bucket")
    _link("port1", "down")
    wait_until(way(2), "the second bucket")
    _link("port2", "down")
    wait_until(way(), "no bucket at all")
    add(session, Group(2, GroupType.ALL, (Bucket(()),)))
    last = Bucket(up(3), watch_group=2)
    longer = Group(1, GroupType.FAST_FAILOVER, (*buckets, last))
    assert session.do(encode.group_mod(session.xid(), Change.MODIFY, longer)) == []
    wait_until(way(3), "what watches a group that always lives")
    _link("port1", "up")
    wait_until(way(1), "the first bucket again")
    _link("port2", "up")


def test_a_label_is_popped_to_the_ethertype_that_is_named(session: Session) -> None:
    """The label alone tells what lies beneath."""
    add(
        session,
        Flow(0, 1, match(IS_MPLS, (f.MPLS_LABEL, 4)), (PopMpls(0x0800),), 1),
        Flow(0, 1, match(IS_MPLS, (f.MPLS_LABEL, 6)), (PopMpls(0x86DD),), 1),
        Flow(0, 1, match(IS_MPLS, (f.MPLS_LABEL, 8)), (PopMpls(0x8847),), 1),
        Flow(1, 2, match(IS_IP, (f.IPV4_DST, 0x0A000002)), up(4)),
        Flow(1, 2, match((f.ETH_TYPE, 0x86DD)), up(6)),
        Flow(1, 2, match(IS_MPLS, (f.MPLS_LABEL, 99)), up(8)),
    )
    plain = udp()

    def labelled(*labels: int) -> Packet:
        stack: Packet = plain.payload
        for depth, label in enumerate(reversed(labels)):
            stack = MPLS(label=label, s=int(depth == 0), ttl=64) / stack
        return Ether(src=plain.src, dst=plain.dst, type=0x8847) / stack

    found = sent_round(session, labelled(4))
    assert found.fields[f.REG[7]] == 4
    assert found.data == bytes(plain)
    found = sent_round(session, labelled(8, 99))
    assert found.fields[f.REG[7]] == 8
    assert found.data == bytes(labelled(99))
    # Nothing is looked at that the label does not say.
    assert sent_round(session, labelled(6)).fields[f.REG[7]] == 6


def test_a_meter_drops_what_is_too_much(session: Session) -> None:
    add(session, Meter(1, 1, burst=10, packets=True), Meter(2, 100_000, packets=True))
    add(session, Flow(0, 1, match((f.IN_PORT, 1)), (ToMeter(1), *up(1))))
    add(session, Flow(0, 1, match((f.IN_PORT, 2)), (ToMeter(2), *up(2))))
    burst = [udp()] * 200
    assert len(send(session, *burst, port=2)) == 200
    assert 1 <= len(send(session, *burst, port=1)) < 150


def test_groups_and_meters_count_what_comes_to_them(session: Session) -> None:
    """A group behind a meter counts what the meter dropped, too."""
    add(session, Group(1, GroupType.ALL, (Bucket(up(1)), Bucket(()))))
    add(session, Meter(1, 1, burst=5, packets=True))
    add(session, Flow(0, 1, match((f.IN_PORT, 1)), (ToMeter(1), ToGroup(1))))
    passed = len(send(session, *[udp()] * 100))
    size = len(udp())
    (reply,) = session.replies(encode.meter_stats_request(session.xid()))
    (meter,) = counters.meter_stats(reply).items
    assert (meter.id, meter.users, meter.packets, meter.bytes) == (1, 1, 100, 100 * size)
    assert meter.parts == ((100 - passed, (100 - passed) * size),)
    (reply,) = session.replies(encode.group_stats_request(session.xid()))
    (group,) = counters.group_stats(reply).items
    assert (group.id, group.users, group.packets, group.bytes) == (1, 1, 100, 100 * size)
    assert group.parts[0] == (100, 100 * size)


def test_forgetting_a_zone_leaves_the_others(session: Session) -> None:
    flows = []
    for port in (1, 2):
        tests = ((f.IN_PORT, port), IS_IP, IS_UDP)
        flows += [
            Flow(0, 1, match(*tests), (Ct(10 + port, 1),)),
            Flow(1, 1, match(*tests, (f.CT_STATE, TRACKED | NEW, TRACKED | NEW)),
                 (Ct(10 + port, commit=True), *up(NEW))),
            Flow(1, 1, match(*tests, (f.CT_STATE, TRACKED | EST, TRACKED | EST)), up(EST)),
        ]  # fmt: skip
    add(session, *flows)

    def states(packet: Packet) -> list[int]:
        return [sent_round(session, packet, port).fields[f.REG[7]] for port in (1, 2)]

    back = udp(B, A, 2000, 1000)
    assert states(udp()) == [NEW, NEW]
    assert states(back) == [EST, EST]
    assert session.do(encode.ct_flush_zone(session.xid(), 11)) == []
    assert states(back) == [NEW, EST]
    # Left as it was found.
    assert session.do(*(encode.ct_flush_zone(session.xid(), zone) for zone in (11, 12))) == []


def test_a_conjunction_needs_all_of_its_clauses(session: Session) -> None:
    conjunct = [Conjunction(7, clause, 3) for clause in range(3)]
    add(
        session,
        *(Flow(0, 10, match(IS_IP, (f.IPV4_SRC, 0x0A000000 | n)), (conjunct[0],)) for n in (1, 3)),
        *(Flow(0, 10, match(IS_IP, (f.IPV4_DST, 0x0A000000 | n)), (conjunct[1],)) for n in (2, 4)),
        Flow(0, 10, match(IS_IP, IS_UDP, (f.UDP_DST, 2000, 0xFFF0)), (conjunct[2],)),
        Flow(0, 10, match(IS_IP, (f.CONJ_ID, 7)), up(1)),
        Flow(0, 1, match(), up(9)),
    )
    for source, to, port, way in (
        (A, B, 2000, 1),
        ("10.0.0.3", "10.0.0.4", 2015, 1),
        ("10.0.0.5", B, 2000, 9),
        (A, "10.0.0.5", 2000, 9),
        (A, B, 2016, 9),
        (B, A, 2000, 9),
    ):
        assert ways(session, udp(source, to, dport=port)) == [way], (source, to, port)


PATTERNS = (
    "match/00_IN_PORT", "match/02_METADATA_Mask", "match/03_ETH_DST_Mask",
    "match/12_IPV4_DST_Mask", "match/14_TCP_DST_IPv6", "match/22_ARP_SPA",
    "match/27_IPV6_DST", "match/31_IPV6_ND_TARGET", "match/34_MPLS_LABEL",
    "action/00_OUTPUT", "action/25_SET_FIELD/03_ETH_DST", "action/25_SET_FIELD/12_IPV4_DST",
)  # fmt: skip


def test_os_ken_s_own_switch_tests() -> None:
    """Of OpenFlow 1.4, the newest that there are: fields and actions of the pipeline."""
    report = osken_tester.run(PATTERNS)
    assert report.errors == []
    assert report.passed >= 3 * len(PATTERNS)
