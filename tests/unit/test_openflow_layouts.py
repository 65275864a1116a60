"""Entries decoded by layout, against those decoded one by one and against os-ken's parser."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from os_ken.ofproto import ofproto_parser, ofproto_protocol, ofproto_v1_5_parser

from controller.act.dataplane.openflow import encode, layouts, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.actions import put_instructions
from controller.act.dataplane.openflow.aliens import AlienFlow
from controller.act.dataplane.openflow.flow_entry import Installed, installed
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs, flow_entries
from controller.act.dataplane.openflow.frame import BODY, entry_end
from controller.act.dataplane.openflow.oxm import put_match
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Clone,
    Conjunction,
    DecTtl,
    Flow,
    Move,
    Output,
    SetField,
    ToGroup,
    ToMeter,
    match,
)
from tests.unit.test_openflow_codec import ACTIONS, FLOWS, REPLIES, U8, U16, matches

DATAPATH = ofproto_protocol.ProtocolDesc(version=6)
COUNT = st.integers(0, (1 << 64) - 1)


@st.composite
def revalued(draw: st.DrawFn, flow: Flow) -> Flow:
    """Another entry, of other values in the same fields and actions."""

    def act(old: Act) -> Act:
        match old:
            case SetField(field, _, mask):
                return SetField(field, draw(st.integers(0, field.full_mask)), mask)
            case Output(port) if port != CONTROLLER:
                return Output(draw(st.sampled_from([1, 2, CONTROLLER])), 0)
            case ToGroup():
                return ToGroup(draw(U8))
            case ToMeter():
                return ToMeter(draw(U8))
            case Conjunction():
                return Conjunction(draw(U8), draw(U8), draw(U8))
        return old

    tests = [(field, draw(st.integers(0, field.full_mask)), mask) for field, _, mask in flow.match]
    return replace(
        flow,
        match=match(*tests),
        actions=tuple([act(old) for old in flow.actions]),
        cookie=draw(COUNT),
        priority=draw(U16),
        table=draw(U8),
    )


@st.composite
def entry(draw: st.DrawFn, flow: Flow, *, idle: bool) -> bytes:
    """How a switch tells of an entry; some tell since when it is idle, too."""
    rest = encode.flow_mod(1, encode.Command.ADD, flow)[48:]
    split = (struct.unpack_from(">H", rest, 2)[0] + 7) // 8 * 8
    words = [0x80020008, *([0x80020208] if idle else []), 0x80020808, 0x80020A08]
    counters = b"".join([struct.pack(">IQ", word, draw(COUNT)) for word in words])
    counters = struct.pack(">HH", 0, 4 + len(counters)) + counters
    counters += bytes(-len(counters) % 8)
    body = rest[:split] + counters + rest[split:]
    timeout = draw(st.sampled_from([0, 0, 0, 0, 5]))
    flags = draw(st.sampled_from([0, 0, 1]))
    head = wire.FLOW_DESC.pack(
        24 + len(body), flow.table, flow.priority, timeout, 0, flags, 0, flow.cookie
    )
    return head + body


def message(entries: Sequence[bytes]) -> bytes:
    multipart = wire.MULTIPART.pack(wire.MP_FLOW_DESC, 0)
    return wire.message(wire.MULTIPART_REPLY, 5, multipart + b"".join(entries))


@st.composite
def replies(draw: st.DrawFn, flows: st.SearchStrategy[Flow] = FLOWS) -> list[bytes]:
    """Messages with entries of a few layouts, in runs of them."""
    kinds = draw(st.lists(st.tuples(flows, st.booleans()), min_size=1, max_size=3))
    found: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        entries: list[bytes] = []
        for _ in range(draw(st.integers(1, 4))):
            kind, idle = draw(st.sampled_from(kinds))
            for _ in range(draw(st.integers(1, 4))):
                entries.append(draw(entry(draw(revalued(kind)), idle=idle)))
        found.append(message(entries))
    return found


def one_by_one(data: bytes) -> list[Installed]:
    found: list[Installed] = []
    at = BODY
    while at < len(data):
        end = entry_end(data, at, wire.FLOW_DESC.size, "flow description", len(found))
        found.append(installed(data, at, end, f"flow description {len(found)}"))
        at = end
    return found


def outcome(data: bytes, known: Layouts | None) -> object:
    """What comes of a message, by layouts or without."""
    try:
        return one_by_one(data) if known is None else flow_descs(data, known).items
    except wire.Malformed as cause:
        return str(cause)


@settings(max_examples=60)
@given(replies())
def test_by_layouts_or_one_by_one_is_the_same(messages: list[bytes]) -> None:
    known = Layouts()
    for _ in ("learning", "knowing"):
        for data in messages:
            assert flow_descs(data, known).items == one_by_one(data)


@settings(max_examples=60)
@given(replies(), st.data())
def test_what_is_damaged_is_seen_as_by_one_by_one(messages: list[bytes], draws: Any) -> None:
    """Nothing is let through because entries like it were met before."""
    known = Layouts()
    for data in messages:
        flow_descs(data, known)
    spoilt = bytearray(draws.draw(st.sampled_from(messages)))
    for _ in range(draws.draw(st.integers(1, 3))):
        spoilt[draws.draw(st.integers(BODY, len(spoilt) - 1))] ^= 1 << draws.draw(st.integers(0, 7))
    size = draws.draw(st.integers(BODY, len(spoilt)) | st.just(len(spoilt)))
    data = bytes(spoilt[:2]) + struct.pack(">H", size) + bytes(spoilt[4:size])
    assert outcome(data, known) == outcome(data, None)


def test_every_bit_of_a_real_reply_is_looked_at() -> None:
    """Of a switch's own messages, each with one bit turned, all layouts being known."""
    known = Layouts()
    for data in REPLIES["flow_descs"]:
        flow_descs(data, known)
    (data,) = REPLIES["flow_descs"]
    for at in range(BODY, 1_500):
        spoilt = bytearray(data[:2_000])
        spoilt[at] ^= 1 << at % 8
        spoilt[2:4] = struct.pack(">H", len(spoilt))
        assert outcome(bytes(spoilt), known) == outcome(bytes(spoilt), None), at


