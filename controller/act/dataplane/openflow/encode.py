"""Messages to a switch, as the bytes of OpenFlow 1.5.

Every function is pure and gives one whole message. What does not fit the wire (a table over
255, a value wider than its field, more than 65,535 bytes) is a ValueError that names the record.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from functools import lru_cache

from controller.act.dataplane.openflow.actions import put_actions, put_instructions
from controller.act.dataplane.openflow.aliens import AlienFlow
from controller.act.dataplane.openflow.fields import IN_PORT, Field
from controller.act.dataplane.openflow.oxm import put_match, tlv
from controller.act.dataplane.openflow.records import (
    NO_BUFFER,
    Act,
    Bucket,
    Flow,
    Group,
    GroupType,
    Match,
    Meter,
    Test,
    match,
)
from controller.act.dataplane.openflow.wire import (
    ALL_GROUPS,
    ALL_METERS,
    ALL_TABLES,
    ANY,
    BAND,
    BAND_DROP,
    BARRIER_REQUEST,
    BUCKET,
    BUCKET_WATCH_GROUP,
    BUCKET_WATCH_PORT,
    BUCKET_WEIGHT,
    BUNDLE,
    BUNDLE_ADD,
    BUNDLE_CONTROL,
    CT_FLUSH_ZONE,
    EXPERIMENTER,
    EXPERIMENTER_PROPERTY,
    FLOW_MOD,
    GROUP_MOD,
    HEADER_SIZE,
    MAX_MESSAGE,
    METER_BURST,
    METER_KBPS,
    METER_MOD,
    METER_PKTPS,
    MP_FLOW_DESC,
    MP_GROUP_DESC,
    MP_GROUP_STATS,
    MP_METER_DESC,
    MP_METER_STATS,
    MP_PORT_DESC,
    MULTIPART,
    MULTIPART_REQUEST,
    NICIRA,
    NTR_SELECTION_METHOD,
    NTR_VENDOR,
    PACKET_OUT,
    SELECTION_METHOD,
    SET_CONFIG,
    VERSION,
    fitting,
    message,
    padding,
)


class Command(IntEnum):
    """What a flow mod does. MODIFY_STRICT touches neither cookie nor counters and nothing at
    all where the entry is missing; ADD takes the place of an entry that is there."""

    ADD = 0
    MODIFY_STRICT = 2
    DELETE_STRICT = 4


class FlowFlag(IntFlag):
    """OFPFF_*, OpenFlow 1.5.1, 7.3.4.2."""

    SEND_FLOW_REM = 1 << 0
    CHECK_OVERLAP = 1 << 1
    RESET_COUNTS = 1 << 2
    NO_PKT_COUNTS = 1 << 3
    NO_BYT_COUNTS = 1 << 4


class Change(IntEnum):
    """What a group or meter mod does. ADD of an id that exists and MODIFY of one that does not
    are errors."""

    ADD = 0
    MODIFY = 1


class Bundle(IntEnum):
    """Bundle control requests; the switch answers with the number after."""

    OPEN = 0
    CLOSE = 2
    COMMIT = 4
    DISCARD = 6


class BundleFlag(IntFlag):
    """All or nothing to the rules, to the packets too; in the order of adding."""

    ATOMIC = 1 << 0
    ORDERED = 1 << 1


_DELETE = 2
_ALL_BUCKETS = 0xFFFFFFFF
_BOTH = BundleFlag.ATOMIC | BundleFlag.ORDERED
#: header | cookie, mask, table, command, timeouts, priority, buffer, port, group, flags, rank
_FLOW_MOD = struct.Struct(">BBHIQQBBHHHIIIHH")
_GROUP_MOD = struct.Struct(">HBxIHxxI")
_METER_MOD = struct.Struct(">HHI")
#: header | the above | one band
_METER_WITH_BAND = struct.Struct(">BBHI HHI HHIIxxxx")
_PACKET_OUT = struct.Struct(">IHxx")
_FLOW_DESC_REQUEST = struct.Struct(">BxxxIIxxxxQQ")
_ID_REQUEST = struct.Struct(">Ixxxx")
_CONFIG = struct.Struct(">HH")
_FLUSH_ZONE = struct.Struct(">II6xH")
_WEIGHT = struct.Struct(">HHHxx")
_WATCH = struct.Struct(">HHI")
_SELECT_METHOD_LENGTH = SELECTION_METHOD.size

_MISFITS = (struct.error, OverflowError, KeyError)


def _misfit(record: object, cause: Exception) -> ValueError:
    return ValueError(f"cannot be put on the wire: {record!r}: {type(cause).__name__}: {cause}")


def flow_mod(xid: int, command: Command, flow: Flow, flags: int = 0) -> bytes:
    """ADD, MODIFY_STRICT or DELETE_STRICT of one entry. `flags` are those of `FlowFlag`.

    DELETE_STRICT looks at table, priority and match only. No timeouts, no buffer.
    """
    try:
        if command is Command.DELETE_STRICT:
            rest = put_match(flow.match)
        else:
            rest = put_match(flow.match) + put_instructions(flow.actions, flow.goto)
        return _flow_mod(xid, command, flow, flags, rest)
    except _MISFITS as error:
        raise _misfit(flow, error) from error


def delete_alien(xid: int, alien: AlienFlow) -> bytes:
    """DELETE_STRICT of an entry that is none of ours, by the very bytes of its match."""
    try:
        return _flow_mod(xid, Command.DELETE_STRICT, alien, 0, alien.match_bytes)
    except _MISFITS as error:
        raise _misfit(alien, error) from error


def _flow_mod(xid: int, command: int, flow: Flow | AlienFlow, flags: int, rest: bytes) -> bytes:
    length = 48 + len(rest)
    if length > MAX_MESSAGE:
        raise ValueError(
            f"flow mod, xid {xid:#x}: {length} bytes for the entry of table {flow.table}, "
            f"priority {flow.priority}, cookie {flow.cookie:#x}, but one message holds at most "
            f"{MAX_MESSAGE}; give it fewer actions"
        )
    return (
        _FLOW_MOD.pack(
            VERSION, FLOW_MOD, length, xid, flow.cookie, 0, flow.table, command, 0, 0,
            flow.priority, NO_BUFFER, ANY, ANY, flags, 0,
        )
        + rest
    )  # fmt: skip


def _bucket(number: int, bucket: Bucket, kind: GroupType) -> bytes:
    actions = put_actions(bucket.actions)
    properties = b""
    if kind is GroupType.SELECT:
        properties = _WEIGHT.pack(BUCKET_WEIGHT, 8, bucket.weight)
    if bucket.watch_port is not None:
        properties += _WATCH.pack(BUCKET_WATCH_PORT, 8, bucket.watch_port)
    if bucket.watch_group is not None:
        properties += _WATCH.pack(BUCKET_WATCH_GROUP, 8, bucket.watch_group)
    length = fitting(BUCKET.size + len(actions) + len(properties), "bucket", number)
    return BUCKET.pack(length, len(actions), number) + actions + properties


@lru_cache(maxsize=64)
def _selection(fields: tuple[Field, ...]) -> bytes:
    """Selection method "hash": over whole fields, so every value is all ones."""
    tlvs = b"".join([tlv(field, (1 << 8 * field.size) - 1, None) for field in fields])
    length = _SELECT_METHOD_LENGTH + len(tlvs)
    head = SELECTION_METHOD.pack(
        EXPERIMENTER_PROPERTY, length, NTR_VENDOR, NTR_SELECTION_METHOD, b"hash", 0
    )
    return head + tlvs + padding(length)


def group_mod(xid: int, change: Change, group: Group) -> bytes:
    """ADD or MODIFY of a group; buckets are numbered from 0."""
    try:
        buckets = b"".join(
            [_bucket(number, bucket, group.type) for number, bucket in enumerate(group.buckets)]
        )
        size = fitting(len(buckets), "buckets of group", group.id)
        body = _GROUP_MOD.pack(change, group.type, group.id, size, _ALL_BUCKETS) + buckets
        if group.hash_fields:
            body += _selection(group.hash_fields)
        return message(GROUP_MOD, xid, body)
    except _MISFITS as error:
        raise _misfit(group, error) from error


def group_delete(xid: int, group: int = ALL_GROUPS) -> bytes:
    """Remove a group, and with it every flow entry that leads to it; no error if missing."""
    return message(GROUP_MOD, xid, _GROUP_MOD.pack(_DELETE, 0, group, 0, _ALL_BUCKETS))


def meter_mod(xid: int, change: Change, meter: Meter) -> bytes:
    """ADD or MODIFY of a meter with one drop band. Open vSwitch takes no meters in bundles."""
    flags = METER_PKTPS if meter.packets else METER_KBPS
    if meter.burst:
        flags |= METER_BURST
    try:
        return _METER_WITH_BAND.pack(
            VERSION, METER_MOD, _METER_WITH_BAND.size, xid, change, flags, meter.id,
            BAND_DROP, BAND.size, meter.rate, meter.burst,
        )  # fmt: skip
    except _MISFITS as error:
        raise _misfit(meter, error) from error


def meter_delete(xid: int, meter: int = ALL_METERS) -> bytes:
    """Remove a meter, and with it every flow entry that uses it; no error if missing."""
    return message(METER_MOD, xid, _METER_MOD.pack(_DELETE, 0, meter))


def barrier_request(xid: int) -> bytes:
    """Answered when all before it is done."""
    return message(BARRIER_REQUEST, xid, b"")


def bundle_control(xid: int, bundle: int, step: Bundle, flags: int = _BOTH) -> bytes:
    """Open, close, commit or discard a bundle; all its messages must carry the same flags."""
    return message(BUNDLE_CONTROL, xid, BUNDLE.pack(bundle, step, flags))


def bundle_add(bundle: int, inner: bytes, flags: int = _BOTH) -> bytes:
    """Put a whole message into a bundle, under its own transaction id as the protocol wants.

    ValueError where it is too long to be wrapped (more than 65,519 bytes).
    """
    xid = int.from_bytes(inner[4:HEADER_SIZE], "big")
    return message(BUNDLE_ADD, xid, BUNDLE.pack(bundle, 0, flags) + inner)


def packet_out(
    xid: int, in_port: int, actions: tuple[Act, ...], data: bytes, fields: tuple[Test, ...] = ()
) -> bytes:
    """Do `actions` to a packet as if it had come in by `in_port`.

    `fields` sets what else the pipeline would know of it: registers, metadata.
    """
    try:
        context: Match = match((IN_PORT, in_port), *fields)
        acts = put_actions(actions)
        size = fitting(len(acts), "actions of a packet-out")
        body = _PACKET_OUT.pack(NO_BUFFER, size) + put_match(context) + acts + data
        return message(PACKET_OUT, xid, body)
    except _MISFITS as error:
        raise _misfit(actions, error) from error


def _multipart(xid: int, kind: int, body: bytes) -> bytes:
    return message(MULTIPART_REQUEST, xid, MULTIPART.pack(kind, 0) + body)


def flow_desc_request(
    xid: int, table: int = ALL_TABLES, cookie: int = 0, cookie_mask: int = 0
) -> bytes:
    """Ask for the entries of a table, or of all, whose cookie agrees under the mask."""
    body = _FLOW_DESC_REQUEST.pack(table, ANY, ANY, cookie, cookie_mask)
    return _multipart(xid, MP_FLOW_DESC, body + put_match(()))


def group_desc_request(xid: int, group: int = ALL_GROUPS) -> bytes:
    """Ask for one group or all."""
    return _multipart(xid, MP_GROUP_DESC, _ID_REQUEST.pack(group))


def group_stats_request(xid: int, group: int = ALL_GROUPS) -> bytes:
    """Ask for what one group, or all, have counted."""
    return _multipart(xid, MP_GROUP_STATS, _ID_REQUEST.pack(group))


def meter_stats_request(xid: int, meter: int = ALL_METERS) -> bytes:
    """Ask for what one meter, or all, have counted."""
    return _multipart(xid, MP_METER_STATS, _ID_REQUEST.pack(meter))


def meter_desc_request(xid: int, meter: int = ALL_METERS) -> bytes:
    """Ask for one meter or all."""
    return _multipart(xid, MP_METER_DESC, _ID_REQUEST.pack(meter))


def port_desc_request(xid: int, port: int = ANY) -> bytes:
    """Ask for one port or all."""
    return _multipart(xid, MP_PORT_DESC, _ID_REQUEST.pack(port))


def ct_flush_zone(xid: int, zone: int) -> bytes:
    """Forget every connection of a conntrack zone (NXT_CT_FLUSH_ZONE, Open vSwitch 2.6)."""
    return message(EXPERIMENTER, xid, _FLUSH_ZONE.pack(NICIRA, CT_FLUSH_ZONE, zone))


def set_config(xid: int, flags: int = 0, miss_send_len: int = 0xFFFF) -> bytes:
    """How to treat IP fragments, and how much of a packet goes to the controller."""
    return message(SET_CONFIG, xid, _CONFIG.pack(flags, miss_send_len))
