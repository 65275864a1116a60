"""Tenants with the same subnets, addresses and ports at once, and who hears a broadcast."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from controller.model.addresses import GATEWAY_MAC
from controller.model.nouns import Action
from mininet_labs.traffic import probe
from tests.fabric.world import Tap, end, fence, udp

pytestmark = pytest.mark.fabric

PLACES = {"a": ("one", 10, "leaf1-h1"), "b": ("one", 11, "leaf1-h2"), "c": ("one", 12, "leaf2-h1")}
PLACES |= {"d": ("two", 10, "leaf2-h2"), "e": ("two", 11, "leaf1-h1")}


@pytest.fixture(scope="module")
def tenants(world):
    """Two tenants with five guests each: the same subnets, addresses and edges in both."""
    found = {}
    for tenant in ("red", "blue"):
        world.tenant(tenant)
        subnets = {
            "one": world.subnet(f"{tenant}-one", tenant, "10.0.0.0/24", "fd00:1::/64"),
            "two": world.subnet(f"{tenant}-two", tenant, "10.0.1.0/24", "fd00:2::/64"),
        }
        found[tenant] = {
            name: world.define(f"{tenant}-{name}", subnets[subnet], number=number)
            for name, (subnet, number, _) in PLACES.items()
        }
        for name, (_, _, host) in PLACES.items():
            world.place(found[tenant][name], host)
    world.applied()
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_each_tenant_talks_inside_itself_only(tenants, version):
    pairs = [
        (a, b)
        for guests in tenants.values()
        for a in guests.values()
        for b in guests.values()
        if a is not b
    ]
    # An answer of the other tenant's guest of the same address would count as none.
    reached = probe(pairs, version=version)
    assert reached.reachable == {(a.name, b.name) for a, b in pairs}


def test_a_neighbours_mac_of_the_other_tenant_leads_nowhere(tenants):
    red, blue = tenants["red"], tenants["blue"]
    with Tap(red["a"]) as out, Tap(red["c"]) as honest, Tap(blue["c"]) as other:
        for mac in (blue["c"].mac, blue["b"].mac):
            for version in (4, 6):
                out.send(udp(red["a"], blue["c"], b"trespass", mac=mac, version=version))
        fence(out, honest)
        with Tap(blue["a"]) as inside:
            fence(inside, other)
        assert (other.got(b"trespass"), honest.got(b"trespass")) == (0, 0)


def test_equal_connections_of_two_tenants_are_not_mixed(world, tenants):
    for tenant in tenants:
        world.tenant(tenant, Action.DENY)
        for protocol in ("tcp", "udp"):
            world.rule(
                f"{tenant}-{protocol}",
                tenant,
                protocol=protocol,
                source={"vms": [f"{tenant}-a"]},
                destination={"vms": [f"{tenant}-c"]},
                ports=[{"first": 8_000, "last": 8_000}],
            )
    with (
        end(tenants["red"]["c"], socket.SOCK_STREAM, 8_000) as red_server,
        end(tenants["blue"]["c"], socket.SOCK_STREAM, 8_000) as blue_server,
        end(tenants["red"]["a"], socket.SOCK_STREAM, 9_000) as red,
        end(tenants["blue"]["a"], socket.SOCK_STREAM, 9_000) as blue,
    ):
        red_server.listen()
        blue_server.listen()
        where = (str(tenants["red"]["c"].ipv4), 8_000)
        red.connect(where)
        blue.connect(where)
        accepted_red, _ = red_server.accept()
        accepted_blue, _ = blue_server.accept()
        with accepted_red, accepted_blue:
            for number in range(20):
                for client, server, name in (
                    (red, accepted_red, b"red"),
                    (blue, accepted_blue, b"blue"),
                ):
                    word = b"%s %02d" % (name, number)
                    client.sendall(word)
                    assert server.recv(100) == word
                    server.sendall(word.upper())
                    assert client.recv(100) == word.upper()
            # One of two equal connections ends; the other must not notice.
            red.close()
            assert accepted_red.recv(100) == b""
            blue.sendall(b"still here")
            assert accepted_blue.recv(100) == b"still here"


def test_an_answer_is_an_answer_in_its_own_tenant_only(world, tenants):
    """Blue has sent nothing: what would be the reply to red's packet must not pass in blue."""
    red, blue = tenants["red"], tenants["blue"]
    for guests in (red, blue):
        world.rule(f"{guests['a'].name}-mark", guests["a"].name.split("-")[0], protocol="udp",
                   ports=[{"first": 4_001, "last": 4_001}])  # fmt: skip

    def between(source, target, sport, dport, data):
        network = IP(src=str(source.ipv4), dst=str(target.ipv4)) / UDP(sport=sport, dport=dport)
        return Ether(src=source.mac, dst=target.mac) / network / Raw(data)

    with Tap(red["a"]) as asker, Tap(red["c"]) as asked:
        asker.send(between(red["a"], red["c"], 9_001, 8_000, b"question"))
        asked.payload(b"question")
        with Tap(blue["c"]) as liar, Tap(blue["a"]) as victim:
            liar.send(between(blue["c"], blue["a"], 8_000, 9_001, b"no answer"))
            fence(liar, victim)
            assert victim.got(b"no answer") == 0
        asked.send(between(red["c"], red["a"], 8_000, 9_001, b"an answer"))
        asker.payload(b"an answer")