def test_a_real_switch_s_entries() -> None:
    known = Layouts()
    for _ in ("learning", "knowing"):
        for data in REPLIES["flow_descs"]:
            assert flow_descs(data, known).items == one_by_one(data)


@settings(max_examples=60)
@given(replies())
def test_what_was_read_before_is_known_by_its_signature(messages: list[bytes]) -> None:
    known = Layouts()
    seen: dict[bytes, object] = {}
    for data in messages:
        items = flow_entries(data, {}, known).items
        assert [item for _, item in items] == one_by_one(data)
        seen.update((signature, item.flow) for signature, item in items)
    for data in messages:
        # The counters may differ, the entry may not.
        told = flow_entries(data, seen, known).items
        assert [flow for _, flow in told] == [item.flow for item in one_by_one(data)]
        partly = dict(list(seen.items())[::2])
        for signature, item in flow_entries(data, partly, known).items:
            flow = item.flow if isinstance(item, Installed) else item
            assert isinstance(item, Installed) == (signature not in partly)
            assert flow == seen[signature]


# --- os-ken, which can read neither copy_field of Open vSwitch nor clones

PLAIN = st.lists(ACTIONS.filter(lambda act: not isinstance(act, Move | Clone)), max_size=5).map(
    tuple
)
READABLE = st.builds(
    Flow, U8, U16, matches(), PLAIN, st.none() | st.integers(0, 254), COUNT
)  # fmt: skip


