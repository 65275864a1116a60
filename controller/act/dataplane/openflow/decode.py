"""Messages from a switch, from the bytes of OpenFlow 1.5 to records.

Groups and meters come out in the canonical form in which we make them, so that what a switch
reports after it took a record equals that record; what we could never have sent comes out as an
alien. Flow entries have a module of their own (`flow_replies`). Malformed is the only thing
raised, whatever the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from controller.act.dataplane.openflow import errors
from controller.act.dataplane.openflow.actions import get_actions
from controller.act.dataplane.openflow.aliens import AlienGroup, AlienMeter
from controller.act.dataplane.openflow.fields import Field
from controller.act.dataplane.openflow.frame import (
    BODY,
    Reply,
    entry_end,
    header,
    multipart,
    opened,
)
from controller.act.dataplane.openflow.oxm import Unknown, get_tests, raw_match
from controller.act.dataplane.openflow.records import (
    Bucket,
    Group,
    GroupType,
    Meter,
)
from controller.act.dataplane.openflow.wire import (
    BAND,
    BAND_DROP,
    BUCKET,
    BUCKET_WATCH_GROUP,
    BUCKET_WATCH_PORT,
    BUCKET_WEIGHT,
    BUNDLE,
    BUNDLE_CONTROL,
    ERROR,
    EXPERIMENTER_PROPERTY,
    GROUP_DESC,
    HEADER,
    HEADER_SIZE,
    METER_BURST,
    METER_DESC,
    METER_KBPS,
    METER_PKTPS,
    METER_STATS,
    MP_GROUP_DESC,
    MP_METER_DESC,
    NTR_SELECTION_METHOD,
    NTR_VENDOR,
    PACKET_IN,
    PACKET_IN_BODY,
    PROPERTY,
    SELECTION_METHOD,
    Header,
    Malformed,
)

__all__ = [
    "BundleReply", "PacketIn", "Reply", "SwitchError", "bundle_reply", "error", "group_descs",
    "header", "meter_descs", "packet_in",
]  # fmt: skip


class SwitchError(NamedTuple):
    """What a switch refused. `xid` is that of the message refused, of whose beginning `data`
    has at least 64 bytes; `experimenter` is set where `type` is 0xffff."""

    xid: int
    type: int
    code: int
    experimenter: int | None
    data: bytes

    @property
    def name(self) -> str:
        """Type and code in words, such as BAD_MATCH/BAD_PREREQ."""
        return errors.name(self.type, self.code, self.experimenter)

    @property
    def refused(self) -> Header | None:
        """The header of the message refused, None where the switch sent too little of it."""
        return Header(*HEADER.unpack_from(self.data)) if len(self.data) >= HEADER_SIZE else None


class PacketIn(NamedTuple):
    """A packet that a switch sent up. `reason` is an OFPR_*; `table` and `cookie` are those of
    the entry that sent it; `fields` has in_port, metadata and registers where they are not 0;
    `size` is the packet's whole length, of which `data` may be only the beginning."""

    xid: int
    reason: int
    table: int
    cookie: int
    fields: dict[Field, int]
    size: int
    data: bytes


class BundleReply(NamedTuple):
    """The answer to a bundle control: `step` is that of the request plus 1."""

    xid: int
    bundle: int
    step: int
    flags: int


_ERROR = struct.Struct(">HH")
_EXPERIMENTER_ID = struct.Struct(">I")
_WORD = struct.Struct(">I")
_ETHERNET_PAD = 2


def error(data: bytes) -> SwitchError:
    """An error message."""
    head = opened(data, ERROR, "error message", 4)
    kind, code = _ERROR.unpack_from(data, HEADER_SIZE)
    if kind != errors.EXPERIMENTER_ERROR:
        return SwitchError(head.xid, kind, code, None, data[12:])
    if len(data) < 16:
        raise Malformed("error message", "of an experimenter, without room for its id")
    return SwitchError(head.xid, kind, code, _EXPERIMENTER_ID.unpack_from(data, 12)[0], data[16:])


def bundle_reply(data: bytes) -> BundleReply:
    """The answer to a bundle control."""
    head = opened(data, BUNDLE_CONTROL, "bundle control", BUNDLE.size)
    return BundleReply(head.xid, *BUNDLE.unpack_from(data, HEADER_SIZE))


def packet_in(data: bytes) -> PacketIn:
    """A packet sent to the controller."""
    place = "packet-in"
    head = opened(data, PACKET_IN, place, PACKET_IN_BODY.size)
    _, size, reason, table, cookie = PACKET_IN_BODY.unpack_from(data, HEADER_SIZE)
    start = HEADER_SIZE + PACKET_IN_BODY.size
    stop, end = raw_match(data, start, len(data), place)
    tests = get_tests(data, start + 4, stop, place, lenient=True)
    if len(data) < end + _ETHERNET_PAD:
        raise Malformed(place, "ends before its packet")
    fields = {field: value for field, value, _ in tests}
    return PacketIn(head.xid, reason, table, cookie, fields, size, data[end + _ETHERNET_PAD :])


def group_descs(data: bytes) -> Reply[Group | AlienGroup]:
    """One message of the reply to a GROUP_DESC request."""
    xid, more = multipart(data, MP_GROUP_DESC, "group descriptions")
    at = BODY
    found: list[Group | AlienGroup] = []
    while at < len(data):
        end = entry_end(data, at, GROUP_DESC.size, "group description", len(found))
        found.append(_group(data, at, end, f"group description {len(found)}"))
        at = end
    return Reply(xid, found, more)


