"""Meters and marks on real switches."""

from __future__ import annotations

import contextlib

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from controller.client import Problem
from controller.model.nouns import RateLimit
from mininet_labs.traffic import Flow
from tests.fabric.test_moving import leave, start
from tests.fabric.world import Tap, udp
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(3, 2)
SETTINGS = {"PLEACH_MIGRATION__DRAIN_S": "0.2"}


@pytest.fixture(scope="module")
def guests(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    return {name: world.vm(name, one, f"leaf{n}-h1") for n, name in ((1, "a"), (2, "b"))}


@pytest.fixture
def limited(world):
    """Limits that end with the test."""
    names = []

    def limit(vm, **kbit):
        world.client.limit(RateLimit(vm=vm, **kbit))
        names.append(vm)
        world.applied()

    yield limit
    for name in {*names}:
        with contextlib.suppress(Problem):
            world.client.unlimit(name)
    world.applied()


def meters(world, switch):
    """Meters of VMs: rate and burst, by number."""
    found = {}
    for block in world.meters(switch).split("meter=")[1:]:
        number = int(block.split()[0])
        if number >= 16:
            words = dict(w.split("=") for w in block.split() if "=" in w)
            found[number] = (int(words["rate"]), int(words["burst_size"]))
    return found


def test_nobody_is_metered_without_a_limit(world, guests):
    assert not any(meters(world, edge) for edge in world.lab.edges)
    told = world.client.bandwidth("a")
    assert (told.out_kbit, told.in_kbit, told.out_reason) == (None, None, "nothing limits it")


def test_a_limit_is_a_meter_where_the_vm_is_and_drops_what_is_too_much(world, guests, limited):
    limited("a", out_kbit=1_000, burst_ms=100)
    assert [*meters(world, "leaf1").values()] == [(1_000, 100)]
    assert not meters(world, "leaf2")
    limited("b", in_kbit=2_000, burst_ms=100)
    assert [*meters(world, "leaf2").values()] == [(2_000, 200)]
    a, b = guests["a"], guests["b"]
    # 100 kbit at once are allowed, and 1,000 come: by one port, in order, all are metered.
    with Tap(a) as out, Tap(b) as into:
        out.send(*(udp(a, b, b"%04d" % n + bytes(1_200)) for n in range(100)))
        into.payload(b"0000")
        world.client.unlimit("a")
        world.applied()
        out.send(udp(a, b, b"the last"))
        into.payload(b"the last")
        arrived = sum(into.got(b"%04d" % n + bytes(1_200)) for n in range(100))
    assert 5 <= arrived < 60
    told = world.client.bandwidth("b")
    assert (told.in_kbit, told.in_reason) == (2_000, "the operator's limit")
    assert not meters(world, "leaf1")


def test_a_new_rate_is_one_meter_in_place_and_loses_nothing(world, guests, limited):
    a, b = guests["a"], guests["b"]
    limited("a", out_kbit=10_000)
    before = world.tables("leaf1")
    with Flow(a, b, 500) as flow:
        for kbit in range(11_000, 21_000, 1_000):
            world.client.limit(RateLimit(vm="a", out_kbit=kbit))
            world.applied()
        results = flow.stop()
    assert [(r.lost, r.errors) for r in results] == [(0, 0), (0, 0)]
    assert len(before ^ world.tables("leaf1")) == 2
    assert [rate for rate, _ in meters(world, "leaf1").values()] == [20_000]


def test_the_meter_goes_with_the_vm(world, guests, limited):
    a, b = guests["a"], guests["b"]
    limited("a", out_kbit=10_000, in_kbit=20_000)
    old = a.active
    with Flow(a, b, 200) as flow:
        move, port = start(world, a, "leaf3-h1")
        both = {(10_000, 5_000), (20_000, 10_000)}
        assert {*meters(world, "leaf1").values()} == both
        assert {*meters(world, "leaf3").values()} == both
        a.switch_over(port)
        leave(world, a, move, old)
        results = flow.stop()
    world.client.complete_migration(move, "a")
    world.applied()
    assert [(r.lost, r.errors) for r in results] == [(0, 0), (0, 0)]
    assert not meters(world, "leaf1")
    assert {*meters(world, "leaf3").values()} == both


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_vm_says_of_its_class_is_not_believed(world, guests, version):
    a, b = guests["a"], guests["b"]
    fields = {"tos": 46 << 2 | 1} if version == 4 else {"tc": 46 << 2 | 1}
    with Tap(a) as out, Tap(b) as into:
        out.send(udp(a, b, b"trust me", version=version, **fields))
        frame = into.payload(b"trust me")
    assert (frame[IP].tos if version == 4 else frame[IPv6].tc) == 1  # ECN stays
    assert frame[UDP].dport == 4001


def test_a_limit_ends_with_its_vm_and_nobody_unknown_is_limited(world, guests, limited):
    with pytest.raises(Problem) as told:
        world.client.limit(RateLimit(vm="nobody", out_kbit=1))
    assert told.value.status == 404
    one = world.subnets["a"]
    guest = world.vm("short", one, "leaf2-h1")
    world.client.limit(RateLimit(vm="short", out_kbit=5_000))
    world.applied()
    assert [rate for rate, _ in meters(world, "leaf2").values()] == [5_000]
    world.drop(guest)
    assert not meters(world, "leaf2")
    with pytest.raises(Problem):
        world.client.unlimit("short")
