"""One flow entry, from the bytes in which a switch describes it.

It comes out in the canonical form in which we make entries, so that what a switch reports after
it took an entry equals that entry; what we could never have sent comes out as an alien.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from controller.act.dataplane.openflow.actions import get_instructions
from controller.act.dataplane.openflow.aliens import AlienFlow
from controller.act.dataplane.openflow.oxm import Unknown, get_tests, raw_match
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.openflow.wire import FLOW_DESC, Malformed

_STATISTICS = struct.Struct(">HH")
_WORD = struct.Struct(">I")
_COUNT = struct.Struct(">Q")
#: OXS headers (class 0x8002) of what is read: OpenFlow 1.5.1, 7.2.4.2.
DURATION, PACKETS, BYTES = 0x80020008, 0x80020808, 0x80020A08


class Installed(NamedTuple):
    """An entry that a switch has, with its counters since `seconds` ago."""

    flow: Flow | AlienFlow
    packets: int
    bytes: int
    seconds: float
    flags: int


class Statistics(NamedTuple):
    """The `ofp_stats` of an entry: where each value begins, by its OXS header, of which the
    low byte is the value's size; and where the padding ends."""

    places: dict[int, int]
    end: int


def installed(data: bytes, at: int, end: int, place: str) -> Installed:
    """The entry between `at` and `end`, which are as far apart as its length says and at least
    `FLOW_DESC.size`. Malformed, with `place`, where it cannot be read."""
    _, table, priority, idle, hard, flags, importance, cookie = FLOW_DESC.unpack_from(data, at)
    start = at + FLOW_DESC.size
    stop, counters = raw_match(data, start, end, place)
    places, instructions = statistics(data, counters, end, place)
    tests = None
    try:
        tests = get_tests(data, start + 4, stop, place)
        actions, goto = get_instructions(data, instructions, end, place)
        if idle or hard or importance:
            raise Unknown(f"timeouts {idle} s idle, {hard} s hard, importance {importance}")
        flow: Flow | AlienFlow = Flow(table, priority, tests, actions, goto, cookie)
    except Unknown as strange:
        flow = AlienFlow(
            table, priority, tests, data[start:counters], data[instructions:end], cookie,
            str(strange),
        )  # fmt: skip
    packets, octets, duration = [
        _COUNT.unpack_from(data, places[word])[0] if word in places else 0
        for word in (PACKETS, BYTES, DURATION)
    ]
    return Installed(flow, packets, octets, seconds([duration])[0], flags)


def seconds(durations: Iterable[int]) -> list[float]:
    """Seconds of OXS durations, of which each is 32 bits of seconds and 32 of nanoseconds."""
    return [(whole >> 32) + (whole & 0xFFFFFFFF) / 1e9 for whole in durations]


def statistics(data: bytes, at: int, end: int, place: str) -> Statistics:
    """The `ofp_stats` at `at`; Malformed, with `place`, where it goes beyond `end`."""
    if end - at < 4:
        raise Malformed(place, "ends before its statistics")
    length = _STATISTICS.unpack_from(data, at)[1]
    stop = at + length
    padded = at + (length + 7) // 8 * 8
    if length < 4 or padded > end:
        raise Malformed(place, f"statistics claim {length} bytes, {end - at} are left")
    at += 4
    places: dict[int, int] = {}
    while at < stop:
        if stop - at < 4:
            raise Malformed(place, f"{stop - at} bytes left where a statistic begins")
        word: int = _WORD.unpack_from(data, at)[0]
        places[word] = at + 4
        at += 4 + (word & 0xFF)
        if at > stop:
            raise Malformed(place, f"statistic {word:#010x} is longer than what is left")
    return Statistics(places, padded)
