"""What does the framework's own codec make of the same records and bytes?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from os_ken.lib import addrconv
from os_ken.ofproto import (
    ofproto_parser,
    ofproto_protocol,
    ofproto_v1_5,
    ofproto_v1_5_parser,
)

from controller.act.dataplane.openflow import wire
from controller.act.dataplane.openflow.actions import put_instructions
from controller.act.dataplane.openflow.fields import REG, Field
from controller.act.dataplane.openflow.flow_replies import Installed
from controller.act.dataplane.openflow.frame import BODY
from controller.act.dataplane.openflow.oxm import put_match
from controller.act.dataplane.openflow.records import (
    Act,
    Conjunction,
    Ct,
    CtClear,
    DecTtl,
    Flow,
    Group,
    GroupType,
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
)

OFP: Any = ofproto_v1_5_parser
NUMBERS: Any = ofproto_v1_5
DATAPATH = ofproto_protocol.ProtocolDesc(version=wire.VERSION)
_COPY_FIELD = bytes.fromhex("001c0018")
_TEXT = {6: addrconv.mac, 4: addrconv.ipv4, 16: addrconv.ipv6}
_ADDRESSES = ("eth_", "arp_s", "arp_t", "ipv4_", "ipv6_")


def _spoken(field: Field, value: int) -> Any:
    """A value as the framework wants it: addresses as text."""
    if field.name.startswith(_ADDRESSES) and field.bits > 16:
        return _TEXT[field.size].bin_to_text(value.to_bytes(field.size, "big"))
    return value


def _match(match: Match) -> Any:
    tests = {}
    for field, value, mask in match:
        said = _spoken(field, value)
        tests[field.name] = said if mask is None else (said, _spoken(field, mask))
    return OFP.OFPMatch(**tests)


def _set_field(act: SetField) -> Any:
    value = _spoken(act.field, act.value)
    if act.mask is not None:
        value = (value, _spoken(act.field, act.mask))
    return OFP.OFPActionSetField(**{act.field.name: value})


def _ct(act: Ct) -> Any:
    named = isinstance(act.zone, Field)
    return OFP.NXActionCT(
        int(act.commit),
        act.zone.name if isinstance(act.zone, Field) else "",
        15 if named else act.zone,
        0xFF if act.table is None else act.table,
        0,
        _actions(act.sets),
    )


def _copy(act: Move) -> Any:
    ends = [OFP.OFPOxmId(act.source.name), OFP.OFPOxmId(act.target.name)]
    return OFP.OFPActionCopyField(act.bits, act.source_offset, act.target_offset, ends)


_ACTIONS: dict[type, Callable[[Any], Any]] = {
    Output: lambda act: OFP.OFPActionOutput(
        act.port, act.max_len if act.port == NUMBERS.OFPP_CONTROLLER else 0
    ),
    OutputField: lambda act: OFP.NXActionOutputReg2(act.field.bits - 1, act.field.name, 0xFFFF),
    ToGroup: lambda act: OFP.OFPActionGroup(act.group),
    ToMeter: lambda act: OFP.OFPActionMeter(act.meter),
    SetField: _set_field,
    Move: _copy,
    PushMpls: lambda act: OFP.OFPActionPushMpls(act.ethertype),
    PopMpls: lambda act: OFP.OFPActionPopMpls(act.ethertype),
    DecTtl: lambda act: OFP.OFPActionDecNwTtl(),
    Ct: _ct,
    CtClear: lambda act: OFP.NXActionCTClear(),
    Resubmit: lambda act: OFP.NXActionResubmitTable(0xFFF8, act.table),
    Conjunction: lambda act: OFP.NXActionConjunction(act.clause, act.clauses, act.id),
}


def _actions(acts: tuple[Act, ...]) -> list[Any]:
    return [_ACTIONS[type(act)](act) for act in acts]


def flow_mod(flow: Flow) -> Any:
    """The framework's message that adds a flow entry."""
    instructions = []
    if flow.actions:
        acts = _actions(flow.actions)
        instructions = [OFP.OFPInstructionActions(NUMBERS.OFPIT_APPLY_ACTIONS, acts)]
    if flow.goto is not None:
        instructions.append(OFP.OFPInstructionGotoTable(flow.goto))
    return OFP.OFPFlowMod(
        DATAPATH,
        cookie=flow.cookie,
        table_id=flow.table,
        priority=flow.priority,
        out_port=NUMBERS.OFPP_ANY,
        out_group=NUMBERS.OFPG_ANY,
        match=_match(flow.match),
        instructions=instructions,
    )


