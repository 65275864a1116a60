"""What is around what a switch says: headers, parts of multipart replies, lengths of entries.

Malformed is the only thing raised, whatever the bytes.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from controller.act.dataplane.openflow.wire import (
    HEADER,
    HEADER_SIZE,
    MP_MORE,
    MULTIPART,
    MULTIPART_REPLY,
    VERSION,
    Header,
    Malformed,
)

T = TypeVar("T")

#: Where the first entry of a multipart reply begins.
BODY = HEADER_SIZE + MULTIPART.size


class Reply(NamedTuple, Generic[T]):
    """One message of a multipart reply; `more` are to come under the same `xid`."""

    xid: int
    items: list[T]
    more: bool


def header(data: bytes) -> Header:
    """The header of a message, or of the stretch of a stream that begins with one: of any
    version, `length` being at least 8 but perhaps more than there is yet."""
    if len(data) < HEADER_SIZE:
        raise Malformed("header", f"{len(data)} bytes, {HEADER_SIZE} are needed")
    found = Header(*HEADER.unpack_from(data))
    if found.length < HEADER_SIZE:
        raise Malformed("header", f"length {found.length} is less than the header's own")
    return found


def opened(data: bytes, kind: int, place: str, least: int) -> Header:
    """The header of one whole message of `kind` with at least `least` bytes of body."""
    found = header(data)
    if found.version != VERSION or found.type != kind:
        raise Malformed(place, f"version {found.version}, type {found.type} instead of {kind}")
    if found.length != len(data):
        raise Malformed(place, f"claims {found.length} bytes and has {len(data)}")
    if len(data) < HEADER_SIZE + least:
        raise Malformed(place, f"body of {len(data) - HEADER_SIZE} bytes, {least} are needed")
    return found


def multipart(data: bytes, kind: int, place: str) -> tuple[int, bool]:
    """Transaction id of a part of a reply of `kind`, and whether more are to come."""
    head = opened(data, MULTIPART_REPLY, place, MULTIPART.size)
    found, flags = MULTIPART.unpack_from(data, HEADER_SIZE)
    if found != kind:
        raise Malformed(place, f"multipart type {found} instead of {kind}")
    return head.xid, bool(flags & MP_MORE)


def entry_end(data: bytes, at: int, least: int, what: str, number: int, before: int = 0) -> int:
    """Where the entry at `at` ends, whose length stands in its first two bytes but `before`; it
    is `what` number `number` of the message."""
    left = len(data) - at
    if left < least:
        raise Malformed(f"{what} {number}", f"{left} bytes left, {least} are needed")
    length = data[at + before] << 8 | data[at + before + 1]
    if length < least or length > left:
        raise Malformed(f"{what} {number}", f"claims {length} bytes, {left} are left")
    return at + length
