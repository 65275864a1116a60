"""Packets that were copied for alerts, kept as pcap files."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from controller.store import schema
from controller.store.transaction import Transaction

#: Bytes of each packet that are kept: the headers, and what an application says first.
SNAP = 256
#: Magic of microseconds, version 2.4, Ethernet (draft-ietf-opsawg-pcap).
_FILE = struct.Struct("<IHHiIII")
_HEADER = _FILE.pack(0xA1B2C3D4, 2, 4, 0, 0, SNAP, 1)
_PACKET = struct.Struct("<IIII")
_TABLE = schema.packet_sample


@dataclass(frozen=True, slots=True)
class Sample:
    """What was copied for an alert: `count` packets, until `at` (Unix seconds)."""

    at: float
    count: int
    pcap: bytes


def put(tx: Transaction, alert: int, at: float, packets: Iterable[tuple[float, bytes]]) -> None:
    """Keep packets, each with its time (Unix seconds), in the place of what was kept for the
    alert, and have them told with its evidence; nothing where there is no such alert any more."""
    known = select(schema.alert.c.id).where(schema.alert.c.id == alert)
    if tx.read(known).first() is None:
        return
    cut = list(packets)
    tx.write(delete(_TABLE).where(_TABLE.c.alert == alert))
    row = {"alert": alert, "at": at, "count": len(cut), "pcap": pcap(cut)}
    tx.write(insert(_TABLE).values(**row))
    evidence = schema.investigation
    tx.write(update(evidence).where(evidence.c.alert == alert).values(due_at=at))


def get(connection: Connection, alert: int) -> Sample | None:
    """What was copied for an alert."""
    query = select(_TABLE.c.at, _TABLE.c.count, _TABLE.c.pcap).where(_TABLE.c.alert == alert)
    row = connection.execute(query).first()
    return None if row is None else Sample(**row._mapping)


def pcap(packets: Iterable[tuple[float, bytes]]) -> bytes:
    """A file of Ethernet frames, each with its time (Unix seconds)."""
    parts = [_HEADER]
    for at, data in packets:
        micros = round(at * 1e6)
        kept = data[:SNAP]
        parts.append(_PACKET.pack(micros // 1_000_000, micros % 1_000_000, len(kept), len(data)))
        parts.append(kept)
    return b"".join(parts)
