"""Access rules on real packets: who may begin what, and that answers pass."""

from __future__ import annotations

import itertools
import socket
from contextlib import suppress

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from controller.act.dataplane.pipeline import Owner, cookie
from controller.model.nouns import AccessRule, Action, Nic, Vm
from mininet_labs.traffic import probe
from tests.fabric.world import Tap, end

pytestmark = pytest.mark.fabric

#: Always allowed both ways, so that a packet of it can follow one that is not.
MARK = 7_999
_numbers = itertools.count(1)
_sports = itertools.count(20_000)


@pytest.fixture(scope="module")
def strict(world):
    """A tenant where nothing is allowed but marks: `c` and `s` on two edges, `n` beside `c`,
    and `r` in a second subnet."""
    world.tenant("strict", Action.DENY)
    one = world.subnet("one", "strict", "10.0.0.0/24", "fd00:1::/64")
    two = world.subnet("two", "strict", "10.0.1.0/24", "fd00:2::/64")
    guests = {
        "c": world.vm("c", one, "leaf1-h1", groups=["clients"]),
        "s": world.vm("s", one, "leaf2-h1", groups=["servers", "all"]),
        "n": world.vm("n", one, "leaf1-h2", groups=["all"]),
        "r": world.vm("r", two, "leaf2-h1"),
    }
    world.rule("mark", "strict", protocol="udp", ports=[{"first": MARK, "last": MARK}])
    return guests


@pytest.fixture
def rule(world, strict):
    """Makes rules that end with the test."""
    made = []

    def make(**fields):
        key = f"rule-{next(_numbers)}"
        world.rule(key, "strict", **fields)
        made.append(key)
        return key

    yield make
    for key in made:
        world.client.delete(AccessRule, key)
    world.applied()


def packet(source, target, layer, data, version=4):
    """A frame inside a subnet."""
    network = (
        IP(src=str(source.ipv4), dst=str(target.ipv4))
        if version == 4
        else IPv6(src=str(source.ipv6), dst=str(target.ipv6))
    )
    return Ether(src=source.mac, dst=target.mac) / network / layer / Raw(data)


def passes(source, target, layer, version=4):
    """Whether a packet arrives; one that does not is overtaken by a mark of its own path."""
    number = next(_numbers)
    data = b"packet %06d" % number
    marks = [b"mark %06d %02d" % (number, n) for n in range(16)]
    with Tap(source) as out, Tap(target) as into:
        out.send(packet(source, target, layer, data, version))
        for n, mark in enumerate(marks):
            out.send(packet(source, target, UDP(sport=6000 + 7 * n, dport=MARK), mark))
        into.payloads(*marks)
        return into.got(data) == 1


def tcp(dport, flags="S", sport=None):
    return TCP(sport=sport or next(_sports), dport=dport, flags=flags, seq=100)


def dgram(dport, sport=None):
    return UDP(sport=sport or next(_sports), dport=dport)


def test_by_default_a_strict_tenant_allows_nothing(strict):
    c, s, n = strict["c"], strict["s"], strict["n"]
    for target in (s, n):
        for layer in (tcp(80), dgram(80), ICMP()):
            assert not passes(c, target, layer)
        assert not passes(c, target, ICMPv6EchoRequest(), 6)
    pairs = [(a, b) for a in strict.values() for b in strict.values() if a is not b]
    assert not probe(pairs, tries=1).heard


def test_even_then_the_gateway_is_there(strict):
    c = strict["c"]
    assert c.ping("10.0.0.1", count=2)
    assert c.ping("fd00:1::1", count=2)
    assert not c.ping(strict["r"].ipv4)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("target", ["s", "n"])
def test_tcp_one_way(strict, rule, target, version):
    c, s = strict["c"], strict[target]
    rule(source={"vms": ["c"]}, destination={"vms": [target]}, protocol="tcp", ports=[_port(80)])
    with end(s, socket.SOCK_STREAM, 80, version) as server:
        server.listen()
        with end(c, socket.SOCK_STREAM, 0, version) as client:
            client.connect(server.getsockname()[:2])
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"there")
                assert accepted.recv(10) == b"there"
                accepted.sendall(b"and back")
                assert client.recv(10) == b"and back"
    assert not passes(s, c, tcp(80), version)
    assert not passes(s, c, tcp(9999, sport=80), version)
    # What looks like an answer, but answers nothing.
    assert not passes(s, c, tcp(9999, "SA", sport=80), version)
    assert not passes(s, c, tcp(9999, "A", sport=80), version)
    assert not passes(c, s, tcp(81), version)
    assert not passes(c, s, dgram(80), version)
    assert passes(c, s, tcp(80), version)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_one_way(strict, rule, version):
    c, s = strict["c"], strict["s"]
    rule(source={"vms": ["c"]}, destination={"vms": ["s"]}, protocol="udp", ports=[_port(53)])
    assert not passes(s, c, dgram(7000, sport=53), version)
    assert passes(c, s, dgram(53, sport=7000), version)
    assert passes(s, c, dgram(7000, sport=53), version)
    assert not passes(s, c, dgram(7001, sport=53), version)
    assert not passes(s, c, dgram(53), version)
    assert not passes(c, s, dgram(54), version)


