"""The frame of OpenFlow 1.5 messages: the header, numbers of types, and what may be wrong.

Numbers and layouts are those of OpenFlow 1.5.1 (ONF TS-025), section 7.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

VERSION = 0x06
HEADER = struct.Struct(">BBHI")
HEADER_SIZE = HEADER.size
#: The length field of the header has 16 bits.
MAX_MESSAGE = 0xFFFF

HELLO = 0
ERROR = 1
ECHO_REQUEST = 2
ECHO_REPLY = 3
EXPERIMENTER = 4
FEATURES_REQUEST = 5
FEATURES_REPLY = 6
GET_CONFIG_REQUEST = 7
GET_CONFIG_REPLY = 8
SET_CONFIG = 9
PACKET_IN = 10
FLOW_REMOVED = 11
PORT_STATUS = 12
PACKET_OUT = 13
FLOW_MOD = 14
GROUP_MOD = 15
MULTIPART_REQUEST = 18
MULTIPART_REPLY = 19
BARRIER_REQUEST = 20
BARRIER_REPLY = 21
METER_MOD = 29
BUNDLE_CONTROL = 33
BUNDLE_ADD = 34

#: Multipart types. FLOW_DESC kept the number 1 that FLOW had before 1.5.
MP_FLOW_DESC = 1
MP_GROUP_STATS = 6
MP_GROUP_DESC = 7
MP_METER_STATS = 9
MP_METER_DESC = 10
MP_PORT_DESC = 13
MP_MORE = 0x0001

ANY = 0xFFFFFFFF
ALL_GROUPS = 0xFFFFFFFC
ALL_METERS = 0xFFFFFFFF
ALL_TABLES = 0xFF

#: Open vSwitch's own messages, actions and fields come under this vendor.
NICIRA = 0x2320
CT_FLUSH_ZONE = 29

INSTRUCTION_GOTO = 1
INSTRUCTION_APPLY = 4

BUCKET_WEIGHT = 0
BUCKET_WATCH_PORT = 1
BUCKET_WATCH_GROUP = 2
EXPERIMENTER_PROPERTY = 0xFFFF
#: Selection method of a group (Open vSwitch, openflow/netronome-ext.h).
NTR_VENDOR = 0x154D
NTR_SELECTION_METHOD = 1
SELECTION_METHOD = struct.Struct(">HHIIxxxx16sQ")

METER_KBPS = 0x1
METER_PKTPS = 0x2
METER_BURST = 0x4
METER_STATS = 0x8
BAND_DROP = 1
BAND = struct.Struct(">HHIIxxxx")

MULTIPART = struct.Struct(">HHxxxx")
BUNDLE = struct.Struct(">IHH")
FLOW_DESC = struct.Struct(">HxxBxHHHHHQ")
GROUP_DESC = struct.Struct(">HBxIHxxxxxx")
METER_DESC = struct.Struct(">HHI")
GROUP_COUNTERS = struct.Struct(">HxxIIxxxxQQII")
METER_COUNTERS = struct.Struct(">IHxxxxxxIQQII")
BUCKET = struct.Struct(">HHI")
PROPERTY = struct.Struct(">HH")
PACKET_IN_BODY = struct.Struct(">IHBBQ")


class Malformed(ValueError):  # noqa: N818 - it names what the bytes are
    """Bytes that are no OpenFlow 1.5: `place` says which part of what, `cause` why not."""

    def __init__(self, place: str, cause: str) -> None:
        super().__init__(f"{place}: {cause}")
        self.place = place
        self.cause = cause


class Header(NamedTuple):
    """The first eight bytes of a message; `length` counts them too."""

    version: int
    type: int
    length: int
    xid: int


def message(kind: int, xid: int, body: bytes) -> bytes:
    """Header and body. ValueError where the length does not fit into its 16 bits."""
    length = HEADER_SIZE + len(body)
    if length > MAX_MESSAGE:
        raise ValueError(
            f"OpenFlow message of type {kind}, xid {xid:#x}: {length} bytes, but one message "
            f"holds at most {MAX_MESSAGE}; split what it carries"
        )
    return HEADER.pack(VERSION, kind, length, xid) + body


def fitting(length: int, what: str, number: int | None = None) -> int:
    """`length` if a 16-bit length field holds it, ValueError naming `what` (and its `number`) if
    not."""
    if length > MAX_MESSAGE:
        named = what if number is None else f"{what} {number}"
        raise ValueError(f"{named}: {length} bytes, at most {MAX_MESSAGE} fit into one message")
    return length


def padding(length: int) -> bytes:
    """Zeros up to the next multiple of 8."""
    return bytes(-length % 8)
