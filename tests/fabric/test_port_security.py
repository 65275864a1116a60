"""What a port may send: its VM's own addresses, and nothing that only the fabric says."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.contrib.mpls import MPLS
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Reply
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from controller.act.dataplane.pipeline import Payload, edge_label, subnet_label
from controller.model.addresses import GATEWAY_MAC, eui64_link_local
from mininet_labs.deployment import wait_until
from tests.fabric.world import Tap, fence, udp

pytestmark = pytest.mark.fabric

FORGED = b"forged on purpose"
ALL = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def guests(world):
    """`a` and `b` on one edge, `c` on the other, all of one subnet."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    hosts = {"a": "leaf1-h1", "b": "leaf1-h2", "c": "leaf2-h1"}
    return {name: world.vm(name, one, host) for name, host in hosts.items()}


def advertisement(guests, target):
    """An unasked neighbour advertisement of `a` that says that it has `target`."""
    a, c = guests["a"], guests["c"]
    ether = Ether(src=a.mac, dst=c.mac) / IPv6(src=str(a.ipv6), dst=str(c.ipv6), hlim=255)
    told = ICMPv6ND_NA(tgt=str(target), R=0, S=0, O=1)
    return ether / told / ICMPv6NDOptDstLLAddr(lladdr=a.mac) / Raw(FORGED)


def router(guests):
    """A router advertisement of `a`."""
    a = guests["a"]
    ether = Ether(src=a.mac, dst="33:33:00:00:00:01")
    network = IPv6(src=str(eui64_link_local(a.mac)), dst="ff02::1", hlim=255)
    prefix = ICMPv6NDOptPrefixInfo(prefix="fd00:bad::", prefixlen=64)
    return ether / network / ICMPv6ND_RA() / prefix / Raw(FORGED)


def redirect(guests):
    """A redirect of `a` in the gateway's name."""
    a, c = guests["a"], guests["c"]
    network = IPv6(src=str(eui64_link_local(GATEWAY_MAC)), dst=str(c.ipv6), hlim=255)
    told = ICMPv6ND_Redirect(tgt=str(a.ipv6), dst="fd00:2::1")
    return Ether(src=a.mac, dst=c.mac) / network / told / Raw(FORGED)


def dhcp_offer(guests, to_mac, to_ip, sport=67):
    """A DHCP server's offer, from `a` with its true addresses."""
    a = guests["a"]
    network = IP(src=str(a.ipv4), dst=to_ip) / UDP(sport=sport, dport=68)
    bootp = BOOTP(op=2, yiaddr="10.0.0.66", siaddr=str(a.ipv4))
    offer = DHCP(options=[("message-type", "offer"), "end"])
    return Ether(src=a.mac, dst=to_mac) / network / bootp / offer / Raw(FORGED)


def labelled(guests, stack, ethertype=0x8847):
    """A frame of `a` to `c` with labels already on it."""
    inner = udp(guests["a"], guests["c"], FORGED)
    frame = Ether(src=guests["a"].mac, dst=guests["c"].mac, type=ethertype)
    for number, label in enumerate(stack):
        frame /= MPLS(label=label, s=number == len(stack) - 1, ttl=64)
    return frame / inner[IP]


