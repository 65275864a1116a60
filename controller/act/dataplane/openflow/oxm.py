"""Match fields as OXM TLVs, both ways.

OpenFlow 1.5.1, 7.2.3. Open vSwitch accepts registers as NXM_NX_REGn but reports them as 64-bit
packet registers (class 0x8001), two in one, and adds packet_type=Ethernet where no other field
implies it; both are undone here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from controller.act.dataplane.openflow.fields import ALL, NXM_1, OPENFLOW_BASIC, REG, Field
from controller.act.dataplane.openflow.records import Match, Test
from controller.act.dataplane.openflow.wire import Malformed

PACKET_REGISTERS = 0x8001
EXPERIMENTER_CLASS = 0xFFFF
PACKET_TYPE_HEADER = OPENFLOW_BASIC << 16 | 44 << 9 | 4
MATCH_TYPE_OXM = 1

_MATCH_HEADER = struct.Struct(">HH")
_PADS = tuple(bytes(-length % 8) for length in range(8))
_TLV_HEADER = struct.Struct(">I")


class _Out(NamedTuple):
    """What goes before a value, exact or masked, and the bytes of the value. A `late` field
    is of class NXM_1: its prerequisites, of the basic class, must come before it."""

    exact: bytes
    masked: bytes
    size: int
    late: bool


class _In(NamedTuple):
    """What a TLV header stands for: `register` is n where it is packet register n."""

    rank: int
    field: Field
    masked: bool
    size: int
    full: int
    register: int | None


class Unknown(Exception):  # noqa: N818 - never leaves the decoder: the entry becomes an alien
    """Well-formed, but of a kind that we never send."""


def header(field: Field, masked: bool = False) -> int:
    """The 32-bit OXM header of a field."""
    size = field.size * 2 if masked else field.size
    return field.oxm_class << 16 | field.number << 9 | masked << 8 | size


def _inbound() -> dict[int, _In]:
    ordered = sorted(ALL, key=lambda f: (f.oxm_class, f.number))
    rank = {field: place for place, field in enumerate(ordered)}
    table = {
        header(field, masked): _In(rank[field], field, masked, field.size, field.full_mask, None)
        for field in ordered
        for masked in (False, True)
    }
    for number in range(len(REG) // 2):
        high = REG[2 * number]
        for masked in (False, True):
            tlv = PACKET_REGISTERS << 16 | number << 9 | masked << 8 | (16 if masked else 8)
            table[tlv] = _In(rank[high], high, masked, 8, (1 << 64) - 1, number)
    return table


_OUT = {
    field.name: _Out(
        _TLV_HEADER.pack(header(field)),
        _TLV_HEADER.pack(header(field, True)),
        field.size,
        field.oxm_class == NXM_1,
    )
    for field in ALL
}
_IN = _inbound()
FIELD_OF = {header(field): field for field in ALL}
HEADER_OF = {field.name: _TLV_HEADER.pack(header(field)) for field in ALL}


def tlv(field: Field, value: int, mask: int | None) -> bytes:
    """Header, value and, if there is one, mask."""
    out = _OUT[field.name]
    size = out.size
    if mask is None:
        return out.exact + value.to_bytes(size, "big")
    return out.masked + value.to_bytes(size, "big") + mask.to_bytes(size, "big")


def put_match(match: Match) -> bytes:
    """An `ofp_match` with its padding."""
    early = late = b""
    for field, value, mask in match:
        exact, masked, size, is_late = _OUT[field.name]
        if mask is None:
            written = exact + value.to_bytes(size, "big")
        else:
            written = masked + value.to_bytes(size, "big") + mask.to_bytes(size, "big")
        if is_late:
            late += written
        else:
            early += written
    length = 4 + len(early) + len(late)
    return _MATCH_HEADER.pack(MATCH_TYPE_OXM, length) + early + late + _PADS[length % 8]


def raw_match(data: bytes, start: int, end: int, place: str) -> tuple[int, int]:
    """Where the TLVs of the `ofp_match` at `start` end, and where its padding ends."""
    if end - start < 4:
        raise Malformed(place, f"{end - start} bytes left for a match, 4 are its header")
    kind, length = _MATCH_HEADER.unpack_from(data, start)
    if kind != MATCH_TYPE_OXM:
        raise Malformed(place, f"match of type {kind}, only OXM ({MATCH_TYPE_OXM}) exists in 1.5")
    stop: int = start + length
    padded = start + (length + 7) // 8 * 8
    if length < 4 or padded > end:
        raise Malformed(place, f"match claims {length} bytes, {end - start} are left")
    return stop, padded


class Slot(NamedTuple):
    """Where a test finds its value: `size` bytes at `start`, of which the bits of `kept` count.
    `mask` is the test's own, None for an exact match; `rank` its place in a canonical match."""

    rank: int
    start: int
    size: int
    kept: int
    field: Field
    mask: int | None


def get_slots(
    data: bytes, start: int, stop: int, place: str, *, lenient: bool = False
) -> list[Slot]:
    """Where the TLVs between `start` and `stop` have the values of their tests, in canonical
    order. What only repeats a default (an empty mask, packet_type=Ethernet) is left out.

    Unknown for a field that is none of ours (passed over if `lenient`), Malformed for what
    cannot be read at all.
    """
    found: dict[int, Slot] = {}
    unknown = ""
    while start < stop:
        if stop - start < 4:
            raise Malformed(place, f"{stop - start} bytes left where a field begins")
        word: int = _TLV_HEADER.unpack_from(data, start)[0]
        start += 4
        end = start + (word & 0xFF)
        if end > stop:
            raise Malformed(
                place, f"field {word:#010x} claims {word & 0xFF} bytes, {stop - start} are left"
            )
        known = _IN.get(word)
        if known is None:
            if word != PACKET_TYPE_HEADER or any(data[start:end]):
                unknown = unknown or f"match field {word:#010x}"
        elif not _take(known, data, start, found):
            raise Malformed(place, f"{known.field.name} is matched twice")
        start = end
    if unknown and not lenient:
        raise Unknown(unknown)
    return [found[rank] for rank in sorted(found)]


def _take(known: _In, data: bytes, start: int, found: dict[int, Slot]) -> bool:
    """Put what one TLV tests into `found`, by rank. False if its field is there already."""
    rank, field, masked, size, mask, register = known
    if masked:
        mask &= int.from_bytes(data[start + size : start + 2 * size], "big")
    if register is not None:
        # 64 bits that hold two tests.
        low = REG[2 * register + 1]
        return _keep(found, rank, start, 4, mask >> 32, field) and _keep(
            found, rank + 1, start + 4, 4, mask & 0xFFFFFFFF, low
        )
    return _keep(found, rank, start, size, mask, field)


def _keep(
    found: dict[int, Slot], rank: int, start: int, size: int, mask: int, field: Field
) -> bool:
    if mask:
        if rank in found:
            return False
        exact = mask == field.full_mask
        found[rank] = Slot(rank, start, size, mask, field, None if exact else mask)
    return True


def get_tests(
    data: bytes, start: int, stop: int, place: str, *, lenient: bool = False
) -> tuple[Test, ...]:
    """The TLVs between `start` and `stop` as tests in canonical order; raises as `get_slots`."""
    return tuple(
        [
            (field, int.from_bytes(data[at : at + size], "big") & kept, mask)
            for _, at, size, kept, field, mask in get_slots(
                data, start, stop, place, lenient=lenient
            )
        ]
    )
