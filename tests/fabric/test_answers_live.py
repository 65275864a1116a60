"""What the fabric itself says to a guest: ARP, neighbours, routers, leases, errors."""

from __future__ import annotations

from ipaddress import ip_interface
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from controller.act.dataplane.rules.base import GATEWAY_LINK_LOCAL
from controller.model.addresses import GATEWAY_MAC, eui64_link_local
from controller.model.nouns import Vm
from tests.fabric.world import Tap, echo, fence, udp

pytestmark = pytest.mark.fabric

ALL = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def guests(world):
    """`a` and `b` on one edge, `c` on the other; `d` in a second subnet."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    two = world.subnet("two", "red", "10.0.1.0/24", "fd00:2::/64")
    return {
        "a": world.vm("a", one, "leaf1-h1"),
        "b": world.vm("b", one, "leaf1-h2"),
        "c": world.vm("c", one, "leaf2-h1"),
        "d": world.vm("d", two, "leaf2-h1"),
    }


def question(guest, address, **fields):
    """Who has `address`?"""
    asked = {"op": 1, "hwsrc": guest.mac, "psrc": str(guest.ipv4), "pdst": str(address), **fields}
    return Ether(src=guest.mac, dst=ALL) / ARP(**asked)


def answers(tap, address):
    """ARP answers about `address` among the frames looked at."""
    return [f for f in tap.frames if ARP in f and f[ARP].op == 2 and f[ARP].psrc == str(address)]


def ask_gateway(tap):
    """Ask by ARP for the gateway and wait for its answer: all sent before is dealt with."""
    before = len(answers(tap, "10.0.0.1"))
    tap.send(question(tap.vm, "10.0.0.1"))
    tap.until(lambda _: len(answers(tap, "10.0.0.1")) > before, "the gateway's answer")


def resolved(asker, owner):
    """Ask by ARP for a guest's address and check the answer, and that the guest hears nothing."""
    with Tap(asker) as ear, Tap(owner) as asked:
        ear.send(question(asker, owner.ipv4))
        answer = ear.until(lambda _: answers(ear, owner.ipv4), "an answer")
        fence(ear, asked)
        assert not [f for f in asked.frames if ARP in f and f[ARP].op == 1]
    assert (answer.src, answer.dst) == (owner.mac, asker.mac)
    told = answer[ARP]
    assert (told.hwsrc, told.hwdst, told.pdst) == (owner.mac, asker.mac, str(asker.ipv4))


@pytest.mark.parametrize("owner", ["b", "c"])
def test_arp_is_answered_at_the_edge(guests, owner):
    resolved(guests["a"], guests[owner])


def test_arp_tells_the_gateway_and_probers(guests):
    a, b = guests["a"], guests["b"]
    with Tap(a) as ear:
        ask_gateway(ear)
        assert answers(ear, "10.0.0.1")[0][ARP].hwsrc == GATEWAY_MAC
        # RFC 5227: a probe asks without an address of its own whether one is in use.
        ear.send(question(a, b.ipv4, psrc="0.0.0.0"))
        answer = ear.until(lambda _: answers(ear, b.ipv4), "the answer to a probe")
        assert answer[ARP].hwsrc == b.mac


@pytest.mark.parametrize(
    "address", ["10.0.0.200", "10.0.1.1", "the neighbour's subnet", "its own", "its own, probed"]
)
def test_arp_is_not_answered_for_what_is_not_there(guests, address):
    a = guests["a"]
    own = address.startswith("its own")
    target = guests["d"].ipv4 if address.startswith("the") else a.ipv4 if own else address
    probe = {"psrc": "0.0.0.0"} if address.endswith("probed") else {}
    with Tap(a) as ear:
        ear.send(question(a, target, **probe))
        ask_gateway(ear)
        assert not answers(ear, target)


def solicitation(guest, target, source=None, *, probe=False):
    """Who has the IPv6 address `target`?"""
    group = f"ff02::1:ff{int(target) >> 16 & 0xFF:02x}:{int(target) & 0xFFFF:x}"
    mac = "33:33:ff:" + ":".join(f"{int(target) >> s & 0xFF:02x}" for s in (16, 8, 0))
    network = IPv6(src="::" if probe else str(source or guest.ipv6), dst=group, hlim=255)
    frame = Ether(src=guest.mac, dst=mac) / network / ICMPv6ND_NS(tgt=str(target))
    return frame if probe else frame / ICMPv6NDOptSrcLLAddr(lladdr=guest.mac)


