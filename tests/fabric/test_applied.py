"""What REST says of the switches is so: `wait=applied`, and explanations."""

from __future__ import annotations

import re

import pytest

from controller.act.dataplane.pipeline import Owner, cookie
from controller.client import Problem
from controller.model.nouns import Host, Vm
from tests.fabric.world import Tap, udp

pytestmark = pytest.mark.fabric

SETTINGS = {"PLEACH_NORTHBOUND__WAIT_TIMEOUT_S": "5"}


@pytest.fixture(scope="module")
def subnet(world):
    world.tenant("red")
    return world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")


@pytest.fixture(scope="module")
def guests(world, subnet):
    return {"a": world.vm("a", subnet, "leaf1-h1"), "b": world.vm("b", subnet, "leaf2-h1")}


def test_applied_means_that_all_switches_have_it(world, subnet, guests):
    """Again and again: what is looked at right after must be there, and the first packet pass."""
    for turn in range(8):
        guest = world.define(f"quick-{turn}", subnet)
        port = world.plug(guest, "leaf1-h1")
        told = world.client.place(guest.name, "leaf1-h1", [port])
        status = world.client.vm(guest.name, wait=True, revision=told.revision)
        here, there = world.flows("leaf1"), world.flows("leaf2")
        assert (status.status, status.applied) == ("applied", True)
        assert status.confirmed_at is not None
        assert [line for line in here if f"nw_src={guest.ipv4} " in line]
        assert [line for line in there if f"nw_dst={guest.ipv4} " in line]
        with Tap(guests["b"]) as out, Tap(guest) as into:
            out.send(udp(guests["b"], guest, b"first"))
            into.payload(b"first")
        world.client.delete(Vm, guest.name, force=True)
        world.applied()
        assert not [line for line in world.flows("leaf2") if f"{guest.ipv4} " in line]
        world.lab.remove_vm(guest.name)


def test_a_port_that_is_not_there_is_named(world, subnet):
    world.define("lost", subnet)
    told = world.client.place("lost", "leaf1-h1", ["nowhere-0"])
    with pytest.raises(Problem) as problem:
        world.client.vm("lost", wait=True, revision=told.revision)
    assert (problem.value.status, problem.value.type) == (409, "not-applied")
    for word in ("nowhere-0", "leaf1-h1", world.lab.dpid("leaf1")):
        assert word in problem.value.detail
    assert problem.value.mend
    # It is no error of the VM: with the port comes the rest.
    world.plug(world.lab.vms["lost"], "leaf1-h1", "nowhere-0")
    world.applied()
    assert world.client.vm("lost", wait=True).applied
    world.drop(world.lab.vms["lost"])


def test_a_host_of_no_switch_is_named(world, subnet):
    world.client.put(Host(id="ghost", datapath="00000000000000aa"))
    world.define("haunted", subnet)
    told = world.client.place("haunted", "ghost", ["tap0"])
    with pytest.raises(Problem) as problem:
        world.client.vm("haunted", wait=True, revision=told.revision)
    assert problem.value.type == "not-applied"
    assert "00000000000000aa" in problem.value.detail
    world.drop(world.lab.vms["haunted"])
    world.client.delete(Host, "ghost")
    world.applied()


def cookies(lines):
    return {int(re.search(r"cookie=(0x[0-9a-f]+)", line).group(1), 16) for line in lines}


def test_explanations_are_what_the_switches_have(world, guests):
    for name in ("a", "b"):
        explained = world.client.explain(vm=name)
        assert explained.total == len(explained.items) > 0
        # Where the VM is, and besides whom it talks to and what is known of it.
        owned = cookie(Owner.VM, name)
        cookies_told = {int(e.cookie, 16) for e in explained.items}
        assert owned in cookies_told <= {cookie(owner, name) for owner in Owner}
        for edge in world.lab.edges:
            rules = world.flows(edge, f"cookie={owned:#x}/-1")
            dpid = world.lab.dpid(edge)
            told = [e for e in explained.items if e.datapath == dpid and int(e.cookie, 16) == owned]
            assert len(rules) == len(told) > 0
            by_table = sorted(int(e.table.split()[0]) for e in told)
            assert by_table == sorted(int(re.search(r"table=(\d+)", r).group(1)) for r in rules)


@pytest.mark.parametrize("switch", ["leaf1", "spine1"])
def test_a_whole_switch_is_explained(world, guests, switch):
    explained = world.client.explain(datapath=world.lab.dpid(switch))
    rules = world.flows(switch)
    assert len(explained.items) == len(rules)
    assert {int(e.cookie, 16) for e in explained.items} == cookies(rules)
    assert all(e.reason and e.owner for e in explained.items)
    # And each by what a dump shows of it.
    one = rules[0]
    wanted = next(iter(cookies([one])))
    found = world.client.explain(datapath=world.lab.dpid(switch), cookie=f"{wanted:#x}")
    assert len(found.items) == sum(wanted in cookies([rule]) for rule in rules)


def test_a_core_switch_does_not_grow_with_vms(world, subnet, guests):
    before = world.tables("spine1", "spine2")
    more = [world.vm(f"more-{n}", subnet, f"leaf{1 + n % 2}-h2") for n in range(4)]
    assert world.tables("spine1", "spine2") == before
    world.drop(*more)
