"""Which packet a frame carries, and that no frame is believed."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.gtp import GTP_U_Header
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import GRE, LLC, SNAP, CookedLinux, Dot1Q, Dot3, Ether, Loopback
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from controller.observe.applications import frames
from controller.observe.applications.frames import ACK, SYN, Packet, decode

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
INNER = IP(src="10.1.0.1", dst="10.1.0.2") / TCP(sport=4000, dport=80, flags="PA") / Raw(b"hello")
INNER_V6 = IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=4000, dport=80) / Raw(b"hello")
OUTER = IP(src="192.0.2.1", dst="192.0.2.2")
GRE_KEY = GRE(key_present=1, key=7)
WITH_OPTIONS = IP(src="10.1.0.1", dst="10.1.0.2", options=b"\x01" * 4)
#: A data frame of IEEE 802.11, with SNAP.
WIFI = bytes.fromhex("0801" + "00" * 22) + bytes.fromhex("aaaa03000000" + "0800") + bytes(INNER)
CAPWAP = b"\0\x10" + bytes(6)
TZSP = b"\x01\0\0\x01" + b"\x0a\x01\x33" + b"\0" + b"\x01"

CARRIED: dict[str, tuple[int, bytes, int]] = {
    "plain": (1, bytes(ETHER / INNER), 0),
    "options of IPv4": (1, bytes(ETHER / WITH_OPTIONS / INNER.payload), 0),
    "padded": (1, bytes(ETHER / INNER) + bytes(20), 0),
    "VLAN": (1, bytes(ETHER / Dot1Q(vlan=5) / INNER), 5),
    "two VLANs": (1, bytes(ETHER / Dot1Q(vlan=9, type=0x8100) / Dot1Q(vlan=5) / INNER), 5),
    "MPLS": (1, bytes(ETHER / MPLS(label=3, s=1) / INNER), 0),
    "two labels": (1, bytes(ETHER / MPLS(label=3, s=0) / MPLS(label=4, s=1) / INNER), 0),
    "Ethernet under a label": (1, bytes(ETHER / MPLS(label=3, s=1)) + bytes(ETHER / INNER), 0),
    "pseudowire": (1, bytes(ETHER / MPLS(label=3, s=1)) + bytes(4) + bytes(ETHER / INNER), 0),
    "PPPoE": (1, bytes(ETHER / PPPoE(sessionid=1) / PPP(proto=0x0021) / INNER), 0),
    "SNAP": (1, bytes(Dot3() / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(code=0x0800) / INNER), 0),
    "IP in IP": (1, bytes(ETHER / OUTER / INNER), 0),
    "GRE": (1, bytes(ETHER / OUTER / GRE() / INNER), 0),
    "GRE with a key": (1, bytes(ETHER / OUTER / GRE_KEY / INNER), 0),
    "Ethernet in GRE": (1, bytes(ETHER / OUTER / GRE(proto=0x6558) / ETHER / INNER), 0),
    "VXLAN": (1, bytes(ETHER / OUTER / UDP(dport=4789) / VXLAN(vni=7) / ETHER / INNER), 0),
    "GTP-U": (1, bytes(ETHER / OUTER / UDP(dport=2152) / GTP_U_Header(teid=1) / INNER), 0),
    "TZSP": (1, bytes(ETHER / OUTER / UDP(dport=37008)) + TZSP + bytes(ETHER / INNER), 0),
    "CAPWAP": (1, bytes(ETHER / OUTER / UDP(dport=5247)) + CAPWAP + WIFI, 0),
    "raw": (101, bytes(INNER), 0),
    "null": (0, bytes(Loopback(type=2) / INNER), 0),
    "cooked": (113, bytes(CookedLinux(proto=0x0800) / INNER), 0),
    "cooked 2": (276, b"\x08\0" + bytes(18) + bytes(INNER), 0),
    "PPP": (9, b"\xff\x03\0\x21" + bytes(INNER), 0),
    "HDLC": (104, b"\x0f\0\x08\0" + bytes(INNER), 0),
    "radiotap": (127, b"\0\0\x08\0" + bytes(4) + WIFI, 0),
    "PPI": (192, b"\0\0\x08\0\x01\0\0\0" + bytes(ETHER / INNER), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIED)
def test_what_is_carried(name: str) -> None:
    link, frame, vlan = CARRIED[name]
    packet = decode(link, frame)
    assert packet is not None
    assert (packet.protocol, packet.source_port, packet.destination_port) == (6, 4000, 80)
    assert str(ip_address(packet.source)) == "10.1.0.1"
    assert str(ip_address(packet.destination)) == "10.1.0.2"
    assert (packet.payload, packet.vlan, packet.flags & ACK) == (5, vlan, ACK)
    assert struct.unpack_from("!H", frame, packet.above)[0] == 4000


EXTENDED = IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()


@pytest.mark.parametrize(
    "layers",
    [INNER_V6, EXTENDED / IPv6ExtHdrFragment(m=1) / INNER_V6.payload, OUTER / INNER_V6],
    ids=["plain", "extension headers", "in IPv4"],
)
def test_ipv6(layers: Layer) -> None:
    packet = decode(1, bytes(ETHER / layers))
    assert packet is not None
    assert str(ip_address(packet.source)) == "fd00::1"
    assert (packet.destination_port, packet.payload) == (80, 5)


def test_other_protocols_have_no_ports() -> None:
    packet = decode(1, bytes(ETHER / OUTER / ICMP() / Raw(b"abc")))
    assert packet is not None
    assert (packet.protocol, packet.source_port, packet.payload) == (1, 0, 11)


def test_segments_left_to_the_network_card_tell_no_length() -> None:
    frame = bytearray(bytes(ETHER / INNER))
    frame[16:18] = bytes(2)
    packet = decode(1, bytes(frame))
    assert packet is not None
    assert packet.payload == 5


def test_what_was_cut_says_what_was_announced() -> None:
    frame = bytes(ETHER / OUTER / TCP(sport=1, dport=2) / Raw(bytes(500)))
    packet = decode(1, frame[:100])
    assert packet is not None
    assert (packet.payload, packet.length) == (500, 86)


def test_a_tunnels_port_makes_no_tunnel() -> None:
    packet = decode(1, bytes(ETHER / OUTER / UDP(dport=4789) / Raw(b"no such thing")))
    assert packet is not None
    assert (packet.protocol, packet.destination_port) == (17, 4789)


LATER_FRAGMENT = OUTER.copy()
LATER_FRAGMENT.frag = 8


@pytest.mark.parametrize(
    "frame",
    [
        bytes(ETHER / LATER_FRAGMENT / Raw(bytes(40))),
        bytes(Ether(type=0x0806) / Raw(bytes(40))),
        bytes(ETHER / OUTER / TCP())[:-8],
        bytes(ETHER / OUTER / TCP(dataofs=2)),
        bytes(ETHER / IP(ihl=3) / TCP()),
        bytes(ETHER / MPLS(s=0)) + b"\0\0\x00\x40" * 40,
        bytes(ETHER / OUTER / UDP(dport=2152)) + b"\x34\xff" + bytes(9) + b"\x01",
        bytes(ETHER),
        b"",
    ],
    ids=[
        "later fragment",
        "no IP",
        "cut TCP",
        "short TCP",
        "short IP",
        "labels for ever",
        "cut GTP",
        "nothing",
        "empty",
    ],
)
def test_what_is_no_packet(frame: bytes) -> None:
    packet = decode(1, frame)
    # A port that a tunnel has makes a flow of its own where there is no tunnel.
    assert packet is None or packet.destination_port == 2152


def test_tunnels_in_each_other_end() -> None:
    frame = bytes(ETHER / OUTER)
    assert decode(1, bytes(ETHER) + b"".join([bytes(IP(proto=4))] * 40)) is None
    assert decode(999, frame) is None


any_link = st.sampled_from([link for link, _, _ in CARRIED.values()])


@given(any_link, st.binary(max_size=200))
def test_any_bytes(link: int, frame: bytes) -> None:
    _within(decode(link, frame), frame)


@given(st.sampled_from(list(CARRIED)), st.data())
def test_damaged_frames(name: str, data: st.DataObject) -> None:
    link, whole, _ = CARRIED[name]
    frame = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    _within(decode(link, cut), cut)


def _within(packet: Packet | None, frame: bytes) -> None:
    """What is said of a packet can be fetched from the frame."""
    if packet is None:
        return
    assert 0 <= packet.at < packet.above <= len(frame)
    assert packet.at + packet.length <= len(frame)
    assert len(packet.source) == len(packet.destination) in (4, 16)
    assert packet.payload >= 0
    if packet.protocol == frames.TCP:
        assert len(frame) >= packet.above + 14


@given(st.data())
def test_the_short_way_says_the_same(data: st.DataObject) -> None:
    """Plain frames are decoded in a way of their own."""
    _, whole, _ = CARRIED["plain"]
    frame = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    short = None
    cut = bytes(frame[: data.draw(st.integers(20, len(frame)))])
    try:
        short = frames._plain(cut)
        long = frames._packet(cut, *frames._ethernet(cut, 0), 0, 0)
    except (struct.error, IndexError, frames._Refused):
        assert short is None
        return
    assert short is None or short == long


def test_a_known_flow_is_recognised_without_decoding() -> None:
    frame = bytes(ETHER / INNER)
    packet = decode(1, frame)
    assert packet is not None
    assert frames.plain_ends(packet[:6]) == frame[frames.ENDS]
    assert frames.is_plain(frame, 6)
    assert not frames.is_plain(frame, 17)
    tagged = decode(1, bytes(ETHER / Dot1Q(vlan=5) / INNER))
    assert tagged is not None
    assert frames.plain_ends(tagged[:6]) is None
    assert not frames.is_plain(bytes(ETHER / Dot1Q(vlan=5) / INNER), 6)
    assert frames.plain_ends((17, bytes(4), bytes(4), 1, 4789, 0)) is None


def test_flags() -> None:
    packet = decode(1, bytes(ETHER / OUTER / TCP(flags="SE")))
    assert packet is not None
    assert packet.flags & 0x3F == SYN
