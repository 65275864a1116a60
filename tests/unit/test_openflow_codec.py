"""The codec against os-ken's own, and against bytes that nobody should send.

`data/openflow15_ovs31.json` holds replies of an Open vSwitch 3.1 to what
`tests/fabric/test_openflow_codec_ovs.py` installs, one alien entry and one alien group added.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from os_ken.lib import addrconv
from os_ken.ofproto import (
    ofproto_parser,
    ofproto_protocol,
    ofproto_v1_5,
    ofproto_v1_5_parser,
)

from controller.act.dataplane.openflow import counters, decode, encode, errors, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.actions import get_actions, put_actions
from controller.act.dataplane.openflow.aliens import AlienFlow, AlienGroup
from controller.act.dataplane.openflow.encode import Bundle, Change, Command, FlowFlag
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs
from controller.act.dataplane.openflow.oxm import get_tests, put_match, raw_match
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    IN_PORT_NUMBER,
    Act,
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
    Match,
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

OSKEN: Any = ofproto_v1_5_parser
NUMBERS: Any = ofproto_v1_5
DATAPATH = ofproto_protocol.ProtocolDesc(version=6)
REPLIES: dict[str, list[bytes]] = {
    name: [bytes.fromhex(text) for text in texts]
    for name, texts in json.loads(
        (Path(__file__).parent / "data" / "openflow15_ovs31.json").read_text()
    ).items()
}
#: Kept, as those of a switch are.
LAYOUTS = Layouts()
DECODERS: dict[str, Callable[[bytes], Any]] = {
    "flow_descs": lambda data: flow_descs(data, LAYOUTS),
    "group_descs": decode.group_descs,
    "meter_descs": decode.meter_descs,
    "packet_in": decode.packet_in,
    "bundle_reply": decode.bundle_reply,
    "error": decode.error,
    "group_stats": counters.group_stats,
    "meter_stats": counters.meter_stats,
}

MACS = {f.ETH_DST, f.ETH_SRC, f.ARP_SHA, f.ARP_THA, f.ND_SLL, f.ND_TLL}
V4S = {f.IPV4_SRC, f.IPV4_DST, f.ARP_SPA, f.ARP_TPA}
V6S = {f.IPV6_SRC, f.IPV6_DST, f.ND_TARGET}


def spoken(field: f.Field, value: int) -> Any:
    """A value as os-ken wants it."""
    raw = value.to_bytes(field.size, "big")
    if field in MACS:
        return addrconv.mac.bin_to_text(raw)
    if field in V4S:
        return addrconv.ipv4.bin_to_text(raw)
    if field in V6S:
        return addrconv.ipv6.bin_to_text(raw)
    return value


def osken_match(tests: Match) -> Any:
    return OSKEN.OFPMatch(
        **{
            field.name: spoken(field, value)
            if mask is None
            else (spoken(field, value), spoken(field, mask))
            for field, value, mask in tests
        }
    )


def osken_bytes(message: Any, xid: int) -> bytes:
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


BASIC = [field for field in f.ALL if field.oxm_class == f.OPENFLOW_BASIC]


@st.composite
def matches(draw: st.DrawFn, pool: list[f.Field] = list(f.ALL)) -> Match:  # noqa: B006
    chosen = draw(st.lists(st.sampled_from(pool), unique=True, max_size=8))
    tests = []
    for field in chosen:
        value = draw(st.integers(0, field.full_mask))
        mask = draw(st.none() | st.integers(0, field.full_mask)) if field.maskable else None
        tests.append((field, value, mask))
    return match(*tests)


def settable(field: f.Field) -> st.SearchStrategy[Act]:
    values = st.integers(0, field.full_mask)
    masks = st.none() | st.integers(1, field.full_mask) if field.maskable else st.none()
    return st.builds(SetField, st.just(field), values, masks).filter(
        lambda act: act.mask is None or act.value & act.mask == act.value
    )


U8, U16, U32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
ANY_FIELD = st.sampled_from(f.ALL)
REGISTERS = st.sampled_from(f.REG)
PORTS = st.integers(0, 0xFFFFFFFF).filter(lambda port: port != CONTROLLER)
LEARNT = st.one_of(
    st.builds(
        lambda field, value, offset: Learnt(field, 16, value, offset=offset), ANY_FIELD, U16, U8
    ),
    st.builds(Learnt, ANY_FIELD, st.integers(1, 128), st.just(0), ANY_FIELD, U8, U8),
)
SIMPLE: st.SearchStrategy[Act] = st.one_of(
    st.builds(Output, PORTS),
    st.builds(Output, st.just(CONTROLLER), U16),
    st.builds(OutputField, REGISTERS),
    st.builds(ToGroup, U32),
    st.builds(ToMeter, U32),
    ANY_FIELD.flatmap(settable),
    st.builds(Move, ANY_FIELD, ANY_FIELD, U16, U16, U16),
    st.builds(PushMpls, U16),
    st.builds(PopMpls, U16),
    st.just(DecTtl()),
    st.builds(
        Ct,
        REGISTERS | U16,
        st.none() | st.integers(0, 254),
        st.booleans(),
        st.just(()) | st.just((SetField(f.CT_MARK, 0x13, 0x1F),)),
    ),
    st.builds(Learn, U8, U16, U32, st.lists(LEARNT, max_size=5).map(tuple), U16, U16, U32),
    st.just(CtClear()),
    st.builds(Resubmit, U8),
    st.builds(Conjunction, U32, U8, U8),
)
ACTIONS = st.recursive(
    SIMPLE,
    lambda inner: st.builds(Clone, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)
FLOWS = st.builds(
    Flow,
    table=U8,
    priority=U16,
    match=matches(),
    actions=st.lists(ACTIONS, max_size=5).map(tuple),
    goto=st.none() | U8,
    cookie=st.integers(0, (1 << 64) - 1),
)


# --- what is sent ---------------------------------------------------------------------------


@given(matches(BASIC))
def test_a_match_is_that_of_os_ken(tests: Match) -> None:
    theirs = bytearray()
    osken_match(tests).serialize(theirs, 0)
    assert put_match(tests) == bytes(theirs)


@given(matches())
def test_os_ken_reads_a_match_of_any_fields(tests: Match) -> None:
    parsed = OSKEN.OFPMatch.parser(put_match(tests), 0)
    wanted = osken_match(tests)
    assert dict(parsed.items()) == dict(wanted.items())


@given(matches())
def test_a_match_is_read_as_it_was_written(tests: Match) -> None:
    data = put_match(tests)
    stop, padded = raw_match(data, 0, len(data), "match")
    assert padded == len(data)
    assert get_tests(data, 4, stop, "match") == tests


def test_prerequisites_come_before_the_fields_that_need_them() -> None:
    """Though nw_ttl is first in canonical order: a switch refuses it before eth_type."""
    data = put_match(match((f.ETH_TYPE, 0x800), (f.IP_TTL, 1), (f.IP_FRAG, 1)))
    assert data.index(b"\x80\x00\x0a\x02") < data.index(b"\x00\x01\x3a\x01")


ACTION_PAIRS: list[tuple[Act, Callable[[], Any]]] = [
    (Output(5), lambda: OSKEN.OFPActionOutput(5, 0)),
    (Output(CONTROLLER, 128), lambda: OSKEN.OFPActionOutput(CONTROLLER, 128)),
    (Output(IN_PORT_NUMBER), lambda: OSKEN.OFPActionOutput(IN_PORT_NUMBER, 0)),
    (ToGroup(9), lambda: OSKEN.OFPActionGroup(9)),
    (ToMeter(9), lambda: OSKEN.OFPActionMeter(9)),
    (SetField(f.ETH_SRC, 0x10203040506), lambda: OSKEN.OFPActionSetField(
        eth_src="01:02:03:04:05:06")),
    (SetField(f.MPLS_LABEL, 0x12345), lambda: OSKEN.OFPActionSetField(mpls_label=0x12345)),
    (SetField(f.IPV6_DST, 5), lambda: OSKEN.OFPActionSetField(ipv6_dst="::5")),
    (SetField(f.METADATA, 5, 7), lambda: OSKEN.OFPActionSetField(metadata=(5, 7))),
    (SetField(f.REG[3], 5), lambda: OSKEN.OFPActionSetField(reg3=5)),
    (PushMpls(), lambda: OSKEN.OFPActionPushMpls(0x8847)),
    (PopMpls(0x86DD), lambda: OSKEN.OFPActionPopMpls(0x86DD)),
    (DecTtl(), lambda: OSKEN.OFPActionDecNwTtl()),
    (Move(f.ARP_SHA, f.ARP_THA, 48, 1, 2), lambda: OSKEN.OFPActionCopyField(
        48, 1, 2, [OSKEN.OFPOxmId("arp_sha"), OSKEN.OFPOxmId("arp_tha")])),
    (Resubmit(7), lambda: OSKEN.NXActionResubmitTable(0xFFF8, 7)),
    (Conjunction(70, 1, 3), lambda: OSKEN.NXActionConjunction(1, 3, 70)),
    (CtClear(), lambda: OSKEN.NXActionCTClear()),
    (Ct(f.REG[6], 4), lambda: OSKEN.NXActionCT(0, "reg6", 15, 4, 0, [])),
    (Ct(12, None, commit=True), lambda: OSKEN.NXActionCT(1, "", 12, 255, 0, [])),
    (Ct(12, None, commit=True, sets=(SetField(f.CT_MARK, 5),)), lambda: OSKEN.NXActionCT(
        1, "", 12, 255, 0, [OSKEN.OFPActionSetField(ct_mark=5)])),
    (OutputField(f.REG[15]), lambda: OSKEN.NXActionOutputReg2(31, "reg15", 0xFFFF)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs"), ACTION_PAIRS, ids=[repr(ours) for ours, _ in ACTION_PAIRS]
)
def test_an_action_is_that_of_os_ken(ours: Act, theirs: Callable[[], Any]) -> None:
    buffer = bytearray()
    theirs().serialize(buffer, 0)
    assert put_actions((ours,)) == bytes(buffer)


@given(st.lists(ACTIONS, max_size=6).map(tuple))
def test_actions_are_read_as_they_were_written(actions: tuple[Act, ...]) -> None:
    data = put_actions(actions)
    assert len(data) % 8 == 0
    assert get_actions(data, 0, len(data), "test") == actions


def test_every_kind_of_action_is_tried() -> None:
    # os-ken has no `learn` with a limit: that is tried on a switch.
    tried = {type(ours) for ours, _ in ACTION_PAIRS} | {Clone, Learn}
    assert tried == set(Act.__args__)


@given(matches(BASIC), st.sampled_from(Command), U8, U16, st.integers(0, (1 << 64) - 1))
def test_a_flow_mod_is_that_of_os_ken(
    tests: Match, command: Command, table: int, priority: int, cookie: int
) -> None:
    flow = Flow(table, priority, tests, (Output(3), ToGroup(4)), 9, cookie)
    instructions = []
    if command is not Command.DELETE_STRICT:
        acts = [OSKEN.OFPActionOutput(3, 0), OSKEN.OFPActionGroup(4)]
        instructions = [
            OSKEN.OFPInstructionActions(NUMBERS.OFPIT_APPLY_ACTIONS, acts),
            OSKEN.OFPInstructionGotoTable(9),
        ]
    theirs = OSKEN.OFPFlowMod(
        DATAPATH,
        cookie=cookie,
        table_id=table,
        command=int(command),
        priority=priority,
        out_port=NUMBERS.OFPP_ANY,
        out_group=NUMBERS.OFPG_ANY,
        flags=int(FlowFlag.NO_BYT_COUNTS),
        match=osken_match(tests),
        instructions=instructions,
    )
    mine = encode.flow_mod(77, command, flow, FlowFlag.NO_BYT_COUNTS)
    assert mine == osken_bytes(theirs, 77)


def test_a_flow_that_drops_has_no_instruction() -> None:
    assert len(encode.flow_mod(1, Command.ADD, Flow(0, 0, match()))) == 48 + 8


def osken_bucket(number: int, port: int, properties: list[Any]) -> Any:
    return OSKEN.OFPBucket(
        bucket_id=number, actions=[OSKEN.OFPActionOutput(port, 0)], properties=properties
    )


def weight(of: int) -> Any:
    return OSKEN.OFPGroupBucketPropWeight(weight=of, length=8, type_=NUMBERS.OFPGBPT_WEIGHT)


@pytest.mark.parametrize("change", Change)
def test_a_group_mod_is_that_of_os_ken(change: Change) -> None:
    mine = Group(5, GroupType.SELECT, (Bucket((Output(1),), 3), Bucket((Output(2),), 7)))
    theirs = OSKEN.OFPGroupMod(
        DATAPATH, int(change), NUMBERS.OFPGT_SELECT, 5,
        buckets=[osken_bucket(0, 1, [weight(3)]), osken_bucket(1, 2, [weight(7)])],
    )  # fmt: skip
    assert encode.group_mod(9, change, mine) == osken_bytes(theirs, 9)


@pytest.mark.parametrize(
    ("watching", "kind"),
    [
        (Bucket((Output(1),), watch_port=7), NUMBERS.OFPGBPT_WATCH_PORT),
        (Bucket((Output(1),), watch_group=7), NUMBERS.OFPGBPT_WATCH_GROUP),
    ],
)
def test_the_bucket_of_a_fast_failover_group_watches(watching: Bucket, kind: int) -> None:
    mine = Group(5, GroupType.FAST_FAILOVER, (watching,))
    watch = OSKEN.OFPGroupBucketPropWatch(watch=7, length=8, type_=kind)
    theirs = OSKEN.OFPGroupMod(
        DATAPATH, 0, NUMBERS.OFPGT_FF, 5, buckets=[osken_bucket(0, 1, [watch])]
    )
    assert encode.group_mod(9, Change.ADD, mine) == osken_bytes(theirs, 9)


def test_hash_fields_go_as_netronome_s_property() -> None:
    group = Group(5, GroupType.SELECT, (), (f.IPV4_DST, f.IP_PROTO))
    data = encode.group_mod(9, Change.ADD, group)
    selection = data[24:]
    # 40 bytes of property, a field of 4 + 1 and one of 4 + 4; then padding to 8.
    assert selection[:4] == struct.pack(">HH", 0xFFFF, 40 + 5 + 8)
    assert selection[4:12] == struct.pack(">II", 0x154D, 1)
    assert selection[16:32] == b"hash".ljust(16, b"\0")
    assert selection[40:53].hex() == "80001401ff" + "80001804ffffffff"
    assert len(selection) == 56


@pytest.mark.parametrize(
    ("meter", "flags"),
    [
        (Meter(3, 1000), 0x1),
        (Meter(3, 1000, burst=50), 0x5),
        (Meter(3, 1000, packets=True), 0x2),
        (Meter(3, 1000, burst=5, packets=True), 0x6),
    ],
)
def test_a_meter_mod_is_that_of_os_ken(meter: Meter, flags: int) -> None:
    band = OSKEN.OFPMeterBandDrop(meter.rate, meter.burst)
    theirs = OSKEN.OFPMeterMod(DATAPATH, 1, flags, 3, [band])
    assert encode.meter_mod(4, Change.MODIFY, meter) == osken_bytes(theirs, 4)


def test_requests_are_those_of_os_ken() -> None:
    pairs = [
        (encode.barrier_request(1), OSKEN.OFPBarrierRequest(DATAPATH)),
        (
            encode.flow_desc_request(1, 4, 5, 6),
            OSKEN.OFPFlowDescStatsRequest(DATAPATH, 0, 4, cookie=5, cookie_mask=6),
        ),
        (encode.flow_desc_request(1), OSKEN.OFPFlowDescStatsRequest(DATAPATH)),
        (encode.group_desc_request(1), OSKEN.OFPGroupDescStatsRequest(DATAPATH)),
        (encode.meter_desc_request(1, 8), OSKEN.OFPMeterDescStatsRequest(DATAPATH, 0, 8)),
        (encode.port_desc_request(1), OSKEN.OFPPortDescStatsRequest(DATAPATH)),
        (encode.group_stats_request(1), OSKEN.OFPGroupStatsRequest(DATAPATH)),
        (encode.meter_stats_request(1, 8), OSKEN.OFPMeterStatsRequest(DATAPATH, 0, 8)),
        (encode.set_config(1, 0, 128), OSKEN.OFPSetConfig(DATAPATH, 0, 128)),
        (
            encode.bundle_control(1, 7, Bundle.COMMIT),
            OSKEN.OFPBundleCtrlMsg(DATAPATH, 7, NUMBERS.OFPBCT_COMMIT_REQUEST, 3, []),
        ),
        (
            encode.group_delete(1, 8),
            OSKEN.OFPGroupMod(DATAPATH, NUMBERS.OFPGC_DELETE, 0, 8, buckets=[]),
        ),
        (encode.meter_delete(1, 8), OSKEN.OFPMeterMod(DATAPATH, 2, 0, 8, [])),
        (
            encode.packet_out(1, 3, (Output(5),), b"frame", ((f.METADATA, 9, None),)),
            OSKEN.OFPPacketOut(
                DATAPATH,
                NUMBERS.OFP_NO_BUFFER,
                OSKEN.OFPMatch(in_port=3, metadata=9),
                [OSKEN.OFPActionOutput(5, 0)],
                b"frame",
            ),
        ),
    ]
    for mine, theirs in pairs:
        assert mine == osken_bytes(theirs, 1), theirs


def test_a_message_is_wrapped_under_its_own_id() -> None:
    inner = encode.flow_mod(0x1234, Command.ADD, Flow(0, 1, match()))
    data = encode.bundle_add(7, inner)
    assert decode.header(data) == (6, wire.BUNDLE_ADD, 16 + len(inner), 0x1234)
    assert data[8:16] == struct.pack(">IHH", 7, 0, 3)
    assert data[16:] == inner


def too_long() -> dict[str, Callable[[], bytes]]:
    many: tuple[Act, ...] = (SetField(f.IPV6_DST, 1),) * 2800
    flow = Flow(0, 1, match(), many)
    near = encode.flow_mod(1, Command.ADD, Flow(0, 1, match(), (Output(1),) * 4091))
    return {
        "flow": lambda: encode.flow_mod(1, Command.ADD, flow),
        "clone": lambda: encode.flow_mod(1, Command.ADD, replace(flow, actions=(Clone(many),))),
        "group": lambda: encode.group_mod(1, Change.ADD, Group(1, GroupType.ALL, (Bucket(many),))),
        "wrapped": lambda: encode.bundle_add(1, near),
        "packet": lambda: encode.packet_out(1, 1, (), bytes(65_510)),
    }


@pytest.mark.parametrize("what", sorted(too_long()))
def test_what_is_too_long_for_a_message_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match="65535"):
        too_long()[what]()


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode.flow_mod(1, Command.ADD, Flow(256, 1, match())),
        lambda: encode.flow_mod(1, Command.ADD, Flow(0, 70_000, match())),
        lambda: encode.flow_mod(1, Command.ADD, Flow(0, 1, ((f.IP_PROTO, 999, None),))),
        lambda: encode.flow_mod(1, Command.ADD, Flow(0, 1, ((f.Field("x", 1, 1, 8), 9, None),))),
        lambda: encode.flow_mod(1, Command.ADD, Flow(0, 1, match(), (Output(-1),))),
        lambda: encode.meter_mod(1, Change.ADD, Meter(1, 1 << 32)),
        lambda: encode.group_mod(1, Change.ADD, Group(-1, GroupType.ALL, ())),
        lambda: encode.packet_out(1, 3, (Resubmit(300),), b""),
    ],
)
def test_what_does_not_fit_its_field_is_refused_by_name(make: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match=r"cannot be put on the wire: .*(Flow|Meter|Group|Res)"):
        make()


# --- what is received -----------------------------------------------------------------------


def flow_desc(flow: Flow, timeouts: tuple[int, int] = (0, 0)) -> bytes:
    """A FLOW_DESC reply as Open vSwitch writes one, out of the flow mod of the same entry."""
    rest = encode.flow_mod(1, Command.ADD, flow)[48:]
    size = struct.unpack_from(">H", rest, 2)[0]
    split = (size + 7) // 8 * 8
    counters = bytes.fromhex(
        "0000001c" "80020008" "0000000200000000" "80020808" "0000000000000007"
    ).ljust(32, b"\0")  # fmt: skip
    body = rest[:split] + counters + rest[split:]
    entry = wire.FLOW_DESC.pack(
        24 + len(body), flow.table, flow.priority, *timeouts, 0, 0, flow.cookie
    )
    multipart = wire.MULTIPART.pack(wire.MP_FLOW_DESC, wire.MP_MORE)
    return wire.message(wire.MULTIPART_REPLY, 5, multipart + entry + body)


@given(FLOWS)
def test_a_flow_is_read_as_it_was_written(flow: Flow) -> None:
    xid, (found,), more = flow_descs(flow_desc(flow), Layouts())
    assert (xid, more) == (5, True)
    assert found.flow == flow
    assert (found.packets, found.bytes, found.seconds) == (7, 0, 2.0)


def test_a_flow_with_a_timeout_is_alien() -> None:
    """We never set one, and the entry will go by itself."""
    flow = Flow(3, 4, match((f.IN_PORT, 1)), cookie=9)
    (found,) = flow_descs(flow_desc(flow, (0, 60)), Layouts()).items
    assert isinstance(found.flow, AlienFlow)
    assert found.flow.place == flow.place
    assert "60 s hard" in found.flow.why
    assert encode.delete_alien(8, found.flow) == encode.flow_mod(8, Command.DELETE_STRICT, flow)


def test_packet_registers_and_packet_type_are_read_as_what_we_wrote() -> None:
    data = bytes.fromhex(
        "8000580400000000"  # packet_type=Ethernet
        "80010310" + "000000aa0000bb00" + "ffffffff0000ff00"  # xreg1, masked
        + "80010008" + "0000000100000002"  # xreg0
        + "80010f10" + "0000000500000000" + "0000000f00000000"  # xreg7, one half
    )  # fmt: skip
    wanted = match(
        (f.REG[0], 1), (f.REG[1], 2), (f.REG[2], 0xAA), (f.REG[3], 0xBB00, 0xFF00),
        (f.REG[14], 5, 15),
    )  # fmt: skip
    assert get_tests(data, 0, len(data), "match") == wanted


def test_what_groups_and_meters_counted_is_what_os_ken_reads() -> None:
    for name, what in (("group_stats", "group_id"), ("meter_stats", "meter_id")):
        for data in REPLIES[name]:
            theirs = ofproto_parser.msg(DATAPATH, 6, data[1], len(data), 1, data).body
            ours = DECODERS[name](data).items
            assert len(ours) > 1
            for told, found in zip(theirs, ours, strict=True):
                packets, octets = ("packet_count", "byte_count")
                if name == "meter_stats":
                    packets, octets = ("packet_in_count", "byte_in_count")
                assert found[:5] == (
                    getattr(told, what),
                    told.ref_count,
                    getattr(told, packets),
                    getattr(told, octets),
                    told.duration_sec + told.duration_nsec / 1e9,
                )
                parts = told.bucket_stats if name == "group_stats" else told.band_stats
                assert len(parts) == len(found.parts)
            assert any(found.packets for found in ours)


def test_replies_of_a_real_switch_are_read() -> None:
    flows = [item for data in REPLIES["flow_descs"] for item in DECODERS["flow_descs"](data).items]
    aliens = [item.flow for item in flows if isinstance(item.flow, AlienFlow)]
    assert len(flows) > 60
    assert [alien.table for alien in aliens] == [9]
    groups = [item for data in REPLIES["group_descs"] for item in decode.group_descs(data).items]
    assert [group for group in groups if isinstance(group, AlienGroup)] == [
        AlienGroup(77, "selection method 'dp_hash' over 0 fields")
    ]
    assert Group(
        3,
        GroupType.SELECT,
        (Bucket((Output(3),)), Bucket((Output(4),))),
        (f.IPV4_SRC, f.IPV4_DST, f.IP_PROTO, f.UDP_SRC, f.UDP_DST),
    ) in groups  # fmt: skip
    meters = decode.meter_descs(REPLIES["meter_descs"][0]).items
    assert Meter(4, 100, burst=10, packets=True) in meters
    packet = decode.packet_in(REPLIES["packet_in"][0])
    assert packet.fields == {
        f.IN_PORT: 12, f.REG[1]: 11, f.REG[8]: 88, f.METADATA: 0xAB << 32
    }  # fmt: skip
    assert (packet.table, packet.cookie, packet.size, len(packet.data)) == (0, 0xC0FFEE, 64, 64)
    assert decode.bundle_reply(REPLIES["bundle_reply"][0]).step == Bundle.OPEN + 1
    error = decode.error(REPLIES["error"][0])
    assert error.name == "BAD_ACTION/BAD_OUT_GROUP"
    assert error.refused is not None
    assert (error.refused.type, error.refused.xid) == (wire.FLOW_MOD, error.xid)


def test_error_names_are_those_of_the_standard() -> None:
    kinds = {
        "HELLO_FAILED": "HFC", "BAD_REQUEST": "BRC", "BAD_ACTION": "BAC", "BAD_INSTRUCTION": "BIC",
        "BAD_MATCH": "BMC", "FLOW_MOD_FAILED": "FMFC", "GROUP_MOD_FAILED": "GMFC",
        "PORT_MOD_FAILED": "PMFC", "TABLE_MOD_FAILED": "TMFC", "QUEUE_OP_FAILED": "QOFC",
        "SWITCH_CONFIG_FAILED": "SCFC", "ROLE_REQUEST_FAILED": "RRFC", "METER_MOD_FAILED": "MMFC",
        "BAD_PROPERTY": "BPC", "ASYNC_CONFIG_FAILED": "ACFC", "BUNDLE_FAILED": "BFC",
    }  # fmt: skip
    for (kind, code), text in errors.NAMES.items():
        name, reason = text.split("/")
        assert getattr(NUMBERS, f"OFPET_{name}") == kind
        assert getattr(NUMBERS, f"OFP{kinds[name]}_{reason}") == code, text
    assert errors.name(5, 99) == "FLOW_MOD_FAILED/99"
    assert errors.name(99, 1) == "99/1"


def test_an_experimenter_s_error_is_named() -> None:
    body = struct.pack(">HHI", 0xFFFF, 15, 0x2320) + b"message"
    error = decode.error(wire.message(wire.ERROR, 3, body))
    assert (error.xid, error.experimenter, error.name) == (3, 0x2320, "NICIRA/BAD_CONJUNCTION")
    assert (error.data, error.refused) == (b"message", None)


def only_malformed(decoder: Callable[[bytes], Any], data: bytes) -> None:
    """Whatever the bytes, an answer or Malformed; anything else fails the test."""
    with suppress(wire.Malformed):
        decoder(data)


CASES = [(name, data) for name, replies in REPLIES.items() for data in replies]


@pytest.mark.parametrize("name", DECODERS)
@given(body=st.binary(max_size=300), kind=st.sampled_from([1, 6, 7, 9, 10]))
def test_random_bodies_raise_nothing_but_malformed(name: str, body: bytes, kind: int) -> None:
    typed = REPLIES[name][0][1]
    if typed == wire.MULTIPART_REPLY:
        body = wire.MULTIPART.pack(kind, 0) + body
    only_malformed(DECODERS[name], wire.message(typed, 1, body))


@given(st.binary(max_size=64))
def test_random_bytes_raise_nothing_but_malformed(data: bytes) -> None:
    for decoder in (decode.header, *DECODERS.values()):
        only_malformed(decoder, data)


@pytest.mark.parametrize(("name", "data"), CASES, ids=[name for name, _ in CASES])
def test_truncated_messages_raise_nothing_but_malformed(name: str, data: bytes) -> None:
    step = max(1, len(data) // 400)
    for size in range(8, len(data), step):
        with pytest.raises(wire.Malformed):
            DECODERS[name](data[:size])
        # The header agrees, the inside does not.
        only_malformed(DECODERS[name], data[:2] + struct.pack(">H", size) + data[4:size])


@pytest.mark.parametrize(("name", "data"), CASES, ids=[name for name, _ in CASES])
@settings(max_examples=200)
@given(flips=st.data())
def test_flipped_bits_raise_nothing_but_malformed(
    name: str, data: bytes, flips: st.DataObject
) -> None:
    spoilt = bytearray(data)
    for _ in range(flips.draw(st.integers(1, 4))):
        place = flips.draw(st.integers(4, len(data) - 1))
        spoilt[place] ^= flips.draw(st.integers(1, 255))
    only_malformed(DECODERS[name], bytes(spoilt))


def test_clones_without_end_are_malformed() -> None:
    act: Act = CtClear()
    for _ in range(200):
        act = Clone((act,))
    with pytest.raises(wire.Malformed, match="nested deeper"):
        flow_descs(flow_desc(Flow(0, 1, match(), (act,))), Layouts())


def test_malformed_says_where_and_why() -> None:
    data = bytearray(flow_desc(Flow(0, 1, match((f.IN_PORT, 1)))))
    data[16 + 24 + 7] = 40  # the length of in_port
    with pytest.raises(wire.Malformed) as caught:
        flow_descs(bytes(data), Layouts())
    assert caught.value.place == "flow description 0"
    assert "claims 40 bytes" in caught.value.cause