FORGERIES = {
    "the MAC of a neighbour": lambda g: (
        Ether(src=g["b"].mac, dst=g["c"].mac) / udp(g["a"], g["c"], FORGED)[IP]
    ),
    "the MAC of the gateway": lambda g: (
        Ether(src=GATEWAY_MAC, dst=g["c"].mac) / udp(g["a"], g["c"], FORGED)[IP]
    ),
    "the MAC of nobody": lambda g: (
        Ether(src="02:00:00:00:99:99", dst=g["c"].mac) / udp(g["a"], g["c"], FORGED)[IP]
    ),
    "the IPv4 address of a neighbour": lambda g: udp(g["a"], g["c"], FORGED, src=str(g["b"].ipv4)),
    "the IPv4 address of nobody": lambda g: udp(g["a"], g["c"], FORGED, src="10.0.0.200"),
    "no IPv4 address": lambda g: udp(g["a"], g["c"], FORGED, src="0.0.0.0"),
    "a foreign IPv4 address to all": lambda g: udp(
        g["a"], g["c"], FORGED, mac=ALL, src="10.0.0.200", dst="10.0.0.255"
    ),
    "the IPv6 address of a neighbour": lambda g: udp(
        g["a"], g["c"], FORGED, version=6, src=str(g["b"].ipv6)
    ),
    "the link-local address of a neighbour": lambda g: udp(
        g["a"], g["c"], FORGED, version=6, src=str(eui64_link_local(g["b"].mac))
    ),
    "an advertisement for a neighbour": lambda g: advertisement(g, g["b"].ipv6),
    "an advertisement for the gateway": lambda g: advertisement(g, "fd00:1::1"),
    "an advertisement for nobody": lambda g: advertisement(g, IPv6Address("fd00:1::99")),
    "a router advertisement": router,
    "a redirect": redirect,
    "a DHCP server to all": lambda g: dhcp_offer(g, ALL, "255.255.255.255"),
    "a DHCP server to one": lambda g: dhcp_offer(g, g["c"].mac, str(g["c"].ipv4)),
    "a DHCP server on another port": lambda g: dhcp_offer(g, ALL, "255.255.255.255", 6767),
    "a DHCPv6 server": lambda g: (
        Ether(src=g["a"].mac, dst=g["c"].mac)
        / IPv6(src=str(g["a"].ipv6), dst=str(g["c"].ipv6))
        / UDP(sport=547, dport=546)
        / DHCP6_Reply()
        / Raw(FORGED)
    ),
    "the label of an edge": lambda g: labelled(g, [edge_label(2, 0, Payload.IPV4)]),
    "the label of a flood": lambda g: labelled(
        g, [edge_label(2, 0, Payload.LABEL), subnet_label(1, Payload.IPV4)]
    ),
    "a multicast label": lambda g: labelled(g, [edge_label(2, 0, Payload.IPV4)], 0x8848),
    "a VLAN tag": lambda g: (
        Ether(src=g["a"].mac, dst=g["c"].mac) / Dot1Q(vlan=7) / udp(g["a"], g["c"], FORGED)[IP]
    ),
    "two VLAN tags": lambda g: (
        Ether(src=g["a"].mac, dst=g["c"].mac, type=0x88A8)
        / Dot1Q(vlan=7)
        / Dot1Q(vlan=8)
        / udp(g["a"], g["c"], FORGED)[IP]
    ),
    "a priority tag to all": lambda g: (
        Ether(src=g["a"].mac, dst=ALL)
        / Dot1Q(vlan=0, prio=5)
        / udp(g["a"], g["c"], FORGED, dst="10.0.0.255")[IP]
    ),
    "LLDP": lambda g: Ether(src=g["a"].mac, dst="01:80:c2:00:00:0e", type=0x88CC) / Raw(FORGED),
    "a protocol that nobody asked for": lambda g: (
        Ether(src=g["a"].mac, dst=g["c"].mac, type=0x88B5) / Raw(FORGED)
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_frame_reaches_nobody(guests, name):
    a, b, c = guests.values()
    with Tap(a) as out, Tap(b) as near, Tap(c) as far:
        out.send(FORGERIES[name](guests))
        fence(out, near, far)
        assert (near.got(FORGED), far.got(FORGED)) == (0, 0)


def test_the_honest_forms_of_the_forgeries_arrive(guests):
    """The same frames without the forgery, or the test above would prove nothing."""
    a, b, c = guests.values()
    with Tap(a) as out, Tap(b) as near, Tap(c) as far:
        out.send(udp(a, c, b"one"), udp(a, c, b"six", version=6))
        local = udp(a, c, b"local", version=6, src=str(eui64_link_local(a.mac)))
        out.send(local, udp(a, c, b"all", mac=ALL, dst="10.0.0.255"))
        far.payloads(b"one", b"six", b"local", b"all")
        near.payload(b"all")


@pytest.mark.parametrize("lie", ["hwsrc", "psrc"])
def test_a_forged_question_by_arp_is_not_answered(guests, lie):
    a, b, c = guests.values()
    lies = {"hwsrc": b.mac, "psrc": str(b.ipv4)}
    asked = {"op": 1, "hwsrc": a.mac, "psrc": str(a.ipv4), "pdst": str(c.ipv4)}
    with Tap(a) as ear, Tap(b) as near:
        forged, honest = {**asked, lie: lies[lie]}, {**asked, "pdst": "10.0.0.1"}
        for fields in (forged, honest):
            ear.send(Ether(src=a.mac, dst=ALL) / ARP(**fields))
        ear.until(lambda f: ARP in f and f[ARP].psrc == "10.0.0.1", "the gateway's answer")
        assert not [f for f in ear.frames if ARP in f and f[ARP].psrc == str(c.ipv4)]
        fence(ear, near)
        assert not [f for f in near.frames if ARP in f and f[ARP].op == 1]


def test_a_forged_answer_by_arp_reaches_nobody(guests):
    a, b, c = guests.values()
    lie = ARP(op=2, hwsrc=a.mac, psrc=str(b.ipv4), hwdst=c.mac, pdst=str(c.ipv4))
    truth = ARP(op=2, hwsrc=a.mac, psrc=str(a.ipv4), hwdst=c.mac, pdst=str(c.ipv4))
    with Tap(a) as out, Tap(b) as near, Tap(c) as far:
        for told in (lie, truth):
            for mac in (c.mac, ALL):
                out.send(Ether(src=a.mac, dst=mac) / told / Raw(FORGED))
        fence(out, near, far)
        # Even a true one: neighbours are told by the fabric alone.
        assert (near.got(FORGED), far.got(FORGED)) == (0, 0)


def test_a_port_where_no_vm_was_placed_is_dead(world, guests):
    a, b, c = guests.values()
    stranger = world.define("stranger", world.subnets["a"])
    port = world.plug(stranger, "leaf1-h1")
    world.applied()
    frames = [
        udp(stranger, b, FORGED),
        udp(stranger, c, FORGED, mac=ALL, dst="10.0.0.255"),
        udp(stranger, c, FORGED, version=6),
        labelled(guests, [edge_label(2, 0, Payload.IPV4)]),
        Ether(src=stranger.mac, dst=ALL)
        / ARP(op=1, hwsrc=stranger.mac, psrc=str(stranger.ipv4), pdst="10.0.0.1"),
    ]
    with Tap(stranger) as dead, Tap(b) as near, Tap(c) as far, Tap(a) as out:
        before = world.received(port)
        dead.send(*frames)
        wait_until(lambda: world.received(port) >= before + len(frames), "the switch has read them")
        out.send(udp(a, stranger, b"for the stranger"))
        out.send(udp(a, c, b"for all", mac=ALL, dst="10.0.0.255"))
        near.payload(b"for all")
        far.payload(b"for all")
        fence(out, near, far)
        assert (near.got(FORGED), far.got(FORGED)) == (0, 0)
        world.client.place("stranger", "leaf1-h1", [port])
        world.applied()
        out.send(udp(a, stranger, b"now"))
        dead.payload(b"now")
        heard = [f for f in dead.frames if f.type != 0x88CC]
        assert [bytes(f)[-3:] for f in heard if f.src != a.mac or UDP in f] == [b"now"]
        dead.send(udp(stranger, c, b"and back"))
        far.payload(b"and back")
    world.drop(stranger)
