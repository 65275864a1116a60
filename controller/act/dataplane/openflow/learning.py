"""Open vSwitch's `learn` action as bytes, both ways: a switch that makes entries by itself.

By `struct nx_action_learn2` and the flow_mod_spec before it, in Open vSwitch's
lib/ofp-actions.c. Of the specs only those that match are known here.
"""

from __future__ import annotations

import struct

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.oxm import FIELD_OF, HEADER_OF, Unknown
from controller.act.dataplane.openflow.records import Learn, Learnt
from controller.act.dataplane.openflow.wire import NICIRA, Malformed, fitting

LEARN2 = 45

_HEAD = struct.Struct(">HHIHHHHQHBxHHI")
_RESULT = struct.Struct(">Hxx")
_SPEC = struct.Struct(">H")
_PLACE = struct.Struct(">4sH")
_BITS, _MATCH_FROM_VALUE, _KINDS = 0x07FF, 0x2000, 0xF800
_VENDOR_ACTION = 0xFFFF

#: The switch tells fields by the headers of NXM where there are such (nicira-ext.h).
_OLD = {
    0x00000002: f.IN_PORT,
    0x00000206: f.ETH_DST,
    0x00000406: f.ETH_SRC,
    0x00000602: f.ETH_TYPE,
    0x00000C01: f.IP_PROTO,
    0x00000E04: f.IPV4_SRC,
    0x00001004: f.IPV4_DST,
    0x00001202: f.TCP_SRC,
    0x00001402: f.TCP_DST,
    0x00001602: f.UDP_SRC,
    0x00001802: f.UDP_DST,
    0x00012610: f.IPV6_SRC,
    0x00012810: f.IPV6_DST,
    0x00014402: f.TCP_FLAGS,
}


def put_learn(act: Learn) -> bytes:
    """The whole action."""
    body = b"".join(map(_put_spec, act.specs))
    size = _HEAD.size + _RESULT.size + len(body)
    length = fitting((size + 7) // 8 * 8, "specs of learn")
    head = _HEAD.pack(
        _VENDOR_ACTION, length, NICIRA, LEARN2, act.idle_s, act.hard_s, act.priority,
        act.cookie, 0, act.table, 0, 0, act.limit,
    )  # fmt: skip
    return (head + _RESULT.pack(0) + body).ljust(length, b"\0")


def _put_spec(spec: Learnt) -> bytes:
    target = _PLACE.pack(HEADER_OF[spec.field.name], spec.offset)
    if spec.source is not None:
        source = _PLACE.pack(HEADER_OF[spec.source.name], spec.source_offset)
        return _SPEC.pack(spec.bits) + source + target
    size = (spec.bits + 15) // 16 * 2
    return _SPEC.pack(spec.bits | _MATCH_FROM_VALUE) + spec.value.to_bytes(size, "big") + target


def get_learn(data: bytes, at: int, length: int, place: str) -> Learn:
    """The action at `at`, as `actions.get_actions` has found it."""
    start, end = at + _HEAD.size + _RESULT.size, at + length
    if start > end:
        raise Malformed(place, f"learn of {length} bytes")
    _, _, _, _, idle, hard, priority, cookie, flags, table, fin, fin_hard, limit = (
        _HEAD.unpack_from(data, at)
    )
    if flags or fin or fin_hard:
        raise Unknown("learn with flags, or with an end of its own for TCP")
    specs: list[Learnt] = []
    while start + _SPEC.size <= end:
        word = _SPEC.unpack_from(data, start)[0]
        if not word:
            break  # padding
        spec, start = _get_spec(data, start + _SPEC.size, end, word, place)
        specs.append(spec)
    return Learn(table, priority, cookie, tuple(specs), idle, hard, limit)


def _get_spec(data: bytes, at: int, end: int, word: int, place: str) -> tuple[Learnt, int]:
    bits, kinds = word & _BITS, word & _KINDS
    if kinds not in (0, _MATCH_FROM_VALUE):
        raise Unknown("learn that does more than match")
    source: f.Field | None = None
    value = source_offset = 0
    size = (bits + 15) // 16 * 2 if kinds else _PLACE.size
    if at + size + _PLACE.size > end:
        raise Malformed(place, f"learn ends in a spec, {end - at} bytes left")
    if kinds:
        value = int.from_bytes(data[at : at + size], "big")
        if value >> bits:
            raise Malformed(place, f"learn matches {value:#x} in {bits} bits")
    else:
        source, source_offset = _field(data, at)
    field, offset = _field(data, at + size)
    spec = Learnt(field, bits, value, source, offset, source_offset)
    return spec, at + size + _PLACE.size


def _field(data: bytes, at: int) -> tuple[f.Field, int]:
    raw, offset = _PLACE.unpack_from(data, at)
    header = int.from_bytes(raw, "big")
    field = FIELD_OF.get(header) or _OLD.get(header)
    if field is None:
        raise Unknown(f"learn of a field that is none of ours ({header:#x})")
    return field, offset