def group_mod(group: Group) -> Any:
    """The framework's message that adds a group. It cannot say which fields are hashed."""
    buckets = []
    for number, bucket in enumerate(group.buckets):
        properties = []
        if group.type is GroupType.SELECT:
            properties.append(
                OFP.OFPGroupBucketPropWeight(
                    weight=bucket.weight, length=8, type_=NUMBERS.OFPGBPT_WEIGHT
                )
            )
        if bucket.watch_port is not None:
            properties.append(
                OFP.OFPGroupBucketPropWatch(
                    watch=bucket.watch_port, length=8, type_=NUMBERS.OFPGBPT_WATCH_PORT
                )
            )
        if bucket.watch_group is not None:
            properties.append(
                OFP.OFPGroupBucketPropWatch(
                    watch=bucket.watch_group, length=8, type_=NUMBERS.OFPGBPT_WATCH_GROUP
                )
            )
        buckets.append(
            OFP.OFPBucket(bucket_id=number, actions=_actions(bucket.actions), properties=properties)
        )
    return OFP.OFPGroupMod(
        DATAPATH, NUMBERS.OFPGC_ADD, int(group.type), group.id, buckets=buckets
    )  # fmt: skip


def meter_mod(meter: Meter) -> Any:
    """The framework's message that adds a meter."""
    flags = NUMBERS.OFPMF_PKTPS if meter.packets else NUMBERS.OFPMF_KBPS
    if meter.burst:
        flags |= NUMBERS.OFPMF_BURST
    band = OFP.OFPMeterBandDrop(meter.rate, meter.burst)
    return OFP.OFPMeterMod(DATAPATH, NUMBERS.OFPMC_ADD, flags, meter.id, [band])


def written(message: Any) -> bytes:
    """The bytes of one of these messages."""
    message.xid = 1
    message.serialize()
    return bytes(message.buf)


def encoded_alike(record: Flow | Group | Meter, ours: bytes) -> bool:
    """Whether the framework reads our message as it would have written it. Fields of a match may
    stand in another order: Open vSwitch wants prerequisites first."""
    if isinstance(record, Meter):
        return ours == written(meter_mod(record))
    if isinstance(record, Group):
        plain = len(ours) if not record.hash_fields else 24 + int.from_bytes(ours[16:18], "big")
        return ours[4:plain] == written(group_mod(record))[4:]
    theirs = written(flow_mod(record))
    stop = 48 + (int.from_bytes(ours[50:52], "big") + 7) // 8 * 8
    read = OFP.OFPMatch.parser(ours, 48)
    return (
        dict(read.items()) == dict(_match(record.match).items())
        and ours[:48] == theirs[:48]
        and ours[stop:] == theirs[stop:]
    )


def readable(data: bytes) -> bytes:
    """A reply without the entries that the framework cannot read: those with copy_field."""
    at, kept = BODY, b""
    while at < len(data):
        end = at + int.from_bytes(data[at : at + 2], "big")
        kept += b"" if _COPY_FIELD in data[at:end] else data[at:end]
        at = end
    return wire.message(wire.MULTIPART_REPLY, 1, data[8:BODY] + kept)


def parsed(data: bytes) -> list[Any]:
    """The entries of a reply, as the framework reads them."""
    message = ofproto_parser.msg(DATAPATH, wire.VERSION, wire.MULTIPART_REPLY, len(data), 1, data)
    entries: list[Any] = message.body
    return entries


def decoded_alike(theirs: Any, ours: Installed) -> bool:
    """Whether the framework read the same entry and counters."""
    flow = ours.flow
    if not isinstance(flow, Flow):
        return False
    instructions = bytearray()
    for instruction in theirs.instructions:
        instruction.serialize(instructions, len(instructions))
    counters = dict(theirs.stats.items())
    whole, part = counters["duration"]
    mine = OFP.OFPMatch.parser(put_match(flow.match), 0)
    return (
        (theirs.table_id, theirs.priority, theirs.cookie, theirs.flags)
        == (flow.table, flow.priority, flow.cookie, ours.flags)
        and _by_registers(theirs.match) == dict(mine.items())
        and bytes(instructions) == put_instructions(flow.actions, flow.goto)
        and (counters["packet_count"], counters["byte_count"], whole + part / 1e9)
        == (ours.packets, ours.bytes, ours.seconds)
    )


def _by_registers(match: Any) -> dict[str, Any]:
    """The tests of a match. Open vSwitch tells of registers two in one, and of packets being
    Ethernet where nothing else says so."""
    tests = dict(match.items())
    tests.pop("packet_type", None)
    for number in range(len(REG) // 2):
        both = tests.pop(f"xreg{number}", None)
        if both is None:
            continue
        value, mask = both if isinstance(both, tuple) else (both, (1 << 64) - 1)
        for register, shift in ((2 * number, 32), (2 * number + 1, 0)):
            part, kept = value >> shift & 0xFFFFFFFF, mask >> shift & 0xFFFFFFFF
            if kept:
                tests[f"reg{register}"] = part if kept == 0xFFFFFFFF else (part, kept)
    return tests