def test_icmp_one_way(strict, rule):
    c, s = strict["c"], strict["s"]
    rule(source={"vms": ["c"]}, destination={"vms": ["s"]}, protocol="icmp")
    assert c.ping(s.ipv4, count=2)
    assert c.ping(s.ipv6, count=2)
    assert not passes(s, c, ICMP(id=77))
    assert not passes(s, c, ICMPv6EchoRequest(id=77), 6)
    assert not passes(s, c, ICMP(type=0, id=78))
    assert not passes(s, c, ICMPv6EchoReply(id=78), 6)


def test_errors_about_what_is_allowed_pass(strict, rule):
    c, s = strict["c"], strict["s"]
    rule(source={"vms": ["c"]}, destination={"vms": ["s"]}, protocol="udp", ports=[_port(5353)])
    with end(c, socket.SOCK_DGRAM) as client:
        client.connect((str(s.ipv4), 5353))
        client.settimeout(2)
        with pytest.raises(ConnectionRefusedError):
            _heard(client)


def _heard(client):
    """What is answered to one of some packets: a kernel tells a peer of errors once a second, and
    has told this one of others."""
    for _ in range(5):
        client.send(b"nobody listens")
        with suppress(TimeoutError):
            return client.recv(10)
    raise TimeoutError


def _port(first, last=None):
    return {"first": first, "last": last or first}


SELECTORS = {
    "groups": ({"groups": ["clients"]}, {"groups": ["servers"]}),
    "any group of several": ({"groups": ["none", "clients"]}, {"groups": ["all"]}),
    "prefixes": ({"cidrs": ["10.0.0.0/24"]}, {"cidrs": ["10.0.0.0/25", "fd00:1::/64"]}),
    "subnets": ({"subnets": ["one"]}, {"subnets": ["one"]}),
    "a subnet and a prefix": ({}, {"subnets": ["one"], "cidrs": ["10.0.0.0/8"]}),
    "a group and a subnet": ({"groups": ["clients"], "subnets": ["one"]}, {"groups": ["servers"]}),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors(strict, rule, name):
    c, s = strict["c"], strict["s"]
    source, destination = SELECTORS[name]
    assert not passes(c, s, tcp(443))
    rule(source=source, destination=destination, protocol="tcp", ports=[_port(443)])
    assert passes(c, s, tcp(443))
    assert not passes(c, s, tcp(444))


MISSED = {
    "another group": ({"groups": ["servers"]}, {}),
    "another prefix": ({}, {"cidrs": ["10.0.1.0/24"]}),
    "another subnet": ({"subnets": ["two"]}, {}),
    "a group outside of the subnet": ({"groups": ["clients"], "subnets": ["two"]}, {}),
    "another VM": ({"vms": ["n"]}, {"vms": ["s"]}),
    "a VM outside of the prefix": ({"vms": ["c"], "cidrs": ["10.0.1.0/24"]}, {}),
}


@pytest.mark.parametrize("name", MISSED)
def test_selectors_that_miss(strict, rule, name):
    source, destination = MISSED[name]
    rule(source=source, destination=destination, protocol="tcp", ports=[_port(443)])
    assert not passes(strict["c"], strict["s"], tcp(443))


def test_a_rule_between_subnets(strict, rule):
    rule(source={"subnets": ["one"]}, destination={"vms": ["r"]}, protocol="icmp")
    assert strict["c"].ping(strict["r"].ipv4, count=2)
    assert strict["s"].ping(strict["r"].ipv6, count=2)
    assert not strict["r"].ping(strict["c"].ipv4)


def test_ranges_of_ports_end_where_they_say(strict, rule):
    c, s = strict["c"], strict["s"]
    rule(protocol="tcp", ports=[_port(1_000, 1_999), _port(3_000)])
    inside, outside = (1_000, 1_023, 1_024, 1_999, 3_000), (999, 2_000, 2_999, 3_001)
    assert [passes(c, s, tcp(port)) for port in (*inside, *outside)] == [True] * 5 + [False] * 4


def test_the_higher_priority_wins_and_deny_wins_a_tie(strict, rule):
    c, s, n = strict["c"], strict["s"], strict["n"]
    rule(protocol="tcp", priority=100)
    rule(protocol="tcp", action="deny", priority=100, destination={"vms": ["s"]})
    assert (passes(c, s, tcp(80)), passes(c, n, tcp(80))) == (False, True)
    rule(protocol="tcp", priority=200, ports=[_port(80)], source={"vms": ["c"]})
    assert (passes(c, s, tcp(80)), passes(c, s, tcp(81))) == (True, False)
    rule(protocol="tcp", action="deny", priority=300, ports=[_port(80)])
    assert (passes(c, s, tcp(80)), passes(c, n, tcp(80))) == (False, False)


def test_in_a_tenant_that_allows_a_rule_denies(world):
    world.tenant("open")
    subnet = world.subnet("open-one", "open", "10.0.0.0/24")
    x, y = world.vm("x", subnet, "leaf1-h1"), world.vm("y", subnet, "leaf2-h1")
    assert passes(x, y, tcp(80))
    fields = {"action": "deny", "protocol": "tcp", "ports": [_port(80)], "source": {"vms": ["x"]}}
    world.rule("open-deny", "open", **fields)
    assert (passes(x, y, tcp(80)), passes(x, y, tcp(81)), passes(y, x, tcp(80))) == (
        *(False, True),
        True,
    )
    world.remove(AccessRule, "open-deny")
    assert passes(x, y, tcp(80))
    world.drop(x, y)


@pytest.mark.parametrize("how", ["the allowing rule is removed", "a denying rule is added"])
def test_a_change_takes_effect_on_what_is_established(world, strict, rule, how):
    c, s = strict["c"], strict["s"]
    fields = {"protocol": "tcp", "ports": [_port(80)], "destination": {"vms": ["s"]}}
    allowing = world.rule("established", "strict", **fields)
    with (
        end(s, socket.SOCK_STREAM, 80) as server,
        end(c, socket.SOCK_STREAM) as client,
    ):
        server.listen()
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"one")
            assert accepted.recv(10) == b"one"
            if how.startswith("the"):
                world.remove(AccessRule, allowing.id)
            else:
                world.rule("stop", "strict", action="deny", priority=200, **fields)
            client.sendall(b"two")
            assert not passes(c, s, tcp(80))
            accepted.setblocking(False)
            with pytest.raises(BlockingIOError):
                accepted.recv(10)
            accepted.settimeout(20)
            if how.startswith("the"):
                world.rule("established", "strict", **fields)
            else:
                world.remove(AccessRule, "stop")
            assert accepted.recv(10) == b"two"
    world.remove(AccessRule, allowing.id)


