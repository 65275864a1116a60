"""Actions and instructions as bytes, both ways.

Standard ones by OpenFlow 1.5.1, 7.2.6; Open vSwitch's own (vendor 0x2320) by the structures in
its lib/ofp-actions.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

from controller.act.dataplane.openflow.fields import ALL, Field
from controller.act.dataplane.openflow.learning import LEARN2, get_learn, put_learn
from controller.act.dataplane.openflow.oxm import (
    FIELD_OF,
    HEADER_OF,
    Unknown,
    get_tests,
    tlv,
)
from controller.act.dataplane.openflow.records import (
    CONTROLLER,
    Act,
    Clone,
    Conjunction,
    Ct,
    CtClear,
    DecTtl,
    Learn,
    Move,
    Output,
    OutputField,
    PopMpls,
    PushMpls,
    Resubmit,
    SetField,
    ToGroup,
    ToMeter,
    by_columns,
)
from controller.act.dataplane.openflow.wire import (
    INSTRUCTION_APPLY,
    INSTRUCTION_GOTO,
    NICIRA,
    Malformed,
    fitting,
)

OUTPUT, PUSH_MPLS, POP_MPLS, GROUP = 0, 19, 20, 22
DEC_TTL, SET_FIELD, COPY_FIELD, METER, VENDOR_ACTION = 24, 25, 28, 29, 0xFFFF
RESUBMIT_TABLE, OUTPUT_REG2, CONJUNCTION, CT, CLONE, CT_CLEAR = 14, 32, 34, 35, 42, 43

#: OFPP_IN_PORT in 16 bits: look up with the port that the packet came in by.
_SAME_PORT = 0xFFF8
_CT_COMMIT = 0x1
_CT_STAY = 0xFF
#: Bits 0..15 of a field, as Open vSwitch packs offset and width: (offset << 6) | (width - 1).
_LOW_16_BITS = 15
_MAX_LEN = 0xFFFF
#: A clone in a clone is at most this deep; Open vSwitch itself gives up at 64 resubmits.
_MAX_DEPTH = 16

_HEAD = struct.Struct(">HH")
_OUTPUT = struct.Struct(">HHIHxxxxxx")
_WORD = struct.Struct(">HHI")
_HALF = struct.Struct(">HHHxx")
_COPY = struct.Struct(">HHHHHxx")
_VENDOR = struct.Struct(">HHIHxxxxxx")
_CT = struct.Struct(">HHIHHIHBxxxH")
_RESUBMIT = struct.Struct(">HHIHHBxxx")
_CONJUNCTION = struct.Struct(">HHIHBBI")
_OUTPUT_REG2 = struct.Struct(">HHIHHH4sxxxxxx")
_INSTRUCTION = struct.Struct(">HHxxxx")
_GOTO = struct.Struct(">HHBxxx")

_DEC_TTL = _WORD.pack(DEC_TTL, 8, 0)
_CT_CLEAR = _VENDOR.pack(VENDOR_ACTION, 16, NICIRA, CT_CLEAR)


# --- to bytes -------------------------------------------------------------------------------


def _put_output(act: Output) -> bytes:
    return _OUTPUT.pack(OUTPUT, 16, act.port, act.max_len if act.port == CONTROLLER else 0)


def _put_output_field(act: OutputField) -> bytes:
    return _OUTPUT_REG2.pack(
        VENDOR_ACTION, 24, NICIRA, OUTPUT_REG2, act.field.bits - 1, _MAX_LEN,
        HEADER_OF[act.field.name],
    )  # fmt: skip


def _put_group(act: ToGroup) -> bytes:
    return _WORD.pack(GROUP, 8, act.group)


def _put_meter(act: ToMeter) -> bytes:
    return _WORD.pack(METER, 8, act.meter)


def _set_field_frame(field: Field) -> tuple[bytes, int, bytes]:
    """What is before the value where all of a field is set, its size, and what is after."""
    length = (8 + field.size + 7) // 8 * 8
    before = _HEAD.pack(SET_FIELD, length) + HEADER_OF[field.name]
    return before, field.size, bytes(length - 8 - field.size)


_SET_FIELD = {field.name: _set_field_frame(field) for field in ALL}


_SET_WHOLE = {HEADER_OF[field.name]: (field, field.size, field.full_mask) for field in ALL}


def _put_set_field(act: SetField) -> bytes:
    if act.mask is None:
        before, size, after = _SET_FIELD[act.field.name]
        return before + act.value.to_bytes(size, "big") + after
    body = tlv(act.field, act.value, act.mask)
    length = (4 + len(body) + 7) // 8 * 8
    return (_HEAD.pack(SET_FIELD, length) + body).ljust(length, b"\0")


def _put_move(act: Move) -> bytes:
    return (
        _COPY.pack(COPY_FIELD, 24, act.bits, act.source_offset, act.target_offset)
        + HEADER_OF[act.source.name]
        + HEADER_OF[act.target.name]
        + b"\0\0\0\0"
    )


def _put_push(act: PushMpls) -> bytes:
    return _HALF.pack(PUSH_MPLS, 8, act.ethertype)


def _put_pop(act: PopMpls) -> bytes:
    return _HALF.pack(POP_MPLS, 8, act.ethertype)


def _put_dec_ttl(act: DecTtl) -> bytes:
    return _DEC_TTL


def _put_ct(act: Ct) -> bytes:
    if isinstance(act.zone, int):
        source, zone = 0, act.zone
    else:
        source, zone = int.from_bytes(HEADER_OF[act.zone.name], "big"), _LOW_16_BITS
    sets = put_actions(act.sets)
    head = _CT.pack(
        VENDOR_ACTION, 24 + len(sets), NICIRA, CT, _CT_COMMIT if act.commit else 0, source, zone,
        _CT_STAY if act.table is None else act.table, 0,
    )  # fmt: skip
    return head + sets


def _put_ct_clear(act: CtClear) -> bytes:
    return _CT_CLEAR


def _put_resubmit(act: Resubmit) -> bytes:
    return _RESUBMIT.pack(VENDOR_ACTION, 16, NICIRA, RESUBMIT_TABLE, _SAME_PORT, act.table)


def _put_clone(act: Clone) -> bytes:
    body = put_actions(act.actions)
    length = fitting(16 + len(body), "actions of a clone")
    return _VENDOR.pack(VENDOR_ACTION, length, NICIRA, CLONE) + body


def _put_conjunction(act: Conjunction) -> bytes:
    return _CONJUNCTION.pack(
        VENDOR_ACTION, 16, NICIRA, CONJUNCTION, act.clause, act.clauses, act.id
    )


_PUT: dict[type, Callable[[Any], bytes]] = {
    Output: _put_output,
    OutputField: _put_output_field,
    ToGroup: _put_group,
    ToMeter: _put_meter,
    SetField: _put_set_field,
    Move: _put_move,
    PushMpls: _put_push,
    PopMpls: _put_pop,
    DecTtl: _put_dec_ttl,
    Ct: _put_ct,
    CtClear: _put_ct_clear,
    Resubmit: _put_resubmit,
    Learn: put_learn,
    Clone: _put_clone,
    Conjunction: _put_conjunction,
}


def put_actions(actions: tuple[Act, ...]) -> bytes:
    """A list of actions, without an instruction around it."""
    return b"".join([_PUT[type(act)](act) for act in actions])


def put_instructions(actions: tuple[Act, ...], goto: int | None) -> bytes:
    """Apply-Actions and Goto-Table, each only where there is something to say."""
    out = b""
    if actions:
        body = put_actions(actions)
        out = _INSTRUCTION.pack(INSTRUCTION_APPLY, fitting(8 + len(body), "actions")) + body
    if goto is not None:
        out += _GOTO.pack(INSTRUCTION_GOTO, 8, goto)
    return out


# --- from bytes -----------------------------------------------------------------------------


def _need(length: int, least: int, name: str, place: str) -> None:
    if length < least:
        raise Malformed(place, f"{name} of {length} bytes, at least {least} are needed")


def _sized(length: int, exact: int, name: str, place: str) -> None:
    if length != exact:
        raise Malformed(place, f"{name} of {length} bytes instead of {exact}")


def _get_output(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 16, "output", place)
    _, _, port, max_len = _OUTPUT.unpack_from(data, at)
    return _output(port, max_len)


def _output(port: int, max_len: int) -> Output:
    return Output(port, max_len) if port == CONTROLLER else Output(port)


def _get_group(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 8, "group", place)
    return ToGroup(_WORD.unpack_from(data, at)[2])


def _get_meter(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 8, "meter", place)
    return ToMeter(_WORD.unpack_from(data, at)[2])


def _get_push(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 8, "push_mpls", place)
    return PushMpls(_HALF.unpack_from(data, at)[2])


def _get_pop(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 8, "pop_mpls", place)
    return PopMpls(_HALF.unpack_from(data, at)[2])


def _get_dec_ttl(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 8, "dec_nw_ttl", place)
    return DecTtl()


def _get_set_field(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _need(length, 8, "set_field", place)
    whole = _SET_WHOLE.get(data[at + 4 : at + 8])
    if whole is not None and whole[1] <= length - 8:
        field, size, full = whole
        return SetField(field, int.from_bytes(data[at + 8 : at + 8 + size], "big") & full)
    inner = f"{place}, set_field"
    end = at + 8 + data[at + 7]
    if end > at + length:
        raise Malformed(inner, f"field of {data[at + 7]} bytes in an action of {length}")
    tests = get_tests(data, at + 4, end, inner)
    if len(tests) != 1:
        raise Unknown(f"set_field of {len(tests)} fields")
    return SetField(*tests[0])


def _get_move(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _need(length, 24, "copy_field", place)
    _, _, bits, source_offset, target_offset = _COPY.unpack_from(data, at)
    source = FIELD_OF.get(int.from_bytes(data[at + 12 : at + 16], "big"))
    target = FIELD_OF.get(int.from_bytes(data[at + 16 : at + 20], "big"))
    if source is None or target is None:
        raise Unknown("copy_field of a field that is none of ours")
    return Move(source, target, bits, source_offset, target_offset)


def _get_vendor(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _need(length, 16, "experimenter action", place)
    vendor, subtype = struct.unpack_from(">IH", data, at + 4)
    getter = _GET_NICIRA.get(subtype)
    if vendor != NICIRA or getter is None:
        raise Unknown(f"action {subtype} of experimenter {vendor:#x}")
    return getter(data, at, length, place, depth)


def _get_ct(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _need(length, 24, "ct", place)
    if depth >= _MAX_DEPTH:
        raise Malformed(place, f"actions nested deeper than {_MAX_DEPTH}")
    _, _, _, _, flags, source, zone, table, alg = _CT.unpack_from(data, at)
    if alg or flags & ~_CT_COMMIT:
        raise Unknown("ct with flags or a helper that we never use")
    sets = get_actions(data, at + 24, at + length, f"{place}, ct", depth + 1)
    if not all(isinstance(act, SetField) for act in sets):
        raise Unknown("ct with other nested actions than set_field")
    field: Any = zone
    if source:
        field = FIELD_OF.get(source)
        if field is None or zone != _LOW_16_BITS:
            raise Unknown("ct with a zone out of a field that is none of ours")
    return Ct(
        field,
        None if table == _CT_STAY else table,
        bool(flags & _CT_COMMIT),
        tuple(act for act in sets if isinstance(act, SetField)),
    )


def _get_ct_clear(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 16, "ct_clear", place)
    return CtClear()


def _get_resubmit(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 16, "resubmit", place)
    _, _, _, _, port, table = _RESUBMIT.unpack_from(data, at)
    if port != _SAME_PORT:
        raise Unknown(f"resubmit with port {port}")
    return Resubmit(table)


def _get_clone(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    if depth >= _MAX_DEPTH:
        raise Malformed(place, f"clones nested deeper than {_MAX_DEPTH}")
    return Clone(get_actions(data, at + 16, at + length, f"{place}, clone", depth + 1))


def _get_learn(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    return get_learn(data, at, length, place)


def _get_conjunction(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 16, "conjunction", place)
    _, _, _, _, clause, clauses, number = _CONJUNCTION.unpack_from(data, at)
    return Conjunction(number, clause, clauses)


def _get_output_field(data: bytes, at: int, length: int, place: str, depth: int) -> Act:
    _sized(length, 24, "output_reg2", place)
    _, _, _, _, span, max_len, word = _OUTPUT_REG2.unpack_from(data, at)
    field = FIELD_OF.get(int.from_bytes(word, "big"))
    if field is None or span != field.bits - 1 or max_len != _MAX_LEN:
        raise Unknown("output to a field, or bits of one, that we never use")
    return OutputField(field)


_Getter = Callable[[bytes, int, int, str, int], Act]
_GET: dict[int, _Getter] = {
    OUTPUT: _get_output,
    GROUP: _get_group,
    METER: _get_meter,
    PUSH_MPLS: _get_push,
    POP_MPLS: _get_pop,
    DEC_TTL: _get_dec_ttl,
    SET_FIELD: _get_set_field,
    COPY_FIELD: _get_move,
    VENDOR_ACTION: _get_vendor,
}
_GET_NICIRA: dict[int, _Getter] = {
    RESUBMIT_TABLE: _get_resubmit,
    OUTPUT_REG2: _get_output_field,
    CONJUNCTION: _get_conjunction,
    CT: _get_ct,
    CLONE: _get_clone,
    LEARN2: _get_learn,
    CT_CLEAR: _get_ct_clear,
}


def get_actions(data: bytes, at: int, end: int, place: str, depth: int = 0) -> tuple[Act, ...]:
    """The actions between `at` and `end`. Unknown for one that we never send, Malformed for
    one that cannot be read."""
    acts: list[Act] = []
    while at < end:
        if end - at < 8:
            raise Malformed(place, f"{end - at} bytes left where an action begins")
        kind, length = _HEAD.unpack_from(data, at)
        if length < 8 or length % 8 or at + length > end:
            raise Malformed(place, f"action {kind} claims {length} bytes, {end - at} are left")
        getter = _GET.get(kind)
        if getter is None:
            raise Unknown(f"action {kind}")
        acts.append(getter(data, at, length, place, depth))
        at += length
    return tuple(acts)


def get_instructions(
    data: bytes, at: int, end: int, place: str
) -> tuple[tuple[Act, ...], int | None]:
    """Actions applied and table gone on to. Unknown and Malformed as in `get_actions`."""
    actions: tuple[Act, ...] = ()
    goto: int | None = None
    while at < end:
        if end - at < 8:
            raise Malformed(place, f"{end - at} bytes left where an instruction begins")
        kind, length = _HEAD.unpack_from(data, at)
        if length < 8 or length % 8 or at + length > end:
            raise Malformed(place, f"instruction {kind} claims {length} bytes, {end - at} left")
        if kind == INSTRUCTION_APPLY:
            actions = get_actions(data, at + 8, at + length, place)
        elif kind == INSTRUCTION_GOTO:
            goto = data[at + 4]
        else:
            raise Unknown(f"instruction {kind}")
        at += length
    return actions, goto


# --- what differs between entries of one layout ---------------------------------------------


class Varying(NamedTuple):
    """How an action differs from entry to entry: `make` gives many of it, of columns of the
    values that stand at `places` of (offset from the action, bytes)."""

    make: Callable[..., Iterable[Act]]
    places: tuple[tuple[int, int], ...]


def _outputs(ports: Iterable[int], lengths: Iterable[int]) -> Iterable[Act]:
    return map(_output, ports, lengths)


def _conjunctions(clause: Iterable[int], of: Iterable[int], ids: Iterable[int]) -> Iterable[Act]:
    return by_columns(Conjunction, ids, clause, of)


_VARYING: dict[type, Varying] = {
    Output: Varying(_outputs, ((4, 4), (8, 2))),
    ToGroup: Varying(partial(by_columns, ToGroup), ((4, 4),)),
    ToMeter: Varying(partial(by_columns, ToMeter), ((4, 4),)),
    Conjunction: Varying(_conjunctions, ((10, 1), (11, 1), (12, 4))),
}


def varying(data: bytes, at: int, act: Act) -> Varying:
    """How the action at `at`, which was read as `act`, differs in entries that have all other
    bytes in common with this one: without places where it does not."""
    whole = _SET_WHOLE.get(data[at + 4 : at + 8]) if isinstance(act, SetField) else None
    if whole is None:
        return _VARYING.get(type(act), Varying(lambda: (), ()))
    field, size, full = whole

    def make(values: Iterable[int]) -> Iterable[Act]:
        kept = [value & full for value in values]
        return by_columns(SetField, repeat(field, len(kept)), kept, repeat(None))

    return Varying(make, ((8, size),))


def applied_at(data: bytes, at: int, end: int) -> list[int]:
    """Where the actions are that `get_instructions` gave of the same bytes."""
    found: list[int] = []
    while at < end:
        kind, length = _HEAD.unpack_from(data, at)
        if kind == INSTRUCTION_APPLY:
            found = []
            place = at + 8
            while place < at + length:
                found.append(place)
                place += _HEAD.unpack_from(data, place)[1]
        at += length
    return found
