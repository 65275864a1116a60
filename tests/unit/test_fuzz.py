"""What reads bytes of switches and guests, with spoilt bytes: the same ones in every run. Work and
what is kept are bounded by the length of what came in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from random import Random
from types import FrameType

import pytest

from controller.act.dataplane.openflow import decode, wire
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs
from tests.fuzz.targets import TARGETS, spoilt

ROUNDS = {"messages": 3_000, "conversations": 4_000, "frames": 4_000}


@pytest.mark.parametrize("name", TARGETS)
def test_sound_bytes_break_nothing(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].try_out(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_spoilt_bytes_break_nothing(name: str) -> None:
    target = TARGETS[name]
    for number in range(ROUNDS[name]):
        data = spoilt(target, Random(f"{name} {number}"))
        try:
            target.try_out(data)
        except Exception as error:
            raise AssertionError(f"broken by number {number}: {data.hex()}") from error


def multipart(kind: int, body: bytes) -> bytes:
    return wire.message(wire.MULTIPART_REPLY, 1, wire.MULTIPART.pack(kind, 0) + body)


def entry(match: bytes, instructions: bytes = b"", pad: int = 0) -> bytes:
    """A flow entry with so many bytes after the type and length of its match."""
    head = b"\0\1" + (4 + len(match)).to_bytes(2, "big")
    body = head + match + bytes(-(4 + len(match)) % 8) + bytes.fromhex("0000000400000000")
    body += instructions
    length = wire.FLOW_DESC.size + len(body)
    return wire.FLOW_DESC.pack(length, 0, pad, 0, 0, 0, 0, 0) + body


def applied(actions: bytes) -> bytes:
    return b"\0\4" + (8 + len(actions)).to_bytes(2, "big") + bytes(4) + actions


def nested(size: int) -> bytes:
    """Clones in clones, each with an action of its own."""
    body = b""
    while len(body) < size:
        body = b"\xff\xff" + (16 + len(body)).to_bytes(2, "big") + bytes.fromhex(
            "00002320" "002a000000000000"
        ) + body  # fmt: skip
    return body


def group(buckets: bytes) -> bytes:
    head = wire.GROUP_DESC.pack(wire.GROUP_DESC.size + len(buckets), 0, 1, len(buckets))
    return head + buckets


#: Messages of about so many bytes that make as much work as they can.
HARD: dict[str, Callable[[int], bytes]] = {
    "many tiny entries": lambda n: multipart(1, entry(b"") * (n // 40)),
    "entries of all layouts": lambda n: multipart(
        1, b"".join([entry(b"\x80\0\5\4" + k.to_bytes(4, "big")) for k in range(n // 48)])
    ),
    "fields that nobody knows": lambda n: multipart(1, entry(bytes.fromhex("ffff0000") * (n // 4))),
    "empty masks": lambda n: multipart(1, entry((b"\0\1\1\x08" + bytes(8)) * (n // 12))),
    "many actions": lambda n: multipart(
        1, entry(b"", applied(bytes.fromhex("0018000800000000") * (n // 8)))
    ),
    "many instructions": lambda n: multipart(
        1, entry(b"", bytes.fromhex("0001000801000000") * (n // 8))
    ),
    "clones in clones": lambda n: multipart(1, entry(b"", applied(nested(n)))),
    "many buckets": lambda n: multipart(7, group(bytes.fromhex("0008000000000000") * (n // 8))),
    "many properties": lambda n: multipart(
        7,
        group(
            (8 + n // 8 * 8).to_bytes(2, "big") + bytes(6)
            + bytes.fromhex("0000000800010000") * (n // 8)
        ),
    ),
    "many meters": lambda n: multipart(10, bytes.fromhex("0008000100000001") * (n // 8)),
    "a packet-in of fields": lambda n: wire.message(
        wire.PACKET_IN,
        0,
        bytes(16) + b"\0\1" + (4 + n // 12 * 12).to_bytes(2, "big")
        + (b"\0\1\1\x08" + bytes(8)) * (n // 12) + bytes(16),
    ),
}  # fmt: skip


def work(data: bytes) -> int:
    """How many functions are called to read a message, Python's own too."""
    calls = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    layouts = Layouts()
    sys.setprofile(count)
    try:
        for read in (
            lambda d: flow_descs(d, layouts), decode.group_descs, decode.meter_descs,
            decode.packet_in,
        ):  # fmt: skip
            with suppress(wire.Malformed):
                read(data)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", HARD)
def test_work_grows_with_the_length_and_no_faster(name: str) -> None:
    small, large = HARD[name](15_000), HARD[name](60_000)
    assert len(large) > 3.5 * len(small)
    assert work(large) <= 4.5 * work(small) + 2_000
    assert work(large) <= 3 * len(large)