def advertised(tap, target):
    """Wait for the advertisement about `target`."""
    return tap.until(
        lambda f: ICMPv6ND_NA in f and f[ICMPv6ND_NA].tgt == str(target), f"word of {target}"
    )


def test_neighbours_are_told_by_the_fabric(guests):
    a, b, c = guests["a"], guests["b"], guests["c"]
    targets = {b.ipv6: b.mac, c.ipv6: c.mac, eui64_link_local(c.mac): c.mac}
    targets |= {a.gateway6: GATEWAY_MAC, GATEWAY_LINK_LOCAL: GATEWAY_MAC}
    with Tap(a) as ear, Tap(c) as far:
        for target, mac in targets.items():
            ear.send(solicitation(a, target))
            told = advertised(ear, target)
            assert (told.src, told.dst, told[IPv6].hlim) == (mac, a.mac, 255)
            assert told[ICMPv6NDOptDstLLAddr].lladdr == mac
            assert (1, mac == GATEWAY_MAC) == (told[ICMPv6ND_NA].S, told[ICMPv6ND_NA].R)
        fence(ear, far)
        assert not [f for f in far.frames if ICMPv6ND_NS in f]


def test_duplicate_address_detection(guests):
    a, c = guests["a"], guests["c"]
    with Tap(a) as ear:
        ear.send(solicitation(a, a.ipv6, probe=True), solicitation(a, c.ipv6, probe=True))
        told = advertised(ear, c.ipv6)
        assert (told.dst, told[IPv6].dst, told[ICMPv6ND_NA].S) == (
            *("33:33:00:00:00:01", "ff02::1"),
            0,
        )
        assert not [f for f in ear.frames if ICMPv6ND_NA in f and f[ICMPv6ND_NA].tgt == str(a.ipv6)]


def test_a_router_is_found(guests):
    a = guests["a"]
    own = str(eui64_link_local(a.mac))
    asked = Ether(src=a.mac, dst="33:33:00:00:00:02") / IPv6(src=own, dst="ff02::2", hlim=255)
    with Tap(a) as ear:
        ear.send(asked / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=a.mac))
        told = ear.until(lambda f: ICMPv6ND_RA in f, "a router advertisement")
    assert (told.src, told[IPv6].src) == (GATEWAY_MAC, str(GATEWAY_LINK_LOCAL))
    assert told[ICMPv6NDOptPrefixInfo].prefix == "fd00:1::"
    assert told[ICMPv6NDOptMTU].mtu == 1500
    assert told[ICMPv6ND_RA].routerlifetime > 0


# --- Leases


def test_a_lease_is_granted_from_the_store(world, guests):
    guest = world.vm("leased", world.subnets["a"], "leaf2-h1", dhcp=True)
    wanted = world.client.get(Vm, "leased").nics[0]
    granted = guest.lease()
    assert (granted.address, granted.prefix) == (wanted.ipv4, 24)
    assert (str(granted.gateway), granted.lease_s) == ("10.0.0.1", 86_400)
    assert guest.ping(guests["a"].ipv4, count=2)
    assert guest.ping(guests["d"].ipv4, count=2)
    world.drop(guest)


SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
echo "$ip $mask $router $domain $serverid $lease"
ip addr add "$ip/$mask" dev "$interface" && ip route add default via "$router"
"""


def test_the_client_of_busybox_takes_a_lease(world, guests, tmp_path):
    script: Path = tmp_path / "bound"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    guest = world.vm("boxed", world.subnets["d"], "leaf1-h1", dhcp=True)
    wanted = ip_interface(f"{world.client.get(Vm, 'boxed').nics[0].ipv4}/24")
    words = ("udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "2", "-s", str(script))
    done = guest.run(*words, timeout_s=30)
    assert done.returncode == 0, done.stderr
    bound = f"{wanted.ip} 24 10.0.1.1 pleach.test 10.0.1.1 86400"
    assert bound in done.stdout.splitlines(), done.stdout
    assert guest.ping(guests["a"].ipv4, count=2)
    world.drop(guest)


# --- Errors


def expect_error(guest, frame, layer, kind, code, source):
    """Send a frame and check the ICMP error about it; returns the error."""
    with Tap(guest) as ear:
        ear.send(frame)
        told = ear.until(lambda f: layer in f and f[layer].type == kind, f"{layer.__name__} {kind}")
    network = IPv6 if IPv6 in told else IP
    assert (told.src, told.dst) == (GATEWAY_MAC, guest.mac)
    assert (told[network].src, told[layer].code) == (source, code)
    sent = bytes(frame[network])
    assert sent[:28] in bytes(told)
    return told


def test_a_dying_packet_is_reported(guests):
    a, d = guests["a"], guests["d"]
    frame = echo(a, str(d.ipv4), b"dying", mac=GATEWAY_MAC, ttl=1)
    expect_error(a, frame, ICMP, 11, 0, "10.0.0.1")
    frame = udp(a, d, b"dying", mac=GATEWAY_MAC, version=6, hlim=1)
    expect_error(a, frame, ICMPv6TimeExceeded, 3, 0, "fd00:1::1")


def test_a_packet_of_two_hops_arrives(guests):
    a, d = guests["a"], guests["d"]
    with Tap(a) as out, Tap(d) as into:
        out.send(udp(a, d, b"two", mac=GATEWAY_MAC, ttl=2))
        assert into.payload(b"two")[IP].ttl == 1


def test_unknown_destinations_are_reported_as_a_router_would(guests):
    a = guests["a"]
    for address, code in (("10.0.1.200", 1), ("192.0.2.1", 0)):
        frame = echo(a, address, b"lost", mac=GATEWAY_MAC)
        expect_error(a, frame, ICMP, 3, code, "10.0.0.1")
    for address, code in (("fd00:2::99", 3), ("2001:db8::1", 0)):
        frame = udp(a, guests["d"], b"lost", mac=GATEWAY_MAC, version=6, dst=address)
        expect_error(a, frame, ICMPv6DestUnreach, 1, code, "fd00:1::1")


def test_the_gateway_serves_no_port(guests):
    a = guests["a"]
    for address in ("10.0.0.1", "10.0.1.1"):
        frame = udp(a, guests["d"], b"knock", mac=GATEWAY_MAC, dst=address)
        expect_error(a, frame, ICMP, 3, 3, address)
    syn = Ether(src=a.mac, dst=GATEWAY_MAC) / IP(src=str(a.ipv4), dst="10.0.0.1")
    expect_error(a, syn / TCP(sport=4000, dport=22, flags="S"), ICMP, 3, 3, "10.0.0.1")
    frame = udp(a, guests["d"], b"knock", mac=GATEWAY_MAC, version=6, dst="fd00:2::1")
    expect_error(a, frame, ICMPv6DestUnreach, 1, 4, "fd00:2::1")


def test_no_error_is_sent_about_an_error(guests):
    a = guests["a"]
    about = IP(src="192.0.2.9", dst=str(a.ipv4)) / UDP(sport=1, dport=2) / Raw(b"inner")
    network = Ether(src=a.mac, dst=GATEWAY_MAC) / IP(src=str(a.ipv4), dst="192.0.2.1", ttl=9)
    error = network / ICMP(type=3, code=1) / about
    question = echo(a, "192.0.2.2", b"marker", mac=GATEWAY_MAC)
    with Tap(a) as ear:
        ear.send(error, question)
        ear.until(lambda f: ICMP in f and b"marker" in bytes(f), "the error about the marker")
        assert not [f for f in ear.frames if b"inner" in bytes(f)]


# --- Without the controller (last, for it ends it)


def test_without_the_southbound_process_the_edge_answers_on(world, guests):
    a, c, d = guests["a"], guests["c"], guests["d"]
    world.deployment.kill("southbound")
    try:
        resolved(a, c)
        with Tap(a) as ear:
            ask_gateway(ear)
        for guest in (a, c, d):
            guest.forget_neighbours()
        for address in (c.ipv4, d.ipv4, "10.0.0.1", "10.0.1.1"):
            assert a.ping(address, count=3), address
    finally:
        world.deployment.launch("southbound")
        world.whole()
    with Tap(a) as ear:
        ear.send(solicitation(a, c.ipv6))
        advertised(ear, c.ipv6)