def test_joining_and_leaving_a_group_takes_effect(world, strict, rule):
    n, s = strict["n"], strict["s"]
    rule(source={"groups": ["clients"]}, protocol="tcp", ports=[_port(80)])
    assert not passes(n, s, tcp(80))
    world.client.update("n", groups=["clients"])
    world.applied()
    assert passes(n, s, tcp(80))
    world.client.update("n", groups=["all"])
    world.applied()
    assert not passes(n, s, tcp(80))


def test_a_rule_costs_the_sum_of_its_members(world, strict, rule):
    """Twice the members on both sides are twice the entries, not four times."""
    groups = {"many-a": 100, "many-b": 150}

    def members(numbers):
        for group, first in groups.items():
            for number in numbers:
                name, mac = f"{group}-{number}", f"02:00:00:01:{first:02x}:{number:02x}"
                nic = Nic(mac=mac, subnet="one", ipv4=f"10.0.0.{first + number}")
                world.client.put(Vm(id=name, tenant="strict", nics=(nic,), groups=(group,)))
                world.client.place(name, "leaf1-h1", [name])

    def entries():
        world.applied()
        return len(world.flows("leaf1", f"cookie={cookie(Owner.ACCESS, key):#x}/-1"))

    names = [f"{group}-{number}" for group in groups for number in range(20)]
    world.lab.silent_ports("leaf1", names)
    key = rule(
        source={"groups": ["many-a"]},
        destination={"groups": ["many-b"]},
        protocol="tcp",
        ports=[_port(80)],
    )
    members(range(10))
    before = entries()
    members(range(10, 20))
    after = entries()
    # Both tables of it: two addresses (IPv4, link-local) of each member of either side; the
    # service in IPv4 and IPv6; the conjunction.
    assert (before, after) == (2 * (2 * (10 + 10) + 3), 2 * (2 * (20 + 20) + 3))
    for name in names:
        world.client.delete(Vm, name, force=True)
    world.lab.remove_ports("leaf1", names)
    world.applied()
