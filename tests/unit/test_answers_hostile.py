"""Frames that nobody should send: nothing raises, and what is answered is answered well.

Damage is done to sound requests, and their checksums are then made right again, so that it
gets past the first look.
"""

from __future__ import annotations

import logging
from ipaddress import IPv6Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.dhcp import BOOTP, DHCP  # noqa: E402
from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    in6_chksum,
)
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.utils import checksum  # noqa: E402

from controller.act.dataplane import answers  # noqa: E402
from controller.model.addresses import GATEWAY_MAC  # noqa: E402
from controller.model.nouns import Nic, Subnet  # noqa: E402

MAC = "02:00:00:00:00:05"
NIC = Nic.model_validate({"mac": MAC, "subnet": "b", "ipv4": "10.1.0.5", "ipv6": "fd00:1::5"})
SUBNET = Subnet.model_validate(
    {
        "id": "b",
        "tenant": "t",
        "cidr": "10.1.0.0/24",
        "cidr6": "fd00:1::/64",
        "dns": ["9.9.9.9"] * 20,
        "domain": "d" * 200,
    }
)
ETHER = Ether(src=MAC, dst=GATEWAY_MAC)
TO6 = ETHER / IPv6(src="fd00:1::5", dst="ff02::1:ff00:6", hlim=255)
AWAY6 = ETHER / IPv6(src="fd00:1::5", dst="fd00:2::5", hlim=1)
DHCP_REQUEST = [
    ("message-type", "request"),
    ("requested_addr", "10.1.0.5"),
    ("server_id", "10.1.0.1"),
    (61, b"\1" + b"i" * 6),
    (57, b"\5\0"),
    (52, b"\3"),
    (82, b"\1\4port"),
    "end",
]
SEEDS: list[bytes] = [
    bytes(packet)
    for packet in (
        ETHER
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(op=1, chaddr=bytes.fromhex("020000000005"), file=b"\xff", sname=b"\xff")
        / DHCP(options=DHCP_REQUEST),
        ETHER / IP(src="10.1.0.5", dst="10.2.0.5", ttl=1) / UDP() / b"data",
        ETHER / IP(src="10.1.0.5", dst="10.2.0.5", ttl=1) / ICMP() / b"data",
        TO6 / ICMPv6ND_NS(tgt="fd00:1::6") / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
        TO6 / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
        AWAY6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP() / b"data",
        AWAY6 / IPv6ExtHdrFragment(nh=17, m=1) / UDP() / b"data",
        AWAY6 / ICMPv6EchoRequest() / b"data",
    )
]


def mend(frame: bytearray) -> bytes:
    """Make the IPv4 header's and ICMPv6's checksums right, where they are where they were."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        end = 14 + (frame[14] & 0xF) * 4
        frame[24:26] = bytes(2)
        frame[24:26] = checksum(bytes(frame[14:end])).to_bytes(2, "big")
    elif frame[12:14] == b"\x86\xdd" and len(frame) > 58 and frame[20] == 58:
        length = int.from_bytes(frame[18:20], "big")
        source, to = (str(IPv6Address(bytes(frame[at : at + 16]))) for at in (22, 38))
        header = IPv6(src=source, dst=to)
        frame[56:58] = bytes(2)
        found = in6_chksum(58, header, bytes(frame[54 : 54 + length]))
        frame[56:58] = found.to_bytes(2, "big")
    return bytes(frame)


@st.composite
def damaged(draw: Any) -> bytes:
    frame = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(frame) - 1))
        frame[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del frame[draw(st.integers(0, len(frame))) :]
    return mend(frame) if draw(st.booleans()) else bytes(frame)


def every_answer(frame: bytes) -> list[bytes]:
    """All that any of the functions says to a frame."""
    errors = [
        answers.time_exceeded(frame, SUBNET),
        *(answers.unreachable(frame, SUBNET, why) for why in ("host", "net", "port", "admin")),  # type: ignore[arg-type]
    ]
    for error in errors:
        # Nothing that we say of a packet may itself be the cause of an error.
        if error is not None:
            assert answers.time_exceeded(error, SUBNET) is None
    addressed = answers.destination(frame)
    assert addressed is not None or not any(errors)
    found = [
        *errors,
        answers.dhcp(frame, NIC, SUBNET),
        answers.neighbour(frame, NIC, SUBNET, lambda a: GATEWAY_MAC if int(a) & 1 else None),
        answers.neighbour(frame, NIC, SUBNET, lambda a: "02:00:00:00:00:06"),
    ]
    return [answer for answer in found if answer is not None]


def check(frame: bytes) -> int:
    """Ask, and look at every answer as its receiver will; how many answers there were."""
    said = every_answer(frame)
    for answer in said:
        assert len(answer) <= 14 + SUBNET.mtu
        if answer[12:14] == b"\x08\x00":
            assert checksum(answer[14:34]) == 0
            assert int.from_bytes(answer[16:18], "big") == len(answer) - 14
            if answer[23] == 17:
                pseudo = answer[26:34] + bytes((0, 17)) + answer[38:40]
                assert checksum(pseudo + answer[34:]) == 0
            else:
                assert checksum(answer[34:]) == 0
        else:
            header = Ether(answer)[IPv6]
            assert header.plen == len(answer) - 54
            assert in6_chksum(58, header, answer[54:]) == 0
    return len(said)


def test_every_sound_request_has_an_answer() -> None:
    """Else damage would be done to what is never looked at."""
    assert [check(frame) > 0 for frame in SEEDS] == [True] * len(SEEDS)
    assert all(mend(bytearray(frame)) == frame for frame in SEEDS)


@settings(max_examples=600)
@given(damaged())
def test_damaged_frames(frame: bytes) -> None:
    check(frame)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.sampled_from(["", "0800", "86dd", "080045", "86dd60"]))
def test_noise(noise: bytes, start: str) -> None:
    check(noise)
    check(SEEDS[0][:12] + bytes.fromhex(start) + noise)


def test_every_truncation() -> None:
    for frame in SEEDS:
        for end in range(len(frame)):
            check(frame[:end])
