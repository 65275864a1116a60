"""What have groups and meters counted? Replies to GROUP_STATS and METER_STATS requests.

Malformed is the only thing raised, whatever the bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from controller.act.dataplane.openflow.frame import BODY, Reply, entry_end, multipart
from controller.act.dataplane.openflow.wire import (
    GROUP_COUNTERS,
    METER_COUNTERS,
    MP_GROUP_STATS,
    MP_METER_STATS,
    Malformed,
)

_PART = struct.Struct(">QQ")


class Counted(NamedTuple):
    """What a group or meter has counted in `seconds`: `users` entries or groups lead to it;
    `parts` are packets and bytes that each bucket sent on, or each band dropped."""

    id: int
    users: int
    packets: int
    bytes: int
    seconds: float
    parts: tuple[tuple[int, int], ...]


def group_stats(data: bytes) -> Reply[Counted]:
    """One message of the reply to a GROUP_STATS request."""
    return _stats(data, MP_GROUP_STATS, "group statistics", GROUP_COUNTERS, 0)


def meter_stats(data: bytes) -> Reply[Counted]:
    """One message of the reply to a METER_STATS request."""
    return _stats(data, MP_METER_STATS, "meter statistics", METER_COUNTERS, 4)


def _stats(data: bytes, kind: int, what: str, head: struct.Struct, before: int) -> Reply[Counted]:
    xid, more = multipart(data, kind, what)
    found: list[Counted] = []
    at = BODY
    while at < len(data):
        end = entry_end(data, at, head.size, what, len(found), before)
        start = at + head.size
        if (end - start) % _PART.size:
            raise Malformed(f"{what} {len(found)}", f"{end - start} bytes of parts of 16 each")
        # The id comes before the length, or after.
        words = head.unpack_from(data, at)
        number = words[0] if before else words[1]
        users, packets, octets, seconds, nanoseconds = words[2:]
        parts = tuple(_PART.iter_unpack(data[start:end]))
        found.append(Counted(number, users, packets, octets, seconds + nanoseconds / 1e9, parts))
        at = end
    return Reply(xid, found, more)
