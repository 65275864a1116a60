"""ICMP errors, and the packets about which there must be none."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address
from typing import Any

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6TimeExceeded,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

from controller.act.dataplane import answers  # noqa: E402
from controller.act.dataplane.answers import packets  # noqa: E402
from controller.model.addresses import GATEWAY_MAC, eui64_link_local  # noqa: E402
from controller.model.nouns import Subnet  # noqa: E402

MAC = "02:00:00:00:00:05"
SUBNET = Subnet.model_validate(
    {"id": "blue", "tenant": "t", "cidr": "10.1.0.0/24", "cidr6": "fd00:1::/64"}
)
GATEWAY_LINK_LOCAL = str(eui64_link_local(GATEWAY_MAC))
ETHER = Ether(src=MAC, dst=GATEWAY_MAC)


def v4(payload: Any = None, *, ether: Any = ETHER, **fields: Any) -> bytes:
    ip = IP(**({"src": "10.1.0.5", "dst": "10.2.0.7", "ttl": 1, "id": 9} | fields))
    return bytes(
        ether / ip / (UDP(sport=1000, dport=2000) / b"xxxx" if payload is None else payload)
    )


def v6(payload: Any = None, *, ether: Any = ETHER, **fields: Any) -> bytes:
    ip = IPv6(**({"src": "fd00:1::5", "dst": "fd00:2::7", "hlim": 1} | fields))
    return bytes(
        ether / ip / (UDP(sport=1000, dport=2000) / b"xxxx" if payload is None else payload)
    )


def read(frame: bytes | None, about: bytes) -> Any:
    """An error taken apart, after what is so of all of them was found so."""
    assert frame is not None
    reply, asked = Ether(frame), Ether(about)
    assert (reply.src, reply.dst) == (GATEWAY_MAC, MAC)
    copy = Ether(frame)
    if IP in reply:
        assert reply[IP].dst == asked[IP].src
        assert (reply[IP].ttl, reply[IP].tos, len(reply[IP])) == (64, 0xC0, len(frame) - 14)
        quote, limit = frame[14 + 28 :], 576
        del copy[IP].chksum
        del copy[ICMP].chksum
        assert Ether(bytes(copy))[IP].chksum == reply[IP].chksum
        assert Ether(bytes(copy))[ICMP].chksum == reply[ICMP].chksum
    else:
        assert reply[IPv6].dst == asked[IPv6].src
        assert (reply[IPv6].hlim, reply[IPv6].nh) == (64, 58)
        assert reply[IPv6].plen == len(frame) - 54
        quote, limit = frame[14 + 48 :], 1280
        layer = reply[IPv6].payload.__class__
        del copy[layer].cksum
        assert Ether(bytes(copy))[layer].cksum == reply[layer].cksum
    assert frame[-len(quote) - 4 : -len(quote)] == bytes(4)
    assert about[14:].startswith(quote)
    assert len(quote) >= min(len(about) - 14, limit - 48)
    assert len(frame) - 14 <= limit
    return reply


def test_checksums_of_known_good_packets() -> None:
    # The worked example of RFC 1071, 3, and a widely printed IPv4 header.
    assert packets.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF & ~0xDDF2
    header = "450000730000400040110000c0a80001c0a800c7"
    assert packets.checksum(bytes.fromhex(header)) == 0xB861
    assert packets.checksum(bytes.fromhex(header.replace("40110000", "4011b861"))) == 0
    assert packets.checksum(b"\x01") == packets.checksum(b"\x01\x00") == 0xFEFF
    assert packets.checksum(b"") == 0xFFFF


def test_a_udp_checksum_that_comes_to_nothing_is_sent_as_all_ones() -> None:
    """RFC 768: 0 would say that there is none."""
    source, to = IPv4Address("10.1.0.1"), IPv4Address("10.1.0.5")
    found = packets.udp(source, to, (67, 68), bytes(2))[6:8]
    assert found not in (bytes(2), b"\xff\xff")
    assert packets.udp(source, to, (67, 68), found)[6:8] == b"\xff\xff"


@pytest.mark.parametrize("size", [0, 1, 33, 547, 548, 1400])
def test_time_exceeded(size: int) -> None:
    about = v4(UDP(sport=1000, dport=2000) / (b"x" * size))
    reply = read(answers.time_exceeded(about, SUBNET), about)
    assert (reply[IP].src, reply[ICMP].type, reply[ICMP].code) == ("10.1.0.1", 11, 0)


@pytest.mark.parametrize("size", [0, 1, 33, 1231, 1232, 1400])
def test_time_exceeded_v6(size: int) -> None:
    about = v6(UDP(sport=1000, dport=2000) / (b"x" * size))
    reply = read(answers.time_exceeded(about, SUBNET), about)
    told = reply[ICMPv6TimeExceeded]
    assert (reply[IPv6].src, told.type, told.code) == ("fd00:1::1", 3, 0)


def test_a_link_local_host_hears_the_gateways_link_local_address() -> None:
    about = v6(src="fe80::5")
    assert read(answers.time_exceeded(about, SUBNET), about)[IPv6].src == GATEWAY_LINK_LOCAL
    bare = SUBNET.model_copy(update={"cidr6": None, "gateway6": None})
    about = v6()
    assert read(answers.time_exceeded(about, bare), about)[IPv6].src == GATEWAY_LINK_LOCAL


@pytest.mark.parametrize(
    ("why", "code", "code6"), [("net", 0, 0), ("host", 1, 3), ("port", 3, 4), ("admin", 13, 1)]
)
def test_unreachable(why: answers.Why, code: int, code6: int) -> None:
    to, to6 = ("10.1.0.1", "fd00:1::1") if why == "port" else ("10.2.0.7", "fd00:2::7")
    about = v4(dst=to)
    reply = read(answers.unreachable(about, SUBNET, why), about)
    assert (reply[IP].src, reply[ICMP].type, reply[ICMP].code) == ("10.1.0.1", 3, code)
    about = v6(dst=to6)
    reply = read(answers.unreachable(about, SUBNET, why), about)
    told = reply[ICMPv6DestUnreach]
    assert (reply[IPv6].src, told.type, told.code) == ("fd00:1::1", 1, code6)


def test_a_shut_port_answers_from_the_address_that_was_asked() -> None:
    about = v4(TCP(dport=80), dst="10.2.0.1")
    assert read(answers.unreachable(about, SUBNET, "port"), about)[IP].src == "10.2.0.1"
    about = v6(TCP(dport=80), dst="fd00:2::1")
    assert read(answers.unreachable(about, SUBNET, "port"), about)[IPv6].src == "fd00:2::1"


def test_there_is_no_shut_port_where_there_are_no_ports() -> None:
    for frame in (v4(ICMP(type=13)), v4(Raw(b"x"), proto=47), v6(ICMPv6EchoRequest())):
        assert answers.unreachable(frame, SUBNET, "port") is None
        assert answers.unreachable(frame, SUBNET, "host") is not None


def test_questions_by_icmp_may_fail_and_be_told() -> None:
    for kind in (8, 13, 17):
        about = v4(ICMP(type=kind))
        read(answers.time_exceeded(about, SUBNET), about)
    # 12 bytes of authentication header.
    about = v6(Raw(bytes((58, 1)) + bytes(10)) / ICMPv6EchoRequest(), nh=51)
    read(answers.time_exceeded(about, SUBNET), about)
    for payload in (ICMPv6EchoRequest(), IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP()):
        about = v6(payload)
        read(answers.time_exceeded(about, SUBNET), about)


def test_a_first_fragment_may_be_told() -> None:
    for about in (v4(flags="MF"), v6(IPv6ExtHdrFragment(m=1, nh=17) / UDP())):
        read(answers.time_exceeded(about, SUBNET), about)


def test_options_of_the_header_are_quoted() -> None:
    about = v4(options=[Raw(b"\x01" * 8)])
    quote = read(answers.time_exceeded(about, SUBNET), about)
    assert bytes(quote)[42] == 0x47


LINK_BROADCAST = Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff")
LINK_MULTICAST = Ether(src=MAC, dst="33:33:00:00:00:05")
#: A header of 8 bytes, and one of authentication, in front of an ICMPv6 error.
HIDDEN = [
    Raw(bytes((58, 0)) + bytes(6) + b"\x01\0\0\0"),
    Raw(bytes((58, 1)) + bytes(10) + b"\x01\0\0\0"),
]


@pytest.mark.parametrize(
    "frame",
    [
        *(pytest.param(v4(ICMP(type=t)), id=f"ICMP {t}") for t in (3, 4, 5, 11, 12, 99)),
        pytest.param(v4(Raw(b""), proto=1), id="ICMP without a type"),
        pytest.param(v4(frag=1), id="later fragment"),
        pytest.param(v4(frag=1, flags="MF"), id="fragment in the middle"),
        *(
            pytest.param(v4(src=s), id=f"from {s}")
            for s in (
                *("0.0.0.0", "255.255.255.255", "224.0.0.5", "127.0.0.1"),
                *("240.0.0.1", "10.1.0.255", "10.1.0.0"),
            )
        ),
        *(
            pytest.param(v4(dst=d), id=f"to {d}")
            for d in ("224.0.0.5", "239.1.1.1", "255.255.255.255", "10.1.0.255", "10.1.0.0")
        ),
        pytest.param(v4(ether=LINK_BROADCAST), id="broadcast frame"),
        pytest.param(v4(ether=Ether(src="01:00:5e:00:00:01", dst=GATEWAY_MAC)), id="from a group"),
        pytest.param(v4(ether=Ether(src="00:00:00:00:00:00", dst=GATEWAY_MAC)), id="from no MAC"),
        pytest.param(v4(ether=ETHER / Dot1Q(vlan=5)), id="tagged"),
        pytest.param(v4(chksum=0x1234), id="header checksum"),
        pytest.param(v4(len=2000), id="longer than it is"),
        pytest.param(v4(len=19), id="shorter than its header"),
        pytest.param(v4(ihl=4), id="header too short"),
        pytest.param(v4(version=5), id="version"),
        *(
            pytest.param(v6(ICMPv6Unknown(type=t)), id=f"ICMPv6 {t}")
            for t in (0, 1, 2, 3, 4, 100, 127)
        ),
        pytest.param(v6(ICMPv6ND_Redirect()), id="redirect"),
        pytest.param(v6(Raw(b""), nh=58), id="ICMPv6 without a type"),
        pytest.param(v6(IPv6ExtHdrDestOpt() / ICMPv6DestUnreach()), id="error behind options"),
        *(pytest.param(v6(HIDDEN[0], nh=nh), id=f"error behind {nh}") for nh in (43, 135, 139)),
        pytest.param(v6(HIDDEN[1], nh=51), id="error behind authentication"),
        pytest.param(v6(IPv6ExtHdrFragment(nh=58) / ICMPv6TimeExceeded()), id="atomic fragment"),
        pytest.param(v6(IPv6ExtHdrFragment(nh=17, offset=1) / b"xxxxxxxx"), id="later fragment v6"),
        pytest.param(v6(Raw(b"\x11\x05" + bytes(6)), nh=60), id="options cut off"),
        pytest.param(v6(Raw(b"\x11"), nh=0), id="options not there"),
        *(pytest.param(v6(src=s), id=f"from {s}") for s in ("::", "ff02::5", "::1")),
        *(pytest.param(v6(dst=d), id=f"to {d}") for d in ("ff02::1", "ff0e::5", "::")),
        pytest.param(v6(ether=LINK_MULTICAST), id="multicast frame"),
        pytest.param(v6(plen=900), id="longer than it is v6"),
        pytest.param(v6(version=4), id="version v6"),
    ],
)
def test_silence(frame: bytes) -> None:
    assert answers.time_exceeded(frame, SUBNET) is None
    for why in ("host", "net", "port", "admin"):
        assert answers.unreachable(frame, SUBNET, why) is None  # type: ignore[arg-type]


def test_an_error_about_an_error_of_our_own_is_never_made() -> None:
    for about in (v4(), v6()):
        for error in (
            answers.time_exceeded(about, SUBNET),
            answers.unreachable(about, SUBNET, "net"),
        ):
            assert error is not None
            assert answers.time_exceeded(error, SUBNET) is None
            assert answers.unreachable(error, SUBNET, "host") is None


def test_padding_of_the_frame_is_not_quoted() -> None:
    about = v4(Raw(b"abc"), proto=17)
    reply = answers.time_exceeded(about + bytes(23), SUBNET)
    assert reply == answers.time_exceeded(about, SUBNET)
    assert reply is not None
    assert reply.endswith(b"abc")


def test_destination() -> None:
    assert str(answers.destination(v4())) == "10.2.0.7"
    assert str(answers.destination(v6())) == "fd00:2::7"
    for frame in (b"", bytes(60), v4()[:40], v6()[:50], bytes(ETHER / Dot1Q() / IP())):
        assert answers.destination(frame) is None
