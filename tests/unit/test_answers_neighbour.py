"""Neighbour and router solicitations, asked and read by scapy."""

from __future__ import annotations

import logging
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether  # noqa: E402

from controller.act.dataplane import answers  # noqa: E402
from controller.model.addresses import GATEWAY_MAC, eui64_link_local  # noqa: E402
from controller.model.nouns import Nic, Subnet  # noqa: E402

MAC, OTHER_MAC = "02:00:00:00:00:05", "02:00:00:00:00:06"
OWN, OTHER, GATEWAY, NOBODY = "fd00:1::5", "fd00:1::6", "fd00:1::1", "fd00:1::99"
OWN_LINK_LOCAL = str(eui64_link_local(MAC))
GATEWAY_LINK_LOCAL = str(eui64_link_local(GATEWAY_MAC))
NIC = Nic(mac=MAC, subnet="blue", ipv6=IPv6Address(OWN))
SUBNET = Subnet.model_validate(
    {"id": "blue", "tenant": "t", "cidr": "10.1.0.0/24", "cidr6": "fd00:1::/64", "mtu": 1450}
)
OWNERS = {
    OWN: MAC,
    OWN_LINK_LOCAL: MAC,
    OTHER: OTHER_MAC,
    GATEWAY: GATEWAY_MAC,
    GATEWAY_LINK_LOCAL: GATEWAY_MAC,
}


def resolve(address: IPv6Address) -> str | None:
    return OWNERS.get(str(address))


def group(target: str) -> str:
    return str(
        IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(target)) % (1 << 24))
    )


def ask(
    target: str,
    source: str = OWN,
    to: str | None = None,
    *,
    mac: str = MAC,
    hlim: int = 255,
    extra: Any = None,
    option: Any = None,
    **fields: Any,
) -> bytes:
    """A neighbour solicitation as a host makes it."""
    to = to or group(target)
    if option is None and source != "::":
        option = ICMPv6NDOptSrcLLAddr(lladdr=mac)
    packet = Ether(src=mac, dst="33:33:ff:00:00:01") / IPv6(src=source, dst=to, hlim=hlim)
    if extra is not None:
        packet /= extra
    packet /= ICMPv6ND_NS(tgt=target, **fields)
    return bytes(packet / option if option is not None else packet)


def router(source: str = OWN_LINK_LOCAL, to: str = "ff02::2", option: Any = None) -> bytes:
    packet = (
        Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(src=source, dst=to, hlim=255) / ICMPv6ND_RS()
    )
    return bytes(packet / option if option is not None else packet)


def read(frame: bytes | None, layer: Any) -> Any:
    """An advertisement taken apart, its checksum found to be scapy's own."""
    assert frame is not None
    reply = Ether(frame)
    assert (reply[IPv6].hlim, reply[IPv6].nh) == (255, 58)
    assert reply[IPv6].plen == len(frame) - 54
    copy = Ether(frame)
    del copy[layer].cksum
    assert Ether(bytes(copy))[layer].cksum == reply[layer].cksum
    return reply


@pytest.mark.parametrize(
    ("target", "mac", "is_router"),
    [(OTHER, OTHER_MAC, 0), (GATEWAY, GATEWAY_MAC, 1), (GATEWAY_LINK_LOCAL, GATEWAY_MAC, 1)],
)
@pytest.mark.parametrize("source", [OWN, OWN_LINK_LOCAL])
@pytest.mark.parametrize("unicast", [False, True])
def test_a_neighbour_is_told(
    target: str, mac: str, is_router: int, source: str, unicast: bool
) -> None:
    frame = ask(target, source, target if unicast else None)
    reply = read(answers.neighbour(frame, NIC, SUBNET, resolve), ICMPv6ND_NA)
    assert (reply.src, reply.dst) == (mac, MAC)
    assert (reply[IPv6].src, reply[IPv6].dst) == (target, source)
    told = reply[ICMPv6ND_NA]
    assert (told.R, told.S, told.O, told.tgt) == (is_router, 1, 1, target)
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == mac


@pytest.mark.parametrize("target", [OTHER, GATEWAY])
def test_a_probe_for_anothers_address_is_told_to_all(target: str) -> None:
    frame = ask(target, "::")
    reply = read(answers.neighbour(frame, NIC, SUBNET, resolve), ICMPv6ND_NA)
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (reply[ICMPv6ND_NA].S, reply[ICMPv6ND_NA].O) == (0, 1)
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == OWNERS[target]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(ask(OWN, "::"), id="probe for its own address"),
        pytest.param(ask(OWN_LINK_LOCAL, "::"), id="probe for its own link-local address"),
        pytest.param(ask(OWN), id="its own address"),
        pytest.param(ask(NOBODY), id="nobody's address"),
        pytest.param(ask(OTHER, hlim=254), id="routed"),
        pytest.param(ask(OTHER, code=1), id="code"),
        pytest.param(ask(OTHER, cksum=1), id="checksum"),
        pytest.param(ask(OTHER, NOBODY), id="source not its own"),
        pytest.param(ask(OTHER, "ff02::1"), id="group as source"),
        pytest.param(ask(OTHER, mac=OTHER_MAC), id="MAC not its own"),
        pytest.param(ask(OTHER, to=GATEWAY), id="sent to a third"),
        pytest.param(ask(OTHER, "::", OTHER), id="probe by unicast"),
        pytest.param(ask(OTHER, "::", "ff02::1"), id="probe to all nodes"),
        pytest.param(
            ask(OTHER, "::", option=ICMPv6NDOptSrcLLAddr(lladdr=MAC)), id="probe that tells a MAC"
        ),
        pytest.param(ask(OTHER, option=b"\1\0\2\0\0\0\0\5"), id="option of length 0"),
        pytest.param(ask(OTHER, option=b"\1\2\2\0\0\0\0\5"), id="option cut off"),
        pytest.param(ask(OTHER, option=b"\1"), id="option of one byte"),
        pytest.param(ask(OTHER, extra=IPv6ExtHdrFragment(id=7)), id="fragment"),
    ],
)
def test_silence(frame: bytes) -> None:
    assert answers.neighbour(frame, NIC, SUBNET, resolve) is None


