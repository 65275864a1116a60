"""Who reaches whom: inside a subnet, routed between subnets, and the gateways."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from controller.model.addresses import GATEWAY_MAC, eui64_link_local
from mininet_labs.traffic import probe
from tests.fabric.world import Tap, udp

pytestmark = pytest.mark.fabric


@pytest.fixture(scope="module")
def guests(world):
    """Two subnets; of each a guest on both edges, and one more beside the first."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    two = world.subnet("two", "red", "10.0.1.0/24", "fd00:2::/64")
    names = {
        "a": (one, "leaf1-h1"),
        "b": (one, "leaf1-h2"),
        "c": (one, "leaf2-h1"),
        "d": (two, "leaf1-h1"),
        "e": (two, "leaf2-h1"),
    }
    return {name: world.vm(name, *where) for name, where in names.items()}


@pytest.mark.parametrize("version", [4, 6])
def test_everybody_in_a_tenant_reaches_everybody(guests, version):
    pairs = [(a, b) for a in guests.values() for b in guests.values() if a is not b]
    assert probe(pairs, version=version).reachable == {(a.name, b.name) for a, b in pairs}


@pytest.mark.parametrize("target", ["b", "c"])
@pytest.mark.parametrize("version", [4, 6])
def test_inside_a_subnet_nothing_is_changed(guests, target, version):
    sender, receiver = guests["a"], guests[target]
    data = f"untouched {target} {version}".encode()
    frame = udp(sender, receiver, data, version=version)
    with Tap(sender) as out, Tap(receiver) as into:
        out.send(frame)
        arrived = into.payload(data)
    assert bytes(arrived) == bytes(frame)


@pytest.mark.parametrize("target", ["d", "e"])
@pytest.mark.parametrize("version", [4, 6])
def test_between_subnets_the_fabric_is_one_router(guests, target, version):
    sender, receiver = guests["a"], guests[target]
    data = f"routed {target} {version}".encode()
    limit = {"ttl": 17} if version == 4 else {"hlim": 17}
    frame = udp(sender, receiver, data, mac=GATEWAY_MAC, version=version, **limit)
    with Tap(sender) as out, Tap(receiver) as into:
        out.send(frame)
        arrived = into.payload(data)
    wanted = Ether(bytes(frame))
    wanted.src, wanted.dst = GATEWAY_MAC, receiver.mac
    if version == 4:
        wanted[IP].ttl = 16
        del wanted[IP].chksum
    else:
        wanted[IPv6].hlim = 16
    assert bytes(arrived) == bytes(wanted)


def test_both_gateways_answer_a_guest(guests):
    link_local = f"{eui64_link_local(GATEWAY_MAC)}%eth0"
    gateways = ("10.0.0.1", "10.0.1.1", "fd00:1::1", "fd00:2::1", link_local)
    for name in ("a", "e"):
        for address in gateways:
            assert guests[name].ping(address, count=2), (name, address)


def test_link_local_neighbours_reach_each_other_and_nobody_elses(guests):
    one, other = eui64_link_local(guests["c"].mac), eui64_link_local(guests["e"].mac)
    assert guests["a"].ping(f"{one}%eth0", count=2)
    assert not guests["a"].ping(f"{other}%eth0")


def test_full_packets_cross_the_fabric(guests):
    for address, size in (("10.0.1.1", 1472), (str(guests["e"].ipv4), 1472)):
        done = guests["a"].run(
            *("ping", "-n", "-c", "2", "-i", "0.2", "-W", "2"),
            *("-M", "do", "-s", str(size), address),
        )
        assert done.returncode == 0, done.stdout
