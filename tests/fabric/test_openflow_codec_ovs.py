"""The codec against a real Open vSwitch: what was put in is what is read back.

Runs inside the sandbox: OVS_RUNDIR names the run directory of a private Open vSwitch.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.act.dataplane.openflow import decode, encode, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.aliens import AlienFlow, AlienGroup, AlienMeter
from controller.act.dataplane.openflow.encode import Bundle, Change, Command
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    IN_PORT_NUMBER,
    LOCAL,
    Bucket,
    Clone,
    Conjunction,
    Ct,
    CtClear,
    DecTtl,
    Flow,
    Group,
    GroupType,
    Learn,
    Learnt,
    Meter,
    Move,
    Output,
    OutputField,
    PopMpls,
    PushMpls,
    Resubmit,
    SetField,
    ToGroup,
    ToMeter,
    match,
)
from tests.fabric import direct
from tests.fabric.direct import Session, ofctl

pytestmark = pytest.mark.fabric


def ip4(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


def ip6(text: str) -> int:
    return int(ipaddress.IPv6Address(text))


MAC, PEER = 0x02_00_00_00_00_01, 0x02_00_00_00_00_02
ROUTER = 0x02_FF_00_00_00_01
V4, V6 = ip4("10.1.2.3"), ip6("2001:db8::1:2:3")
IP, ARP, IPV6, MPLS = 0x0800, 0x0806, 0x86DD, 0x8847
TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
NEW, EST, REL, RPL, INV, TRK = (1 << bit for bit in range(6))

IS_IP, IS_ARP, IS_V6, IS_MPLS = ((f.ETH_TYPE, kind) for kind in (IP, ARP, IPV6, MPLS))

GROUPS = (
    Group(1, GroupType.ALL, (Bucket((Output(7),)), Bucket((SetField(f.REG[1], 9), Output(8))))),
    Group(
        2,
        GroupType.SELECT,
        (
            Bucket((PushMpls(), SetField(f.MPLS_LABEL, 0x12345), Output(3)), weight=3),
            Bucket((PushMpls(), SetField(f.MPLS_LABEL, 0x12346), Output(4)), weight=1),
        ),
    ),
    Group(
        3,
        GroupType.SELECT,
        (Bucket((Output(3),)), Bucket((Output(4),))),
        (f.IPV4_SRC, f.IPV4_DST, f.IP_PROTO, f.UDP_SRC, f.UDP_DST),
    ),
    Group(
        4,
        GroupType.SELECT,
        (Bucket((Output(3),), weight=2), Bucket((Output(4),), weight=5)),
        (f.ETH_SRC, f.TCP_SRC, f.IPV6_DST, f.MPLS_LABEL),
    ),
    Group(5, GroupType.INDIRECT, (Bucket((DecTtl(), SetField(f.ETH_SRC, ROUTER), Output(2))),)),
    Group(
        6,
        GroupType.FAST_FAILOVER,
        (
            Bucket((Output(3),), watch_port=3),
            Bucket((Output(LOCAL),), watch_port=LOCAL),
            Bucket((Output(4),), watch_group=5),
        ),
    ),
    Group(7, GroupType.ALL, ()),
    Group(8, GroupType.SELECT, (Bucket((ToMeter(1), Resubmit(5))),)),
    Group(9, GroupType.SELECT, (Bucket((Output(3),)),), (f.TCP_DST,)),
    Group(10, GroupType.ALL, (Bucket(()),)),
)

METERS = (
    Meter(1, 20_000),
    Meter(2, 20_000, burst=4_000),
    Meter(3, 100, packets=True),
    Meter(4, 100, burst=10, packets=True),
)

FLOWS = tuple(
    Flow(table, priority, tests, actions, goto, cookie=0x5100_0000_0000_0000 | number)
    for number, (table, priority, tests, actions, goto) in enumerate(
        (
            # classify
            (0, 0, match(), (), None),
            (0, 1, match(), (), 1),
            (0, 100, match((f.IN_PORT, 1)), (SetField(f.REG[0], 77), SetField(f.REG[1], 1)), 1),
            (0, 100, match((f.IN_PORT, LOCAL)), (), 4),
            (0, 90, match((f.ETH_DST, 1 << 40, 1 << 40)), (Output(CONTROLLER, 128),), None),
            (0, 91, match((f.ETH_TYPE, 0x88CC)), (Output(CONTROLLER),), None),
            (0, 92, match(IS_MPLS, (f.MPLS_LABEL, 0xABCDE)), (PopMpls(IP),), 7),
            (0, 92, match(IS_MPLS, (f.MPLS_LABEL, 5)), (PopMpls(IPV6),), 7),
            (0, 93, match(IS_MPLS, (f.MPLS_LABEL, 6), (f.MPLS_BOS, 0)), (PopMpls(MPLS),), 7),
            (0, 94, match(IS_MPLS, (f.MPLS_TC, 3), (f.MPLS_BOS, 1)), (Output(2),), None),
            (0, 95, match((f.VLAN_VID, 0x1000 | 12)), (), 1),
            (0, 96, match((f.VLAN_VID, 0x1000, 0x1000)), (), None),
            (0, 97, match((f.VLAN_VID, 0)), (), 1),
            # port security
            (1, 50, match((f.REG[0], 77), IS_IP, (f.ETH_SRC, MAC), (f.IPV4_SRC, V4)), (), 2),
            (1, 50, match((f.REG[0], 77), IS_V6, (f.ETH_SRC, MAC), (f.IPV6_SRC, V6)), (), 2),
            (
                1, 60,
                match((f.REG[0], 77), IS_ARP, (f.ARP_SPA, V4), (f.ARP_SHA, MAC), (f.ARP_OP, 2)),
                (), 2,
            ),
            (
                1, 61,
                match((f.REG[0], 77), IS_V6, (f.IP_PROTO, ICMPV6), (f.ICMPV6_TYPE, 136),
                      (f.ICMPV6_CODE, 0), (f.ND_TARGET, V6), (f.ND_TLL, MAC)),
                (), 2,
            ),
            (
                1, 62,
                match(IS_V6, (f.IP_PROTO, ICMPV6), (f.ICMPV6_TYPE, 135), (f.ND_SLL, MAC),
                      (f.IP_TTL, 255)),
                (), 2,
            ),
            (1, 63, match(IS_IP, (f.IPV4_SRC, ip4("10.0.0.0"), ip4("255.0.0.0"))), (), None),
            (1, 64, match(IS_V6, (f.IPV6_SRC, 0xFE80 << 112, 0xFFC0 << 112)), (), 2),
            (1, 65, match(IS_V6, (f.ND_TARGET, V6, ip6("ffff:ffff::")), (f.IP_PROTO, ICMPV6),
                          (f.ICMPV6_TYPE, 135)), (), 2),
            # ARP responder
            (
                2, 70,
                match((f.METADATA, 5), IS_ARP, (f.ARP_OP, 1), (f.ARP_TPA, V4)),
                (
                    Move(f.ETH_SRC, f.ETH_DST, 48),
                    SetField(f.ETH_SRC, ROUTER),
                    SetField(f.ARP_OP, 2),
                    Move(f.ARP_SHA, f.ARP_THA, 48),
                    SetField(f.ARP_SHA, ROUTER),
                    Move(f.ARP_SPA, f.ARP_TPA, 32),
                    SetField(f.ARP_SPA, V4),
                    Output(IN_PORT_NUMBER),
                ),
                None,
            ),
            # neighbour discovery responder
            (
                2, 71,
                match(IS_V6, (f.IP_PROTO, ICMPV6), (f.ICMPV6_TYPE, 135), (f.ND_TARGET, V6)),
                (
                    SetField(f.ICMPV6_TYPE, 136),
                    SetField(f.ICMPV6_CODE, 0),
                    SetField(f.ND_TARGET, V6),
                    Move(f.IPV6_SRC, f.IPV6_DST, 128),
                    SetField(f.IPV6_SRC, V6),
                    Output(IN_PORT_NUMBER),
                ),
                None,
            ),
            # ICMP echo answered by the gateway
            (
                2, 72,
                match(IS_IP, (f.IP_PROTO, ICMP), (f.ICMPV4_TYPE, 8), (f.ICMPV4_CODE, 0),
                      (f.IPV4_DST, V4)),
                (
                    Move(f.IPV4_SRC, f.IPV4_DST, 32),
                    SetField(f.IPV4_SRC, V4),
                    SetField(f.ICMPV4_TYPE, 0),
                    SetField(f.IP_TTL, 64),
                    Output(IN_PORT_NUMBER),
                ),
                None,
            ),
            # copies to the controller, metered in a table of their own
            (2, 73, match((f.REG[3], 0)), (Clone((SetField(f.REG[4], 3), Resubmit(60))),), 3),
            (60, 1, match((f.REG[4], 3)), (ToMeter(3), Output(CONTROLLER, 256)), None),
            (60, 2, match(), (ToMeter(4), Output(CONTROLLER)), None),
            (60, 3, match((f.IN_PORT, 4)), (Clone((ToMeter(3), Output(CONTROLLER))),), 61),
            (2, 74, match((f.REG[3], 1)), (Clone((Output(9),)), Clone((Clone((Output(8),)),))), 3),
            # conntrack
            (3, 1, match(IS_IP), (Ct(f.REG[6], 4),), None),
            (3, 1, match(IS_V6), (Ct(12, 4),), None),
            (3, 2, match(IS_IP, (f.CT_MARK, 1)), (Ct(f.REG[6], commit=True),), 4),
            (
                3, 4, match(IS_IP, (f.CT_MARK, 0x11, 0x1F)),
                (
                    Clone((
                        Ct(f.REG[6], commit=True, sets=(SetField(f.CT_MARK, 0x12, 0x1F),)),
                        ToMeter(3), Output(CONTROLLER),
                    )),
                ),
                4,
            ),
            (3, 3, match(IS_IP, (f.CT_ZONE, 9)), (CtClear(), Ct(0, 4, commit=True)), None),
            (3, 5, match(IS_IP, (f.IP_PROTO, TCP), (f.REG[8], 1)), (
                Learn(20, 38, 0x77, (
                    Learnt(f.ETH_TYPE, 16, IP),
                    Learnt(f.ETH_SRC, 48, source=f.ETH_SRC),
                    Learnt(f.IP_PROTO, 8, TCP),
                    Learnt(f.IPV4_DST, 24, source=f.IPV4_DST, offset=8, source_offset=8),
                    Learnt(f.TCP_DST, 16, source=f.TCP_DST),
                    Learnt(f.CT_STATE, 1, 0, offset=3),
                    Learnt(f.TCP_FLAGS, 1, 1, offset=1),
                ), idle_s=300, limit=1000),
                Learn(21, 3, 1, (
                    Learnt(f.ETH_TYPE, 16, IP),
                    Learnt(f.IP_PROTO, 8, source=f.IP_PROTO),
                    Learnt(f.IPV4_SRC, 32, source=f.IPV4_DST),
                ), hard_s=9, limit=1),
            ), 4),
            (3, 6, match(IS_V6, (f.IP_PROTO, SCTP)), (
                Learn(20, 38, 0x77, (
                    Learnt(f.ETH_TYPE, 16, IPV6),
                    Learnt(f.IP_PROTO, 8, SCTP),
                    Learnt(f.IPV6_SRC, 48, source=f.IPV6_DST, offset=80, source_offset=80),
                    Learnt(f.SCTP_SRC, 16, source=f.SCTP_DST),
                    Learnt(f.REG[8], 1, 1),
                ), limit=7),
            ), 4),
            (4, 10, match(IS_IP, (f.CT_STATE, TRK | EST, TRK | EST | NEW)), (), 5),
            (4, 11, match(IS_IP, (f.CT_STATE, TRK | INV, TRK | INV)), (), None),
            (
                4, 12,
                match(IS_V6, (f.CT_STATE, TRK | REL, TRK | REL | RPL), (f.CT_MARK, 0x10, 0xF0)),
                (), 5,
            ),
            # access: conjunctions
            (4, 20, match(IS_IP, (f.CONJ_ID, 4711)), (Ct(f.REG[6], commit=True),), 5),
            (4, 20, match(IS_IP, (f.IPV4_SRC, V4)), (Conjunction(4711, 0, 3),), None),
            (
                4, 20, match(IS_IP, (f.IPV4_DST, V4)),
                (Conjunction(4711, 1, 3), Conjunction(4712, 1, 2)), None,
            ),
            (
                4, 20, match(IS_IP, (f.IP_PROTO, TCP), (f.TCP_DST, 0x1F40, 0xFFF0)),
                (Conjunction(4711, 2, 3),), None,
            ),
            (4, 21, match(IS_IP, (f.IP_PROTO, TCP), (f.TCP_DST, 443), (f.TCP_SRC, 1)), (), 5),
            (4, 21, match(IS_V6, (f.IP_PROTO, UDP), (f.UDP_DST, 53)), (), 5),
            (4, 21, match(IS_IP, (f.IP_PROTO, UDP), (f.UDP_SRC, 0x8000, 0x8000)), (), 5),
            (4, 21, match(IS_IP, (f.IP_PROTO, SCTP), (f.SCTP_DST, 9), (f.SCTP_SRC, 8)), (), 5),
            (4, 22, match(IS_IP, (f.IP_PROTO, TCP), (f.TCP_FLAGS, 2, 0x12)), (), 5),
            (4, 22, match(IS_IP, (f.IP_PROTO, TCP), (f.TCP_FLAGS, 0x10)), (), 5),
            (4, 23, match(IS_IP, (f.IP_FRAG, 0)), (), 5),
            (4, 24, match(IS_IP, (f.IP_FRAG, 1, 1)), (), 5),
            (4, 25, match(IS_IP, (f.IP_FRAG, 3)), (), 5),
            (4, 25, match(IS_IP, (f.IP_FRAG, 1)), (), 5),
            # bandwidth
            (5, 1, match((f.REG[1], 1)), (ToMeter(1),), 6),
            (5, 2, match((f.REG[1], 2), IS_IP), (ToMeter(2), SetField(f.IP_DSCP, 46)), 6),
            (5, 3, match(IS_IP, (f.IP_DSCP, 46), (f.IP_PROTO, UDP)), (), 6),
            # locate: registers and metadata in all kinds of pairs and masks
            (6, 1, match((f.REG[2], 0xAA00, 0xFF00), (f.REG[3], 1)), (), 7),
            (6, 2, match((f.REG[2], 5)), (SetField(f.REG[5], 0xF0, 0xFF),), 7),
            (6, 3, match((f.REG[3], 6)), (SetField(f.METADATA, 1 << 40, 1 << 40),), 7),
            (6, 4, match((f.REG[14], 1), (f.REG[15], 2), (f.REG[0], 3)), (), 7),
            (6, 5, match((f.METADATA, 7 << 32, 0xFF << 32)), (SetField(f.METADATA, 9),), 7),
            (6, 6, match((f.METADATA, (1 << 64) - 1)), (Move(f.METADATA, f.REG[7], 16, 8, 4),), 7),
            (
                6, 7, match(IS_IP, (f.ETH_DST, ROUTER), (f.IPV4_DST, ip4("10.9.0.0"), 0xFFFF0000)),
                (DecTtl(), SetField(f.ETH_SRC, ROUTER), SetField(f.ETH_DST, PEER)), 7,
            ),
            (6, 8, match(IS_V6, (f.IPV6_DST, V6)), (DecTtl(), SetField(f.IPV6_DST, V6)), 7),
            # path and delivery
            (7, 1, match((f.REG[2], 1)), (ToGroup(2),), None),
            (7, 2, match((f.REG[2], 2), IS_IP), (ToGroup(3),), None),
            (
                7, 3, match((f.REG[2], 3)),
                (PushMpls(), SetField(f.MPLS_LABEL, 0xFFFFF), SetField(f.MPLS_TC, 5), Output(2)),
                None,
            ),
            (7, 4, match((f.REG[2], 4)), (ToGroup(1),), 8),
            (8, 1, match((f.ETH_DST, MAC)), (OutputField(f.REG[15]),), None),
            (8, 2, match((f.REG[9], 1)), (SetField(f.REG[15], 3), OutputField(f.REG[15])), None),
            (8, 65535, match((f.ETH_SRC, MAC)), (Output(1), Output(2), Output(LOCAL)), None),
            (
                8, 3, match(IS_IP, (f.IP_PROTO, TCP)),
                (SetField(f.TCP_DST, 80), SetField(f.TCP_SRC, 81), SetField(f.IPV4_DST, V4)), 9,
            ),
            (253, 1, match((f.IN_PORT, 0xFEFF)), (Output(IN_PORT_NUMBER),), None),
        )
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def bridge() -> Iterator[int]:
    """A bridge; the port at which it listens."""
    with direct.bridge() as port:
        yield port


@pytest.fixture
def session(bridge: int) -> Iterator[Session]:
    """A connection to an empty switch."""
    with direct.session(bridge) as made:
        yield made


def provide(session: Session) -> None:
    assert session.do(*(encode.meter_mod(session.xid(), Change.ADD, m) for m in METERS)) == []
    for group in GROUPS:
        refused = session.do(encode.group_mod(session.xid(), Change.ADD, group))
        assert [(group, error.name) for error in refused] == []


def by_place(flow: Flow | AlienFlow) -> str:
    return repr(flow.place)


@pytest.mark.parametrize("meter", METERS, ids=repr)
def test_a_meter_comes_back_as_it_went(session: Session, meter: Meter) -> None:
    assert session.do(encode.meter_mod(session.xid(), Change.ADD, meter)) == []
    assert session.meters() == [meter]
    changed = replace(meter, rate=meter.rate * 2)
    assert session.do(encode.meter_mod(session.xid(), Change.MODIFY, changed)) == []
    assert session.meters() == [changed]
    assert session.do(encode.meter_delete(session.xid(), meter.id)) == []
    assert session.meters() == []


def test_groups_come_back_as_they_went(session: Session) -> None:
    provide(session)
    assert sorted(session.groups(), key=lambda g: g.id) == list(GROUPS)
    changed = replace(GROUPS[1], buckets=GROUPS[1].buckets[:1])
    assert session.do(encode.group_mod(session.xid(), Change.MODIFY, changed)) == []
    assert session.do(encode.group_delete(session.xid(), 3)) == []
    left = {group.id: group for group in session.groups()}
    assert left[2] == changed
    assert 3 not in left


def test_flows_come_back_as_they_went(session: Session) -> None:
    provide(session)
    for flow in FLOWS:
        refused = session.do(encode.flow_mod(session.xid(), Command.ADD, flow))
        assert [(flow, error.name) for error in refused] == []
    assert sorted(session.flows(), key=by_place) == sorted(FLOWS, key=by_place)
    # Each is found again by its match when it is to go.
    gone = [encode.flow_mod(session.xid(), Command.DELETE_STRICT, flow) for flow in FLOWS]
    assert session.do(*gone) == []
    assert session.flows() == []


def test_a_modification_is_in_place_but_leaves_the_cookie(session: Session) -> None:
    old = Flow(0, 5, match((f.IN_PORT, 1)), (Output(1),), cookie=1)
    new = replace(old, actions=(Output(2),), cookie=2)
    elsewhere = replace(new, priority=6)
    assert session.do(
        encode.flow_mod(session.xid(), Command.ADD, old),
        encode.flow_mod(session.xid(), Command.MODIFY_STRICT, new),
        encode.flow_mod(session.xid(), Command.MODIFY_STRICT, elsewhere),
    ) == []  # fmt: skip
    assert session.flows() == [replace(new, cookie=1)]
    assert session.do(encode.flow_mod(session.xid(), Command.ADD, new)) == []
    assert session.flows() == [new]


def test_a_dump_can_be_limited_by_cookie_and_table(session: Session) -> None:
    provide(session)
    assert session.do(*(encode.flow_mod(session.xid(), Command.ADD, x) for x in FLOWS)) == []
    request = encode.flow_desc_request(session.xid(), table=4, cookie=1, cookie_mask=1)
    found = [i.flow for r in session.replies(request) for i in flow_descs(r, Layouts()).items]
    wanted = [flow for flow in FLOWS if flow.table == 4 and flow.cookie & 1]
    assert sorted(found, key=by_place) == sorted(wanted, key=by_place)


def test_long_dumps_come_in_several_messages(session: Session) -> None:
    many = [
        Flow(0, 5, match((f.IN_PORT, 1 + n // 250), (f.METADATA, n)), (Output(n + 1),), cookie=n)
        for n in range(2000)
    ]
    assert session.do(*(encode.flow_mod(session.xid(), Command.ADD, flow) for flow in many)) == []
    assert len(session.replies(encode.flow_desc_request(session.xid()))) > 1
    assert sorted(session.flows(), key=lambda flow: flow.cookie) == many


def run_bundle(session: Session, number: int, inner: list[bytes]) -> list[decode.SwitchError]:
    """Open, fill and close a bundle; commit it if nothing was refused, discard it if so."""
    opening, closing, ending = session.xid(), session.xid(), session.xid()
    session.send(
        encode.bundle_control(opening, number, Bundle.OPEN),
        *(encode.bundle_add(number, message) for message in inner),
        encode.bundle_control(closing, number, Bundle.CLOSE),
    )
    before, closed = session.until(wire.BUNDLE_CONTROL, closing)
    assert decode.bundle_reply(closed)[:3] == (closing, number, Bundle.CLOSE + 1)
    refused = [decode.error(found) for found in before if found[1] == wire.ERROR]
    step = Bundle.DISCARD if refused else Bundle.COMMIT
    barrier = session.xid()
    session.send(encode.bundle_control(ending, number, step), encode.barrier_request(barrier))
    before, _ = session.until(wire.BARRIER_REPLY, barrier)
    return refused + [decode.error(found) for found in before if found[1] == wire.ERROR]


def test_a_bundle_commits_flows_and_groups_at_once(session: Session) -> None:
    group = Group(100, GroupType.ALL, (Bucket((Output(1),)),))
    first = Flow(0, 1, match(), (ToGroup(100),), cookie=1)
    add_group = encode.group_mod(session.xid(), Change.ADD, group)
    add_flow = encode.flow_mod(session.xid(), Command.ADD, first)
    assert run_bundle(session, 1, [add_group, add_flow]) == []
    assert (session.groups(), session.flows()) == ([group], [first])

    changed = replace(group, buckets=(Bucket((Output(2),)),))
    second = Flow(0, 2, match(), (ToGroup(100),), cookie=2)
    inner = [
        encode.flow_mod(session.xid(), Command.DELETE_STRICT, first),
        encode.group_mod(session.xid(), Change.MODIFY, changed),
        encode.flow_mod(session.xid(), Command.ADD, second),
    ]
    assert run_bundle(session, 1, inner) == []
    assert (session.groups(), session.flows()) == ([changed], [second])


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        # Found at the commit ...
        (Flow(0, 9, match(), (ToGroup(999),)), "BAD_ACTION/BAD_OUT_GROUP"),
        # ... and found when added.
        (Flow(0, 9, match(), (DecTtl(), Output(1))), "BAD_ACTION/MATCH_INCONSISTENT"),
        (Flow(0, 9, match((f.TCP_DST, 80))), "BAD_MATCH/BAD_PREREQ"),
        (Flow(9, 9, match(), goto=8), "BAD_INSTRUCTION/BAD_TABLE_ID"),
    ],
)
def test_a_bundle_with_one_bad_message_changes_nothing(
    session: Session, bad: Flow, name: str
) -> None:
    before = Flow(0, 1, match(), (Output(1),), cookie=1)
    assert session.do(encode.flow_mod(session.xid(), Command.ADD, before)) == []
    guilty = session.xid()
    inner = [
        encode.group_mod(session.xid(), Change.ADD, Group(100, GroupType.ALL, ())),
        encode.flow_mod(session.xid(), Command.DELETE_STRICT, before),
        encode.flow_mod(guilty, Command.ADD, bad),
        encode.flow_mod(session.xid(), Command.ADD, replace(before, priority=3)),
    ]
    refused = run_bundle(session, 2, inner)
    assert (refused[0].xid, refused[0].name) == (guilty, name)
    assert {error.name for error in refused[1:]} <= {"BUNDLE_FAILED/MSG_FAILED"}
    assert (session.groups(), session.flows()) == ([], [before])


def test_a_meter_is_not_taken_into_a_bundle(session: Session) -> None:
    """So meters go before the bundle whose flows use them, and are removed after it."""
    meter = encode.meter_mod(session.xid(), Change.ADD, METERS[0])
    assert [error.name for error in run_bundle(session, 3, [meter])] == ["BUNDLE_FAILED/MSG_UNSUP"]
    assert session.meters() == []


def test_what_others_put_in_is_alien_and_can_be_removed_alone(session: Session) -> None:
    ours = Flow(3, 10, match((f.IN_PORT, 1)), (Output(2),), cookie=5)
    assert session.do(encode.flow_mod(session.xid(), Command.ADD, ours)) == []
    strange = (
        "table=3,priority=10,in_port=2,idle_timeout=600,actions=output:2",
        "table=3,priority=10,in_port=3,actions=learn(table=9,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])",
        "table=3,priority=10,in_port=4,actions=write_actions(output:1)",
        "table=3,priority=10,tun_id=7,actions=drop",
        "table=3,priority=10,pkt_mark=0x5/0xf,reg1=5,actions=drop",
        "table=3,priority=10,in_port=5,actions=load:5->NXM_NX_XXREG0[]",
        "table=3,priority=10,ip,in_port=6,actions=ct(commit,exec(move:NXM_NX_REG0[]->NXM_NX_CT_MARK[]))",
        "table=3,priority=10,in_port=7,actions=push_vlan:0x8100,output:reg1[3..9]",
        "table=3,priority=10,in_port=8,actions=resubmit(3,4),normal,note:01.02.03",
    )
    for text in strange:
        ofctl("add-flow", text)
    found = session.flows()
    aliens = [flow for flow in found if isinstance(flow, AlienFlow)]
    assert [flow for flow in found if isinstance(flow, Flow)] == [ours]
    assert len(aliens) == len(strange)
    assert {flow.place for flow in aliens if flow.match is not None} == {
        (3, 10, match((f.IN_PORT, port))) for port in (2, 3, 4, 5, 7, 8)
    } | {(3, 10, match((f.IN_PORT, 6), IS_IP))}
    for number, alien in enumerate(aliens, 1):
        assert alien.why
        assert session.do(encode.delete_alien(session.xid(), alien)) == []
        assert len(session.flows()) == 1 + len(aliens) - number
    assert session.flows() == [ours]


def test_an_entry_of_the_same_meaning_is_ours_whoever_put_it_in(session: Session) -> None:
    ofctl(
        "add-flow", "table=1,priority=7,cookie=9,ip,reg2=1,nw_ttl=3,actions=output:2,goto_table:4"
    )
    wanted = Flow(
        1, 7, match((f.ETH_TYPE, IP), (f.REG[2], 1), (f.IP_TTL, 3)), (Output(2),), 4, cookie=9
    )
    assert session.flows() == [wanted]


def test_groups_and_meters_of_others_are_alien(session: Session) -> None:
    ofctl("add-group", "group_id=1,type=select,selection_method=dp_hash,bucket=output:1")
    masked = "selection_method=hash,fields(ip_src=255.255.0.0)"
    ofctl("add-group", f"group_id=2,type=select,{masked},bucket=output:1")
    ofctl("add-group", "group_id=3,type=all,bucket=push_vlan:0x8100,output:1")
    ofctl("add-meter", "meter=5,kbps,band=type=drop,rate=5,type=drop,rate=9")
    assert [type(group) for group in session.groups()] == [AlienGroup] * 3
    assert [(type(meter), meter.id) for meter in session.meters()] == [(AlienMeter, 5)]


def test_a_packet_out_meets_the_tables_and_comes_back_as_a_packet_in(session: Session) -> None:
    flow = Flow(
        0, 1, match((f.IN_PORT, 12)),
        (SetField(f.REG[3], 33), SetField(f.REG[8], 88), Resubmit(7)), cookie=1,
    )  # fmt: skip
    up = Flow(7, 1, match((f.REG[3], 33)), (Output(CONTROLLER),), cookie=0xC0FFEE)
    assert session.do(
        encode.set_config(session.xid(), 0, 0xFFFF),
        *(encode.flow_mod(session.xid(), Command.ADD, x) for x in (flow, up)),
    ) == []  # fmt: skip
    data = bytes.fromhex("020000000002020000000001") + bytes.fromhex("88b5") + bytes(50)
    table = 0xFFFFFFF9
    context = ((f.METADATA, 0xAB << 32, None), (f.REG[1], 11, None))
    session.send(encode.packet_out(session.xid(), 12, (Output(table),), data, context))
    found = decode.packet_in(session.receive())
    assert (found.reason, found.table, found.cookie) == (5, 7, 0xC0FFEE)  # OFPR_PACKET_OUT
    assert found.fields == {
        f.IN_PORT: 12, f.METADATA: 0xAB << 32, f.REG[1]: 11, f.REG[3]: 33, f.REG[8]: 88
    }  # fmt: skip
    assert (found.size, found.data) == (len(data), data)


def test_counters_come_with_the_flows(session: Session) -> None:
    flow = Flow(0, 1, match((f.IN_PORT, 12)))
    assert session.do(encode.flow_mod(session.xid(), Command.ADD, flow)) == []
    data = bytes(12) + bytes.fromhex("88b5") + bytes(86)
    sent = [encode.packet_out(session.xid(), 12, (Output(0xFFFFFFF9),), data)] * 3
    assert session.do(*sent) == []
    (found,) = session.installed()
    assert (found.flow, found.packets, found.bytes) == (flow, 3, 300)
