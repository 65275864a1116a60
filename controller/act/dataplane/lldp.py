"""Which port is at the other end of a link? Frames of LLDP (IEEE 802.1AB) that one switch
sends for the controller and another hands back to it.

A frame tells when it was sent, so that it also measures how long it was under way. A signature
says that it is the controller's own, so that a VM cannot invent a link. It cannot tell a fresh
copy from the original: frames must not be sent out of the ports of VMs, nor believed where they
come in by one.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b
from typing import NamedTuple

from controller.act.dataplane.pipeline import LLDP

#: Nearest bridge: no bridge that follows the standard forwards it.
DESTINATION = bytes.fromhex("0180c200000e")
MAX_PORT = 0xFFFFFEFF

_ETHERNET = struct.Struct("!6s6sH")
_END, _CHASSIS, _PORT, _TTL, _SYSTEM_NAME, _ORGANISATION = 0, 1, 2, 3, 5, 127
#: Subtype of a chassis id and of a port id that only its owner can read.
_LOCAL = b"\7"
_NAME = b"pleach"
#: A locally administered OUI with "PL" in it, and our subtype.
_SIGNATURE = b"\x02PL\x02"
_STAMP = struct.Struct("!Q")
_PURPOSE = b"pleach lldp\0"
_DIGEST_BYTES = 16


class Frame(NamedTuple):
    """What a frame says: where it was sent from, and when (ns of the sender's clock)."""

    datapath: str
    port: int
    sent_ns: int


def build(datapath: str, port: int, secret: bytes, *, ttl_s: int, sent_ns: int = 0) -> bytes:
    """The frame to send out of `port` of `datapath` (16 hex digits), to be believed for
    `ttl_s` seconds (1 to 65535). Raises ValueError where one of them is out of its range.
    """
    place = _place(datapath, port)
    if place is None:
        raise ValueError(
            f"no LLDP for datapath {datapath!r}, port {port}: give 16 lower-case hex digits "
            f"and a port from 1 to {MAX_PORT}"
        )
    if not 0 < ttl_s < 1 << 16:
        raise ValueError(f"an LLDP frame cannot live {ttl_s} s: give 1 to 65535")
    hashed = bytearray(blake2b(place, digest_size=6).digest())
    # Unicast, locally administered.
    hashed[0] = hashed[0] & 0xFC | 0x02
    stamp = _STAMP.pack(sent_ns)
    return (
        _ETHERNET.pack(DESTINATION, hashed, LLDP)
        + _tlv(_CHASSIS, _LOCAL + datapath.encode())
        + _tlv(_PORT, _LOCAL + str(port).encode())
        + _tlv(_TTL, struct.pack("!H", ttl_s))
        + _tlv(_SYSTEM_NAME, _NAME)
        + _tlv(_ORGANISATION, _SIGNATURE + stamp + _digest(place + stamp, secret))
        + _tlv(_END, b"")
    )


def parse(frame: bytes, secret: bytes) -> Frame | None:
    """What a frame says, or None where `build` did not build it with this secret. Compares
    signatures in constant time; never raises on `frame`."""
    if frame[:6] != DESTINATION or frame[12:14] != LLDP.to_bytes(2, "big"):
        return None
    tlvs = _tlvs(frame)
    if tlvs is None:
        return None
    kinds, values = zip(*tlvs, strict=True)
    if kinds != (_CHASSIS, _PORT, _TTL, _SYSTEM_NAME, _ORGANISATION, _END):
        return None
    chassis, local, _, name, signed, _ = values
    if chassis[:1] != _LOCAL or local[:1] != _LOCAL or name != _NAME:
        return None
    datapath, port = chassis[1:].decode("latin-1"), _decimal(local[1:])
    place = None if port is None else _place(datapath, port)
    if place is None or port is None:
        return None
    stamp = signed[len(_SIGNATURE) : len(_SIGNATURE) + _STAMP.size]
    if not hmac.compare_digest(signed, _SIGNATURE + stamp + _digest(place + stamp, secret)):
        return None
    return Frame(datapath, port, *_STAMP.unpack(stamp))


def _place(datapath: str, port: int) -> bytes | None:
    """What is signed, before the time: 8 bytes of datapath id and 4 of port number."""
    if len(datapath) != 16 or not set(datapath) <= set("0123456789abcdef"):
        return None
    if not 0 < port <= MAX_PORT:
        return None
    return struct.pack("!QI", int(datapath, 16), port)


def _digest(signed: bytes, secret: bytes) -> bytes:
    """HMAC-SHA256 cut to half its length, as RFC 2104, 5 allows."""
    return hmac.digest(secret, _PURPOSE + signed, "sha256")[:_DIGEST_BYTES]


def _decimal(text: bytes) -> int | None:
    """The number that `build` wrote so: no sign, no leading zero."""
    if not text.isdigit():
        return None
    number = int(text)
    return number if str(number).encode() == text else None


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!H", kind << 9 | len(value)) + value


def _tlvs(frame: bytes) -> list[tuple[int, bytes]] | None:
    """Types and values up to the end mark and with it, or None where one is not wholly there.
    What follows the mark is padding."""
    found: list[tuple[int, bytes]] = []
    at = _ETHERNET.size
    while at + 2 <= len(frame):
        head = int.from_bytes(frame[at : at + 2], "big")
        kind, end = head >> 9, at + 2 + (head & 0x1FF)
        if end > len(frame):
            return None
        found.append((kind, frame[at + 2 : end]))
        if kind == _END:
            return found
        at = end
    return None
