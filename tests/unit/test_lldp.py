"""Frames that switches send each other for the controller, and those that VMs forge."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.contrib.lldp import (  # noqa: E402
    LLDPDUChassisID,
    LLDPDUEndOfLLDPDU,
    LLDPDUGenericOrganisationSpecific,
    LLDPDUPortID,
    LLDPDUSystemName,
    LLDPDUTimeToLive,
)
from scapy.layers.l2 import Ether  # noqa: E402

from controller.act.dataplane import lldp  # noqa: E402

SECRET = b"a secret of the fabric"
DPID = "00000000000000a1"
FRAME = lldp.build(DPID, 7, SECRET, ttl_s=15)

dpids = st.integers(0, (1 << 64) - 1).map(lambda n: f"{n:016x}")
ports = st.integers(1, lldp.MAX_PORT)


def test_a_frame_is_lldp_to_others_too() -> None:
    frame = Ether(FRAME)
    assert (frame.dst, frame.type) == ("01:80:c2:00:00:0e", 0x88CC)
    first = int(frame.src[:2], 16)
    assert first & 3 == 2
    layers = [
        LLDPDUChassisID,
        LLDPDUPortID,
        LLDPDUTimeToLive,
        LLDPDUSystemName,
        LLDPDUGenericOrganisationSpecific,
        LLDPDUEndOfLLDPDU,
    ]
    assert frame.layers()[2:] == layers
    assert (frame[LLDPDUChassisID].subtype, frame[LLDPDUChassisID].id) == (7, DPID.encode())
    assert (frame[LLDPDUPortID].subtype, frame[LLDPDUPortID].id) == (7, b"7")
    assert frame[LLDPDUTimeToLive].ttl == 15
    assert frame[LLDPDUSystemName].system_name == b"pleach"
    assert frame[LLDPDUGenericOrganisationSpecific].subtype == 2
    assert len(frame[LLDPDUGenericOrganisationSpecific].data) == 24
    assert len(FRAME) >= 60


def test_the_signature_is_hmac_sha256() -> None:
    # printf 'pleach lldp\0\0\0\0\0\0\0\0\xa1\0\0\0\7\0\0\0\0\0\0\0\0' |
    #   openssl dgst -sha256 -hmac 'a secret of the fabric'
    assert FRAME[-18:-2].hex() == "46dc0ced400338b36bd6d8959ceffbdc"


@given(
    dpids,
    ports,
    st.binary(max_size=80),
    st.integers(1, 65535),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=40),
)
def test_what_is_built_is_read_again(
    dpid: str, port: int, secret: bytes, ttl_s: int, sent_ns: int, padding: bytes
) -> None:
    frame = lldp.build(dpid, port, secret, ttl_s=ttl_s, sent_ns=sent_ns)
    assert lldp.parse(frame + padding, secret) == (dpid, port, sent_ns)
    assert lldp.parse(frame, secret + b"x") is None


def test_source_addresses_differ_between_ports() -> None:
    sources = {lldp.build(DPID, port, SECRET, ttl_s=1)[6:12] for port in range(1, 200)}
    assert len(sources) == 199


@given(st.binary(max_size=200))
def test_noise_is_not_ours(noise: bytes) -> None:
    assert lldp.parse(noise, SECRET) is None
    assert lldp.parse(FRAME[:14] + noise, SECRET) is None


def test_no_part_of_a_frame_is_enough() -> None:
    for end in range(len(FRAME)):
        assert lldp.parse(FRAME[:end], SECRET) is None


def test_no_bit_that_matters_can_be_changed() -> None:
    ttl = FRAME.index(b"\x06\x02\x00\x0f") + 2
    # The source address and the time to live say nothing about the link.
    free = {*range(6, 12), ttl, ttl + 1}
    for at in range(len(FRAME)):
        for bit in range(8):
            bad = bytearray(FRAME)
            bad[at] ^= 1 << bit
            assert (lldp.parse(bytes(bad), SECRET) is None) == (at not in free), (at, bit)


@pytest.mark.parametrize("text", [b"07", b"+7", b"7 ", b"0", b"7_0", b"4294967296", b"\xb2"])
def test_a_number_is_written_in_one_way_only(text: bytes) -> None:
    old = b"\x04\x02\x077"
    assert old in FRAME
    new = bytes((4, 1 + len(text), 7)) + text
    assert lldp.parse(FRAME.replace(old, new), SECRET) is None


def test_a_signature_is_good_for_one_port() -> None:
    other = lldp.build(DPID, 8, SECRET, ttl_s=15)
    assert lldp.parse(other[:-18] + FRAME[-18:], SECRET) is None
    elsewhere = lldp.build("00000000000000a2", 7, SECRET, ttl_s=15)
    assert lldp.parse(elsewhere[:-18] + FRAME[-18:], SECRET) is None


def test_a_frame_cannot_be_made_to_seem_younger() -> None:
    later = lldp.build(DPID, 7, SECRET, ttl_s=15, sent_ns=1)
    assert lldp.parse(later[:-18] + FRAME[-18:], SECRET) is None


@pytest.mark.parametrize(
    ("dpid", "port", "ttl_s"),
    [("a1", 7, 15), (DPID.upper(), 7, 15), (DPID, 0, 15), (DPID, 0xFFFFFF00, 15), (DPID, 7, 0)],
)
def test_what_cannot_be_said_is_refused(dpid: str, port: int, ttl_s: int) -> None:
    with pytest.raises(ValueError, match="LLDP"):
        lldp.build(dpid, port, SECRET, ttl_s=ttl_s)


def test_another_systems_lldp_is_not_ours() -> None:
    theirs = (
        Ether(src="02:00:00:00:00:05", dst="01:80:c2:00:00:0e")
        / LLDPDUChassisID(subtype=4, id="02:00:00:00:00:05")
        / LLDPDUPortID(subtype=5, id=b"eth0")
        / LLDPDUTimeToLive(ttl=120)
        / LLDPDUEndOfLLDPDU()
    )
    assert lldp.parse(bytes(theirs), SECRET) is None