def test_broadcast_stops_where_nothing_inside_is_allowed(world, tenants):
    red = tenants["red"]
    with Tap(red["a"]) as out, Tap(red["b"]) as near, Tap(red["c"]) as far:
        frame = udp(red["a"], red["c"], b"shout", mac="ff:ff:ff:ff:ff:ff", dst="10.0.0.255")
        out.send(frame)
        fence(out, near, far)
        assert (near.got(b"shout"), far.got(b"shout")) == (0, 0)
    for tenant in tenants:
        world.tenant(tenant, Action.ALLOW)
    world.applied()


BROADCASTS = {
    "to all": ("ff:ff:ff:ff:ff:ff", {"dst": "255.255.255.255"}, 4),
    "to the subnet": ("ff:ff:ff:ff:ff:ff", {"dst": "10.0.0.255"}, 4),
    "to a group": ("01:00:5e:01:02:03", {"dst": "239.1.2.3"}, 4),
    "to a group of IPv6": ("33:33:00:00:12:34", {"dst": "ff02::1234"}, 6),
}


@pytest.mark.parametrize("name", BROADCASTS)
@pytest.mark.parametrize("sender", ["a", "c"])
def test_broadcast_reaches_the_subnet_once_and_nobody_else(tenants, name, sender):
    mac, ip, version = BROADCASTS[name]
    red, blue = tenants["red"], tenants["blue"]
    guests = [*red.values(), *blue.values()]
    taps = {guest.name: Tap(guest) for guest in guests}
    try:
        out = taps[f"red-{sender}"]
        inside = [taps[f"red-{n}"] for n in "abc" if n != sender]
        for data in (b"first shout", b"second shout"):
            out.send(udp(out.vm, red["b"], data, mac=mac, version=version, **ip))
        for tap in inside:
            tap.payload(b"second shout")
        # Everybody else hears their own neighbour, sent after that.
        for listener, speaker in (("d", "e"), ("e", "d")):
            for tenant in ("red", "blue"):
                fence(taps[f"{tenant}-{speaker}"], taps[f"{tenant}-{listener}"])
        for listener, speaker in (("a", "b"), ("b", "c"), ("c", "a")):
            fence(taps[f"blue-{speaker}"], taps[f"blue-{listener}"])
        fence(out, *inside)
        counts = {guest: tap.got(b"first shout") for guest, tap in taps.items()}
        assert counts == {guest: int(taps[guest] in inside) for guest in taps}
    finally:
        for tap in taps.values():
            tap.__exit__()


def test_what_is_routed_is_never_flooded(tenants):
    red = tenants["red"]
    with Tap(red["a"]) as out, Tap(red["b"]) as near, Tap(red["d"]) as far:
        # Directed broadcast of the other subnet (RFC 2644: not to be forwarded).
        network = IP(src=str(red["a"].ipv4), dst="10.0.1.255") / UDP(sport=1, dport=2)
        out.send(Ether(src=red["a"].mac, dst=GATEWAY_MAC) / network / Raw(b"directed"))
        network6 = IPv6(src=str(red["a"].ipv6), dst="ff05::2") / UDP(sport=1, dport=2)
        out.send(Ether(src=red["a"].mac, dst=GATEWAY_MAC) / network6 / Raw(b"directed"))
        fence(out, near)
        with Tap(red["e"]) as neighbour:
            fence(neighbour, far)
        assert (near.got(b"directed"), far.got(b"directed")) == (0, 0)