def _group(data: bytes, at: int, end: int, place: str) -> Group | AlienGroup:
    _, kind, number, size = GROUP_DESC.unpack_from(data, at)
    start = at + GROUP_DESC.size
    stop = start + size
    if stop > end:
        raise Malformed(place, f"buckets claim {size} bytes, {end - start} are left")
    try:
        if kind > max(GroupType):
            raise Unknown(f"group type {kind}")
        fields = _hash_fields(data, stop, end, place)
        buckets = _buckets(data, start, stop, GroupType(kind), place)
        return Group(number, GroupType(kind), buckets, fields)
    except Unknown as strange:
        return AlienGroup(number, str(strange))


def _buckets(data: bytes, at: int, stop: int, kind: GroupType, place: str) -> tuple[Bucket, ...]:
    buckets: list[Bucket] = []
    while at < stop:
        here = f"{place}, bucket {len(buckets)}"
        if stop - at < BUCKET.size:
            raise Malformed(here, f"{stop - at} bytes left, {BUCKET.size} are needed")
        length, size, _ = BUCKET.unpack_from(data, at)
        start, end = at + BUCKET.size, at + length
        if end > stop or start + size > end:
            raise Malformed(here, f"claims {length} bytes, {size} of actions, {stop - at} left")
        actions = get_actions(data, start, start + size, here)
        weight, port, group = _bucket_properties(data, start + size, end, here)
        # Only select groups weigh: elsewhere the switch may report any weight.
        buckets.append(Bucket(actions, weight if kind is GroupType.SELECT else 1, port, group))
        at = end
    return tuple(buckets)


def _properties(data: bytes, at: int, end: int, place: str) -> Iterator[tuple[int, int, int]]:
    """Type, start and length (without padding) of each property."""
    while at < end:
        if end - at < PROPERTY.size:
            raise Malformed(place, f"{end - at} bytes left where a property begins")
        kind, length = PROPERTY.unpack_from(data, at)
        following = at + (length + 7) // 8 * 8
        if length < PROPERTY.size or following > end:
            raise Malformed(place, f"property {kind} claims {length} bytes, {end - at} are left")
        yield kind, at, length
        at = following


def _bucket_properties(
    data: bytes, at: int, end: int, place: str
) -> tuple[int, int | None, int | None]:
    """Weight, port and group that are watched."""
    weight, port, group = 1, None, None
    for kind, start, length in _properties(data, at, end, place):
        if kind == BUCKET_WEIGHT and length in (6, 8):
            weight = data[start + 4] << 8 | data[start + 5]
        elif kind == BUCKET_WATCH_PORT and length == 8:
            port = _WORD.unpack_from(data, start + 4)[0]
        elif kind == BUCKET_WATCH_GROUP and length == 8:
            group = _WORD.unpack_from(data, start + 4)[0]
        else:
            raise Unknown(f"bucket property {kind} of {length} bytes")
    return weight, port, group


def _hash_fields(data: bytes, at: int, end: int, place: str) -> tuple[Field, ...]:
    fields: tuple[Field, ...] = ()
    for kind, start, length in _properties(data, at, end, place):
        if kind != EXPERIMENTER_PROPERTY or length < SELECTION_METHOD.size:
            raise Unknown(f"group property {kind} of {length} bytes")
        _, _, vendor, subtype, method, _ = SELECTION_METHOD.unpack_from(data, start)
        if (vendor, subtype) != (NTR_VENDOR, NTR_SELECTION_METHOD):
            raise Unknown(f"group property {subtype} of experimenter {vendor:#x}")
        tests = get_tests(data, start + SELECTION_METHOD.size, start + length, place)
        name = method.rstrip(b"\0").decode("ascii", "replace")
        if name != "hash" or not tests:
            raise Unknown(f"selection method {name!r} over {len(tests)} fields")
        if any(value != field.full_mask for field, value, _ in tests):
            raise Unknown("selection method over parts of fields")
        fields = tuple([field for field, _, _ in tests])
    return fields


def meter_descs(data: bytes) -> Reply[Meter | AlienMeter]:
    """One message of the reply to a METER_DESC request."""
    xid, more = multipart(data, MP_METER_DESC, "meter descriptions")
    at = BODY
    found: list[Meter | AlienMeter] = []
    while at < len(data):
        end = entry_end(data, at, METER_DESC.size, "meter description", len(found))
        found.append(_meter(data, at, end))
        at = end
    return Reply(xid, found, more)


def _meter(data: bytes, at: int, end: int) -> Meter | AlienMeter:
    _, flags, number = METER_DESC.unpack_from(data, at)
    start = at + METER_DESC.size
    if end - start != BAND.size:
        return AlienMeter(number, f"{end - start} bytes of bands where one takes {BAND.size}")
    kind, _, rate, burst = BAND.unpack_from(data, start)
    unit = flags & ~(METER_BURST | METER_STATS)
    if kind != BAND_DROP or unit not in (METER_KBPS, METER_PKTPS):
        return AlienMeter(number, f"band of type {kind}, flags {flags:#x}")
    return Meter(number, rate, burst if flags & METER_BURST else 0, unit == METER_PKTPS)
