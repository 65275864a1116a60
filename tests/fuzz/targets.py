"""What is fuzzed: functions of bytes that raise AssertionError, or anything but Malformed, where
they are wrong; and sound bytes to begin with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from controller.act.dataplane import lldp
from controller.act.dataplane.channel import Channel
from controller.act.dataplane.compiler import Desired, key_of
from controller.act.dataplane.openflow import counters, decode, wire
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.flow_entry import installed
from controller.act.dataplane.openflow.flow_replies import Layouts, flow_descs, flow_entries
from controller.act.dataplane.openflow.frame import BODY, entry_end, multipart
from controller.act.dataplane.openflow.records import Flow, Output, match
from tests.unit.test_answers_hostile import SEEDS, check

SECRET = b"s" * 32
_REPLIES: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "unit" / "data" / "openflow15_ovs31.json").read_text()
)
#: Shortened: what a switch says at once may be 64 KiB, most of which is the same again.
MESSAGES = tuple(bytes.fromhex(text)[:4_000] for replies in _REPLIES.values() for text in replies)
DATAPATH, PORT = "00000000000000ab", 7
FRAMES = (*SEEDS, lldp.build(DATAPATH, PORT, SECRET, ttl_s=20))

#: As a session has them: what one message teaches is used for the next.
_layouts = Layouts()


def messages(data: bytes) -> None:
    """A message of a switch, read by whatever can read its kind."""
    with suppress(wire.Malformed):
        decode.header(data)
    for read in (decode.error, decode.bundle_reply, decode.packet_in):
        with suppress(wire.Malformed):
            read(data)
    for describe in (
        decode.group_descs, decode.meter_descs, counters.group_stats, counters.meter_stats
    ):  # fmt: skip
        with suppress(wire.Malformed):
            assert len(describe(data).items) <= len(data) // 8
    assert _by_layouts(data) == _one_by_one(data)
    with suppress(wire.Malformed):
        flow_entries(data, {}, _layouts)


def _by_layouts(data: bytes) -> object:
    try:
        return flow_descs(data, _layouts).items
    except wire.Malformed as cause:
        return str(cause)


def _one_by_one(data: bytes) -> object:
    found = []
    try:
        multipart(data, wire.MP_FLOW_DESC, "flow descriptions")
        at = BODY
        while at < len(data):
            number = len(found)
            end = entry_end(data, at, wire.FLOW_DESC.size, "flow description", number)
            found.append(installed(data, at, end, f"flow description {number}"))
            at = end
    except wire.Malformed as cause:
        return str(cause)
    return found


def conversations(data: bytes) -> None:
    """A stream of a switch that is being read from and changed: the channel may refuse it, or
    believe it, but goes on."""
    flows = [Flow(0, 1, match((f.IN_PORT, n)), (Output(n),), cookie=n) for n in range(3)]
    channel = Channel(Desired({}, {key_of(flow): flow for flow in flows}), 1)
    asked = channel.read(0.0)
    xids = [int.from_bytes(asked[at + 4 : at + 8], "big") for at in _starts(asked)]
    with suppress(wire.Malformed):
        for number, at in enumerate(_starts(data)):
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            # Answers are believed only if somebody asked.
            xid = xids[number % len(xids)] + data[at + 7] // 128 * 2
            message = data[at : at + 4] + xid.to_bytes(4, "big") + data[at + 8 : at + length]
            channel.received(message[1], message, 1.0)
            for _ in channel.batch(2.0):
                pass
    assert channel.pending <= len(data) + len(flows)
    assert channel.confirmed <= 1


def _starts(data: bytes) -> list[int]:
    starts, at = [], 0
    while at + wire.HEADER_SIZE <= len(data):
        starts.append(at)
        at += max(wire.HEADER_SIZE, int.from_bytes(data[at + 2 : at + 4], "big"))
    return starts


def frames(data: bytes) -> None:
    """A frame of a guest: DHCP, neighbour discovery, what ICMP tells of, and LLDP."""
    check(data)
    # Whatever is believed was signed.
    assert lldp.parse(data, SECRET) in (None, lldp.Frame(DATAPATH, PORT, 0))


@dataclass(frozen=True, slots=True)
class Target:
    """A function of bytes, sound bytes for it, and how to make their frame whole again."""

    try_out: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    mend: Callable[[bytes], bytes] = bytes


def _whole(data: bytes) -> bytes:
    """With the length that it has, so that it gets past the first look."""
    return data[:2] + len(data).to_bytes(2, "big") + data[4:] if len(data) >= 8 else data


TARGETS = {
    "messages": Target(messages, MESSAGES, _whole),
    "conversations": Target(conversations, tuple(a + b for a in MESSAGES for b in MESSAGES)),
    "frames": Target(frames, FRAMES),
}


def spoilt(target: Target, dice: Random) -> bytes:
    """One of the seeds, with some damage."""
    data = bytearray(dice.choice(target.seeds))
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at : at + 1] = dice.randbytes(1)
            case 1:
                data[at : at + 2] = dice.choice((b"\0\0", b"\xff\xff", b"\0\1", b"\0\x08"))
            case 2:
                del data[at : at + dice.choice((1, 2, 4, 8, 16))]
            case 3:
                data[at:at] = data[at : at + dice.choice((4, 8, 24, 64))]
            case 4:
                other = dice.choice(target.seeds)
                data[at:] = other[dice.randrange(len(other)) :]
    found = bytes(data[:8_000])
    return target.mend(found) if dice.random() < 0.8 else found