def theirs(data: bytes) -> list[tuple[object, ...]]:
    """What os-ken reads; the instructions as it would write them."""
    found: list[tuple[object, ...]] = []
    for told in ofproto_parser.msg(DATAPATH, 6, wire.MULTIPART_REPLY, len(data), 5, data).body:
        instructions = bytearray()
        for instruction in told.instructions:
            instruction.serialize(instructions, len(instructions))
        counters = dict(told.stats.items())
        whole, part = counters["duration"]
        found.append(
            (
                (told.table_id, told.priority, told.cookie, told.flags),
                dict(told.match.items()),
                bytes(instructions),
                (counters["packet_count"], counters["byte_count"], whole + part / 1e9),
            )
        )
    return found


def ours(item: Installed) -> tuple[object, ...]:
    flow = item.flow
    # A timeout makes an alien of it, and changes nothing else.
    tests = flow.match_bytes if isinstance(flow, AlienFlow) else put_match(flow.match)
    if isinstance(flow, AlienFlow):
        instructions = flow.instruction_bytes
    else:
        instructions = put_instructions(flow.actions, flow.goto)
    return (
        (flow.table, flow.priority, flow.cookie, item.flags),
        dict(ofproto_v1_5_parser.OFPMatch.parser(tests, 0).items()),
        instructions,
        (item.packets, item.bytes, item.seconds),
    )


@settings(max_examples=30)
@given(replies(READABLE))
def test_os_ken_reads_the_same(messages: list[bytes]) -> None:
    known = Layouts()
    for _ in ("learning", "knowing"):
        for data in messages:
            items = flow_descs(data, known).items
            assert [ours(item) for item in items] == theirs(data)


# --- what is kept


def told(flow: Flow) -> bytes:
    rest = encode.flow_mod(1, encode.Command.ADD, flow)[48:]
    split = (struct.unpack_from(">H", rest, 2)[0] + 7) // 8 * 8
    body = rest[:split] + struct.pack(">HHxxxx", 0, 4) + rest[split:]
    head = wire.FLOW_DESC.pack(24 + len(body), flow.table, flow.priority, 0, 0, 0, 0, flow.cookie)
    return head + body


def test_whoever_shows_many_layouts_is_read_but_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[bytes] = []
    layout = layouts.Layout
    monkeypatch.setattr(layouts, "Layout", lambda entry: (made.append(entry), layout(entry))[1])
    monkeypatch.setattr(layouts, "MAX_LAYOUTS", 40)
    monkeypatch.setattr(layouts, "MAX_ALIKE", 8)
    known = Layouts()

    def show(flows: list[Flow]) -> int:
        data = message([told(flow) for flow in flows])
        assert [item.flow for item in flow_descs(data, known).items] == flows
        return len(made)

    one_length = [Flow(0, 1, match((f.METADATA, 0, mask))) for mask in range(1, 100)]
    assert show(one_length) == 8
    many = [Flow(0, 1, match(), (ToGroup(1),) * (n % 5 + 1), n) for n in range(100)]
    many += [
        Flow(0, 1, match((f.METADATA, 0, n % 16 + 1)), (DecTtl(),) * (n // 16)) for n in range(200)
    ]
    assert show(many) == 40
    assert show(one_length + many) == 40


def test_very_long_entries_are_read_but_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "Layout", None)
    flow = Flow(0, 1, match(), (Output(1),) * 100)
    data = message([told(flow)] * 3)
    assert [item.flow for item in flow_descs(data, Layouts()).items] == [flow] * 3


def test_equal_actions_are_one_object() -> None:
    """A switch of 20,000 entries has some dozens of different actions."""
    flows = [
        Flow(0, n, match((f.IN_PORT, 7)), (SetField(f.REG[0], n % 2), Output(n))) for n in range(9)
    ]
    items = flow_descs(message([told(flow) for flow in flows]), Layouts()).items
    assert [item.flow for item in items] == flows
    assert len({id(item.flow.actions[0]) for item in items}) == 2  # type: ignore[union-attr]
    assert len({id(item.flow.match[0]) for item in items}) == 1  # type: ignore[union-attr,index]
