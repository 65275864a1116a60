"""The fabric stays as it is to be: whoever changes a switch, and whichever process dies."""

from __future__ import annotations

import itertools
import re

import pytest

from controller.model.nouns import Nic, Vm
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, probe
from tests.fabric.world import Tap, fence, udp

pytestmark = pytest.mark.fabric

SETTINGS = {"PLEACH_SOUTHBOUND__RECONCILE_S": "0.3"}
EDGE = "leaf1"
DIFFERS = "a switch differs from what it is to have"


@pytest.fixture(scope="module")
def guests(world):
    """A guest on each edge and a rule between them, so that all kinds of entries stand."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    guests = {"a": world.vm("a", one, "leaf1-h1"), "b": world.vm("b", one, "leaf2-h1")}
    ports = [{"first": 23, "last": 25}]
    deny = {"action": "deny", "protocol": "tcp", "ports": ports, "source": {"vms": ["a"]}}
    world.rule("deny", "red", **deny)
    return guests


@pytest.fixture
def pristine(world, guests):
    """All switches before the test; after it they must be so again, by themselves."""
    before = everything(world)
    yield before
    wait_until(lambda: everything(world) == before, "all switches are as they were")
    assert probe([tuple(guests.values())]).reachable


def everything(world):
    return world.tables(*world.lab.edges, *world.lab.cores)


def told(world):
    """How many differences the southbound process has told of."""
    return world.deployment.log("southbound").count(DIFFERS)


def repaired(world, before, spoil):
    """Spoil something and wait for the repair; what was logged about it. What was not spoilt
    must have gone on counting, as it would not after a flush."""
    logged = len(world.deployment.log("southbound"))
    counted = world.counters(EDGE)
    spoil()
    wait_until(lambda: everything(world) == before, "the difference is repaired")
    after = world.counters(EDGE)
    wait_until(
        lambda: DIFFERS in world.deployment.log("southbound")[logged:], "the difference is told"
    )
    lost = {rule for rule, count in counted.items() if after.get(rule, 0) < count}
    log = world.deployment.log("southbound")[logged:]
    return lost, [line for line in log.splitlines() if DIFFERS in line]


def a_rule(world, table, *words):
    """Table, priority and match of a rule of the edge, as `ovs-ofctl` takes them."""
    for line in world.flows(EDGE, f"table={table}"):
        if all(word in line for word in words):
            match = line.split(f"table={table}, ", 1)[1].split(" actions=")[0]
            return f"table={table},{match}"
    raise AssertionError(f"no rule in table {table} with {words}")


def count_some(guests):
    """Packets over most of the rules."""
    a, b = guests.values()
    with Tap(a) as out, Tap(b) as into, Tap(b) as back, Tap(a) as home:
        out.send(udp(a, b, b"all", mac="ff:ff:ff:ff:ff:ff", dst="10.0.0.255"))
        fence(out, into)
        fence(back, home)
    assert a.ping("10.0.0.1", count=2)


def test_a_removed_rule_comes_back(world, guests, pristine):
    count_some(guests)
    rule = a_rule(world, 1, "nw_src=", "ip,")
    lost, lines = repaired(
        world, pristine, lambda: world.lab.ofctl("--strict", "del-flows", EDGE, rule)
    )
    assert len(lost) <= 1
    assert "found=nothing" in lines[0]
    assert "wanted=flow in table 1" in lines[0]


def test_a_changed_rule_is_changed_back(world, guests, pristine):
    count_some(guests)
    rule = a_rule(world, 1, "nw_src=", "ip,")
    lost, lines = repaired(
        world,
        pristine,
        lambda: world.lab.ofctl("--strict", "mod-flows", EDGE, f"{rule},actions=drop"),
    )
    assert len(lost) <= 1
    assert "drop" in lines[0]


def test_a_changed_cookie_is_changed_back(world, guests, pristine):
    rule = a_rule(world, 2, "priority=1,ip")
    spoilt = f"cookie=0x77,{rule},actions=goto_table:4"
    _, lines = repaired(world, pristine, lambda: world.lab.ofctl("add-flow", EDGE, spoilt))
    assert "nobody we know (0x77)" in lines[0]


ALIENS = {
    "a rule": "table=0,priority=30000,udp,tp_dst=9999,actions=drop",
    "a rule in a table that nobody uses": "table=77,priority=1,actions=drop",
    "a rule with fields and actions of others": (
        "table=5,priority=9,tun_id=5,metadata=3,dl_vlan=7,actions=strip_vlan,enqueue(1,0),NORMAL"
    ),
    "a rule that ends by itself": "table=3,idle_timeout=3600,priority=7,ip,actions=drop",
    "a rule that learns": (
        "table=60,priority=3,actions=learn(table=61,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])"
    ),
}


@pytest.mark.parametrize("name", ALIENS)
def test_an_alien_is_removed(world, guests, pristine, name):
    count_some(guests)
    lost, lines = repaired(world, pristine, lambda: world.lab.ofctl("add-flow", EDGE, ALIENS[name]))
    assert not lost
    assert any("wanted=nothing" in line for line in lines)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("add-group", "group_id=777,type=all,bucket=actions=drop"),
        ("add-group", "group_id=778,type=ff,bucket=watch_port=1,actions=output:1"),
        ("add-meter", "meter=77,kbps,band=type=drop,rate=1"),
    ],
)
def test_an_alien_group_or_meter_is_removed(world, guests, pristine, command, words):
    count_some(guests)
    lost, lines = repaired(world, pristine, lambda: world.lab.ofctl(command, EDGE, words))
    assert not lost
    assert any("wanted=nothing" in line for line in lines)


def test_a_changed_group_and_a_removed_one(world, guests, pristine):
    select = next(g for g in world.groups(EDGE) if "type=select" in g)
    number = re.search(r"group_id=(\d+)", select).group(1)
    broken = f"group_id={number},type=select,bucket=actions=drop"
    repaired(world, pristine, lambda: world.lab.ofctl("mod-group", EDGE, broken))
    repaired(world, pristine, lambda: world.lab.ofctl("del-groups", EDGE, f"group_id={number}"))


def test_a_changed_meter_and_a_removed_one(world, guests, pristine):
    slow = "meter=1,pktps,burst,band=type=drop,rate=1,burst_size=1"
    repaired(world, pristine, lambda: world.lab.ofctl("mod-meter", EDGE, slow))
    repaired(world, pristine, lambda: world.lab.ofctl("del-meter", EDGE, "meter=1"))


def test_changes_under_way_are_no_differences(world, guests):
    """VMs come, move and go while audits run all the time; nobody changes a switch by hand."""
    before, logged = everything(world), told(world)
    names = [f"busy-{n}" for n in range(12)]
    for edge in world.lab.edges:
        world.lab.silent_ports(edge, [f"{name}-{edge}" for name in names])
    for number, name in enumerate(names):
        nic = Nic(mac=f"02:00:00:00:bb:{number:02x}", subnet="one", ipv4=f"10.0.0.{100 + number}")
        world.client.put(Vm(id=name, tenant="red", nics=(nic,)))
    for turn in range(10):
        edge = ("leaf1", "leaf2")[turn % 2]
        for name in names:
            world.client.place(name, f"{edge}-h1", [f"{name}-{edge}"])
        if turn % 5 == 4:
            for name in names:
                world.client.remove(name, f"{edge}-h1")
    for name in names:
        world.client.delete(Vm, name, force=True)
    for edge in world.lab.edges:
        world.lab.remove_ports(edge, [f"{name}-{edge}" for name in names])
    world.applied()
    wait_until(lambda: everything(world) == before, "all is as before")
    # The audit after next has read what is now: the one under way may have begun earlier.
    for _ in range(2):
        mark = f"table=0,priority=29999,udp,tp_dst={9000 + next(_marks)},actions=drop"
        repaired(world, before, lambda mark=mark: world.lab.ofctl("add-flow", EDGE, mark))
    assert told(world) == logged + 2


_marks = itertools.count()

DEATHS = {"southbound": ("southbound",), "brain": ("brain",), "both": ("southbound", "brain")}


@pytest.mark.parametrize("who", DEATHS)
def test_a_killed_process_costs_no_packet(world, guests, pristine, who):
    a, b = guests.values()
    logged = told(world)
    with Flow(a, b, 500) as flow:
        for process in DEATHS[who]:
            world.deployment.kill(process)
        for process in reversed(DEATHS[who]):
            world.deployment.launch(process)
        world.whole()
        results = flow.stop()
    assert [(r.lost, r.duplicates) for r in results] == [(0, 0), (0, 0)]
    assert told(world) == logged


def test_what_was_asked_for_meanwhile_is_done_afterwards(world, guests):
    world.deployment.kill("southbound")
    world.lab.silent_port("leaf1", "later")
    nic = Nic(mac="02:00:00:00:cc:01", subnet="one", ipv4="10.0.0.99")
    world.client.put(Vm(id="later", tenant="red", nics=(nic,)))
    world.client.place("later", "leaf1-h1", ["later"])
    assert not [line for line in world.flows("leaf2") if "10.0.0.99" in line]
    world.deployment.launch("southbound")
    world.whole()
    assert [line for line in world.flows("leaf2") if "10.0.0.99" in line]
    world.client.delete(Vm, "later", force=True)
    world.lab.remove_ports("leaf1", ["later"])
    world.applied()


def test_an_edge_emptied_while_nobody_watched(world, guests, pristine):
    world.deployment.kill("southbound")
    world.lab.ofctl("del-flows", EDGE)
    world.lab.ofctl("del-groups", EDGE)
    world.lab.ofctl("del-meters", EDGE)
    world.lab.ofctl("add-flow", EDGE, "priority=1,actions=NORMAL")
    world.deployment.launch("southbound")
    world.whole()


def test_a_switch_that_starts_empty(world, guests, pristine):
    address, port = world.lab.controller
    for switch in (EDGE, "spine1"):
        world.lab.vsctl("del-controller", switch)
        world.lab.ofctl("del-flows", switch)
        world.lab.ofctl("del-groups", switch)
        target = ("set-controller", switch, f"tcp:{address}:{port}")
        options = ("max_backoff=1000", "inactivity_probe=1000", "connection_mode=out-of-band")
        world.lab.vsctl(*target, "--", "set", "Controller", switch, *options)
    world.whole()


def test_a_port_that_is_made_anew_gets_its_rules_again(world, guests):
    """The guest's port goes and comes back, perhaps under another number."""
    a, b = guests.values()
    port = a.active
    a.unplug(port)
    world.applied()
    assert not a.ping(b.ipv4)
    world.lab.silent_port("leaf1", "in-between")
    a.plug("leaf1", port)
    number = world.lab.port_number(port)

    def known():
        return any(p.name == port and p.number == number for p in world.client.topology().ports)

    wait_until(known, "the new port is known")
    world.applied()
    assert a.ping(b.ipv4, count=3)
    world.lab.remove_ports("leaf1", ["in-between"])
