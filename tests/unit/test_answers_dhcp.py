"""The DHCP server, asked and read by scapy's own DHCP."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.dhcp import BOOTP, DHCP  # noqa: E402
from scapy.layers.inet import IP, UDP  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402

from controller.act.dataplane import answers  # noqa: E402
from controller.model.addresses import GATEWAY_MAC  # noqa: E402
from controller.model.nouns import Nic, Subnet  # noqa: E402

MAC = "02:00:00:00:00:05"
CHADDR = bytes.fromhex("020000000005")
BROADCAST = "ff:ff:ff:ff:ff:ff"
NIC = Nic(mac=MAC, subnet="blue", ipv4=IPv4Address("10.1.0.5"))
SUBNET = Subnet(
    id="blue",
    tenant="t",
    cidr=IPv4Network("10.1.0.0/24"),
    gateway=IPv4Address("10.1.0.1"),
    dns=(IPv4Address("9.9.9.9"), IPv4Address("1.1.1.1")),
    domain="blue.example",
    lease_s=7_200,
    mtu=1_450,
)
SERVER = ("server_id", "10.1.0.1")


def ask(
    kind: str | None,
    *options: Any,
    source: str = "0.0.0.0",
    to: str = "255.255.255.255",
    sport: int = 68,
    eth_source: str = MAC,
    ip: dict[str, Any] | None = None,
    **bootp: Any,
) -> bytes:
    """A request as a client makes it."""
    typed = [] if kind is None else [("message-type", kind)]
    fields = {"op": 1, "chaddr": CHADDR, "xid": 0xC0FFEE42, "secs": 3} | bootp
    return bytes(
        Ether(src=eth_source, dst=BROADCAST if to.endswith("255") else GATEWAY_MAC)
        / IP(src=source, dst=to, **(ip or {}))
        / UDP(sport=sport, dport=67)
        / BOOTP(**fields)
        / DHCP(options=[*typed, *options, "end"])
    )


def read(frame: bytes | None) -> tuple[Any, dict[str, Any]]:
    """A reply taken apart, after all that must be so of every reply was found so."""
    assert frame is not None
    reply = Ether(frame)
    assert reply.src == GATEWAY_MAC
    assert (reply[IP].src, reply[IP].ttl) == ("10.1.0.1", 64)
    assert (reply[UDP].sport, reply[UDP].dport) == (67, 68)
    assert len(bytes(reply[UDP].payload)) >= 300
    bootp = reply[BOOTP]
    assert (bootp.op, bootp.htype, bootp.hlen, bootp.xid) == (2, 1, 6, 0xC0FFEE42)
    assert (bootp.hops, bootp.secs, bootp.giaddr, bootp.siaddr) == (0, 0, "0.0.0.0", "0.0.0.0")
    assert bootp.chaddr == CHADDR + bytes(10)
    # Checksums: scapy computes its own where they are taken away.
    copy = Ether(frame)
    del copy[IP].chksum
    del copy[UDP].chksum
    again = Ether(bytes(copy))
    assert again[IP].chksum == reply[IP].chksum
    assert again[UDP].chksum == reply[UDP].chksum != 0
    options = dict(o if len(o) == 2 else (o[0], o[1:]) for o in _listed(reply))
    assert options["server_id"] == "10.1.0.1"
    return reply, options


def _listed(reply: Any) -> list[Any]:
    return [o for o in reply[DHCP].options if isinstance(o, tuple)]


def test_a_discover_is_offered_the_fixed_address() -> None:
    reply, options = read(answers.dhcp(ask("discover"), NIC, SUBNET))
    assert (reply.dst, reply[IP].dst, reply[BOOTP].yiaddr) == (MAC, "10.1.0.5", "10.1.0.5")
    assert options == {
        "message-type": 2,
        "server_id": "10.1.0.1",
        "subnet_mask": "255.255.255.0",
        "router": "10.1.0.1",
        "broadcast_address": "10.1.0.255",
        "interface-mtu": 1450,
        "lease_time": 7200,
        "renewal_time": 3600,
        "rebinding_time": 6300,
        "name_server": ("9.9.9.9", "1.1.1.1"),
        "domain": b"blue.example",
    }
    names = [name for name, *_ in _listed(reply)]
    assert names[0] == "message-type"
    assert names.index("subnet_mask") < names.index("router")


def test_an_offer_does_not_follow_the_clients_wish() -> None:
    frame = ask("discover", ("requested_addr", "10.1.0.77"), ciaddr="10.1.0.78")
    reply, options = read(answers.dhcp(frame, NIC, SUBNET))
    assert options["message-type"] == 2
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("10.1.0.5", "0.0.0.0")
    assert reply[IP].dst == "10.1.0.5"


def test_the_broadcast_flag_is_honoured() -> None:
    reply, _ = read(answers.dhcp(ask("discover", flags=0x8000), NIC, SUBNET))
    assert (reply.dst, reply[IP].dst) == (BROADCAST, "255.255.255.255")
    assert reply[BOOTP].flags == 0x8000


def test_no_names_where_the_subnet_has_none() -> None:
    bare = SUBNET.model_copy(update={"dns": (), "domain": ""})
    _, options = read(answers.dhcp(ask("discover"), NIC, bare))
    assert not {"name_server", "domain"} & set(options)


RIGHT, WRONG = ("requested_addr", "10.1.0.5"), ("requested_addr", "10.1.0.6")


@pytest.mark.parametrize(
    ("options", "bootp", "expected"),
    [
        pytest.param((SERVER, RIGHT), {}, 5, id="selecting"),
        pytest.param((SERVER, WRONG), {}, 6, id="selecting what was not offered"),
        pytest.param((("server_id", "10.1.0.9"), RIGHT), {}, None, id="selecting another server"),
        pytest.param((SERVER,), {}, None, id="selecting nothing"),
        pytest.param((RIGHT,), {}, 5, id="init-reboot"),
        pytest.param((WRONG,), {}, 6, id="init-reboot with an old address"),
        pytest.param((("requested_addr", "192.168.7.7"),), {}, 6, id="init-reboot elsewhere"),
        pytest.param((), {"ciaddr": "10.1.0.5"}, 5, id="rebinding"),
        pytest.param((), {"ciaddr": "10.1.0.6"}, 6, id="rebinding a wrong address"),
        pytest.param((WRONG,), {"ciaddr": "10.1.0.5"}, 6, id="contradiction"),
        pytest.param((RIGHT,), {"ciaddr": "10.1.0.5"}, 5, id="said twice"),
        pytest.param((), {}, None, id="nothing asked"),
    ],
)
def test_requests(options: tuple[Any, ...], bootp: dict[str, Any], expected: int | None) -> None:
    frame = answers.dhcp(ask("request", *options, **bootp), NIC, SUBNET)
    if expected is None:
        assert frame is None
        return
    reply, said = read(frame)
    assert said["message-type"] == expected
    if expected == 6:
        assert set(said) == {"message-type", "server_id", "error_message"}
        assert b"10.1.0.5" in said["error_message"]
        assert (reply.dst, reply[IP].dst) == (BROADCAST, "255.255.255.255")
        assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "0.0.0.0")
    else:
        assert said["lease_time"] == 7200
        assert (reply.dst, reply[IP].dst) == (MAC, "10.1.0.5")
        assert reply[BOOTP].yiaddr == "10.1.0.5"
        assert reply[BOOTP].ciaddr == bootp.get("ciaddr", "0.0.0.0")


def test_a_renewal_comes_and_goes_by_unicast() -> None:
    frame = ask("request", source="10.1.0.5", to="10.1.0.1", ciaddr="10.1.0.5", flags=0x8000)
    reply, options = read(answers.dhcp(frame, NIC, SUBNET))
    assert (options["message-type"], reply.dst, reply[IP].dst) == (5, MAC, "10.1.0.5")


def test_a_renewal_at_another_server_is_not_answered() -> None:
    frame = ask("request", source="10.1.0.5", to="10.9.0.1", ciaddr="10.1.0.5")
    assert answers.dhcp(frame, NIC, SUBNET) is None


def test_an_inform_is_told_everything_but_a_lease() -> None:
    frame = ask("inform", source="10.1.0.5", ciaddr="10.1.0.5")
    reply, options = read(answers.dhcp(frame, NIC, SUBNET))
    assert options["message-type"] == 5
    assert not {"lease_time", "renewal_time", "rebinding_time"} & set(options)
    assert options["router"] == "10.1.0.1"
    assert (reply[BOOTP].yiaddr, reply[BOOTP].ciaddr) == ("0.0.0.0", "10.1.0.5")
    assert answers.dhcp(ask("inform", ciaddr="10.1.0.6"), NIC, SUBNET) is None


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ask("decline", SERVER, RIGHT), id="decline"),
        pytest.param(ask("release", SERVER, ciaddr="10.1.0.5"), id="release"),
        pytest.param(ask("offer", SERVER), id="a server's message"),
        pytest.param(ask(None), id="BOOTP"),
        pytest.param(ask("discover", giaddr="10.1.0.9"), id="relayed"),
        pytest.param(ask("discover", op=2), id="a reply"),
        pytest.param(ask("discover", htype=6), id="other hardware"),
        pytest.param(ask("discover", hlen=16), id="long hardware address"),
        pytest.param(ask("discover", chaddr=b"\2\0\0\0\0\6"), id="for another MAC"),
        pytest.param(ask("discover", eth_source="02:00:00:00:00:06"), id="from another MAC"),
        pytest.param(ask("discover", sport=67), id="from the servers' port"),
        pytest.param(ask("discover", ip={"flags": "MF"}), id="fragment"),
        pytest.param(ask("discover", ip={"ttl": 1, "chksum": 1}), id="header checksum"),
        pytest.param(ask("request", (54, b"\x0a\1\0"), RIGHT), id="short server id"),
        pytest.param(ask("request", (50, b"\x0a\1\0\5\5")), id="long requested address"),
        pytest.param(ask("discover", (57, b"\1")), id="short maximum size"),
        pytest.param(ask("discover", (52, b"\4")), id="unknown overload"),
        pytest.param(ask("discover", ("message-type", "request")), id="two types"),
        pytest.param(ask("discover", options=b"\0\0\0\0"), id="no cookie"),
    ],
)
def test_silence(frame: bytes) -> None:
    assert answers.dhcp(frame, NIC, SUBNET) is None


def test_silence_where_there_is_no_dhcp() -> None:
    assert answers.dhcp(ask("discover"), NIC, SUBNET.model_copy(update={"dhcp": False})) is None
    assert answers.dhcp(ask("discover"), NIC.model_copy(update={"ipv4": None}), SUBNET) is None


def test_an_option_that_is_cut_off_spoils_the_request() -> None:
    whole = ask("discover", ("hostname", b"x" * 20))
    bootp = Ether(whole)[BOOTP]
    for keep in range(1, 20):
        cut = bytes(bootp)[: -1 - keep]
        frame = bytes(
            Ether(src=MAC, dst=BROADCAST)
            / IP(src="0.0.0.0", dst="255.255.255.255")
            / UDP(sport=68, dport=67)
            / cut
        )
        assert answers.dhcp(frame, NIC, SUBNET) is None


@pytest.mark.parametrize("kind", ["discover", "request"])
def test_identities_are_echoed_and_the_relays_last(kind: str) -> None:
    identity, relay = b"\xff\0\0\0\1abc", b"\1\4port"
    frame = ask(kind, (82, relay), (61, identity), WRONG)
    reply, options = read(answers.dhcp(frame, NIC, SUBNET))
    assert options["message-type"] == {"discover": 2, "request": 6}[kind]
    assert options["client_id"] == identity
    assert [name for name, *_ in _listed(reply)][-1] == "relay_agent_information"
    assert bytes([82, len(relay)]) + relay + b"\xff" in bytes(reply)


def test_options_in_the_file_and_name_fields_are_read() -> None:
    server = b"\x36\x04\x0a\x01\x00\x09\xff"
    for overload, field in ((1, "file"), (2, "sname")):
        frame = ask("request", (52, bytes([overload])), RIGHT, **{field: server})
        assert answers.dhcp(frame, NIC, SUBNET) is None
        frame = ask("request", RIGHT, **{field: server})
        assert read(answers.dhcp(frame, NIC, SUBNET))[1]["message-type"] == 5


def test_a_reply_is_never_larger_than_the_client_can_take() -> None:
    talkative = SUBNET.model_copy(update={"domain": "d" * 253})
    long = (61, b"i" * 255)
    for size, limit in ((None, 576), (300, 576), (700, 700), (9000, 1450)):
        said = () if size is None else ((57, size.to_bytes(2, "big")),)
        reply, options = read(answers.dhcp(ask("discover", long, *said), NIC, talkative))
        assert reply[IP].len <= limit
        assert options["client_id"] == b"i" * 255
        assert ("domain" in options) == (limit > 900)


def test_a_reply_fits_the_subnet() -> None:
    narrow = SUBNET.model_copy(update={"domain": "d" * 253, "mtu": 576})
    wish = ask("discover", (61, b"i" * 255), (57, (700).to_bytes(2, "big")))
    reply, options = read(answers.dhcp(wish, NIC, narrow))
    assert reply[IP].len <= 576
    assert "domain" not in options


def test_a_request_in_parts_is_put_together() -> None:
    """RFC 3396: an option that is given twice is one long option."""
    frame = ask("request", (50, b"\x0a\1"), (50, b"\0\5"))
    assert read(answers.dhcp(frame, NIC, SUBNET))[1]["message-type"] == 5
    long = [(61, b"a" * 255), (61, b"b" * 40), (57, b"\5\0")]
    frame = answers.dhcp(ask("discover", *long), NIC, SUBNET)
    assert frame is not None
    assert b"\x3d\xff" + b"a" * 255 + b"\x3d\x28" + b"b" * 40 in frame


def test_an_unfinished_udp_checksum_is_no_obstacle() -> None:
    frame = bytearray(ask("discover"))
    frame[40:42] = b"\x12\x34"
    assert read(answers.dhcp(bytes(frame), NIC, SUBNET))[1]["message-type"] == 2