def test_silence_where_the_owner_is_the_one_who_asks() -> None:
    assert answers.neighbour(ask(NOBODY), NIC, SUBNET, lambda _: MAC) is None


@pytest.mark.parametrize("target", ["ff02::6", "::"])
def test_a_group_has_no_owner(target: str) -> None:
    frame = ask(target, to="ff02::1")
    assert answers.neighbour(frame, NIC, SUBNET, lambda _: OTHER_MAC) is None


def test_extension_headers_do_not_hide_a_question() -> None:
    frame = ask(OTHER, extra=IPv6ExtHdrDestOpt())
    read(answers.neighbour(frame, NIC, SUBNET, resolve), ICMPv6ND_NA)


def test_other_messages_are_not_answered() -> None:
    head = Ether(src=MAC, dst=GATEWAY_MAC) / IPv6(src=OWN, dst=GATEWAY, hlim=255)
    for message in (
        ICMPv6EchoRequest(),
        ICMPv6ND_NA(tgt=OTHER),
        ICMPv6ND_RA(),
    ):
        assert answers.neighbour(bytes(head / message), NIC, SUBNET, resolve) is None


def advertised(frame: bytes, nic: Nic = NIC, subnet: Subnet = SUBNET) -> Any:
    reply = read(answers.neighbour(frame, nic, subnet, resolve), ICMPv6ND_RA)
    assert (reply.src, reply[IPv6].src) == (GATEWAY_MAC, GATEWAY_LINK_LOCAL)
    told = reply[ICMPv6ND_RA]
    assert (told.M, told.O, told.routerlifetime, told.chlim) == (0, 0, 1800, 64)
    assert reply[ICMPv6NDOptSrcLLAddr].lladdr == GATEWAY_MAC
    return reply


def test_a_router_advertisement() -> None:
    reply = advertised(router(option=ICMPv6NDOptSrcLLAddr(lladdr=MAC)))
    assert (reply.dst, reply[IPv6].dst) == (MAC, OWN_LINK_LOCAL)
    assert reply[ICMPv6NDOptMTU].mtu == 1450
    prefix = reply[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00:1::", 64, 1, 0)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (2592000, 604800)


def test_a_router_is_told_to_all_where_the_host_has_no_address_yet() -> None:
    reply = advertised(router("::"))
    assert (reply.dst, reply[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")


@pytest.mark.parametrize(
    ("cidr6", "address", "autonomous"),
    [
        ("fd00:1::/64", "fd00:1::ff:fe00:5", 1),
        ("fd00:1::/64", "fd00:1::5", 0),
        ("fd00:1::/64", None, 0),
        ("fd00:1::/63", "fd00:1::ff:fe00:5", 0),
        ("fd00:1::/64", "fd00:2::ff:fe00:5", 0),
    ],
)
def test_hosts_make_their_own_address_only_where_it_is_theirs(
    cidr6: str, address: str | None, autonomous: int
) -> None:
    network = IPv6Network(cidr6, strict=False)
    subnet = SUBNET.model_copy(update={"cidr6": network})
    nic = NIC.model_copy(update={"ipv6": IPv6Address(address) if address else None})
    prefix = advertised(router(), nic, subnet)[ICMPv6NDOptPrefixInfo]
    assert (prefix.A, prefix.L, prefix.prefixlen) == (autonomous, 1, network.prefixlen)


def test_an_mtu_too_small_for_ipv6_is_not_told() -> None:
    assert ICMPv6NDOptMTU not in advertised(
        router(), subnet=SUBNET.model_copy(update={"mtu": 1279})
    )


def test_no_router_without_a_prefix_nor_for_a_wrong_question() -> None:
    bare = Subnet.model_validate({"id": "b", "tenant": "t", "cidr": IPv4Network("10.1.0.0/24")})
    wrong = [
        router("::", option=ICMPv6NDOptSrcLLAddr(lladdr=MAC)),
        router(NOBODY),
        router(to=OTHER),
        router(option=b"\1\0"),
    ]
    assert answers.neighbour(router(), NIC, bare, resolve) is None
    for frame in wrong:
        assert answers.neighbour(frame, NIC, SUBNET, resolve) is None
