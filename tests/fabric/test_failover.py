"""Links and switches that die under traffic: the switches go around them by themselves, also
where only BFD can tell and where there is no controller; and they come back without a loss."""

from __future__ import annotations

import os
import signal

import pytest

from controller.client import Client
from controller.model.nouns import Watch
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, Stream, probe
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(3, 2)
SETTINGS = {
    "PLEACH_SOUTHBOUND__OVSDB": "unix:/run/openvswitch/db.sock, tcp:127.0.0.1:1",
    "PLEACH_SOUTHBOUND__LLDP_S": "0.5",
    "PLEACH_SOUTHBOUND__LINK_TIMEOUT_S": "3600",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "1000",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "3600",
}
RATE = 200


@pytest.fixture(scope="module")
def guests(world):
    """A guest on each of three edges."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    hosts = {"a": "leaf1-h1", "b": "leaf2-h1", "c": "leaf3-h1"}
    return {name: world.vm(name, one, host) for name, host in hosts.items()}


def links(world):
    """Every link, by (datapath, port)."""
    return {(k.datapath, k.port): k for k in world.client.topology().links}


def wait_dead(world, number):
    """Return once so many cables are known to be dead, and all switches know."""
    wanted = 2 * (len(world.lab.fabric.cables) - number)
    wait_until(lambda: sum(k.up for k in links(world).values()) == wanted, f"{wanted} links are up")
    world.applied()


def reach_all(guests):
    """Everybody reaches everybody."""
    pairs = [(x, y) for x in guests.values() for y in guests.values() if x is not y]
    assert probe(pairs).reachable == {(x.name, y.name) for x, y in pairs}


def lossless(*flows):
    """Nothing was lost on any of them."""
    return [(r.lost, r.errors) for flow in flows for r in flow.stop()] == [(0, 0)] * 2 * len(flows)


def test_links_are_watched_by_bfd(world, guests):
    assert {k.watch for k in links(world).values()} == {Watch.BFD}
    for switch in (*world.lab.edges, *world.lab.cores):
        for port in world.lab.cable_ports(switch):
            assert 'enable="true"' in world.lab.vsctl("get", "Interface", port, "bfd")
    # No VM's port is.
    assert world.lab.vsctl("get", "Interface", guests["a"].active, "bfd").strip() == "{}"


def test_latency_is_measured_and_shown(world, guests):
    wait_until(
        lambda: all(k.latency_s is not None for k in links(world).values()), "all is measured"
    )
    # A cable between two processes of one machine; whatever the machine does meanwhile.
    assert all(0 <= k.latency_s < 1 for k in links(world).values())


@pytest.mark.parametrize("leaf", ["leaf1", "leaf2"])
@pytest.mark.parametrize("way", ["port", "silence"])
def test_without_a_controller_the_switches_go_around_a_dead_link(world, guests, leaf, way):
    """Near the source it is an edge that has lost its uplink; far from it a spine, whose only
    way down is by another leaf. UDP on many ports takes every path."""
    lab = world.lab
    cut, mend = (lab.link_down, lab.link_up) if way == "port" else (lab.mute, lab.unmute)
    southbound = world.deployment.pid("southbound")
    os.kill(southbound, signal.SIGSTOP)
    try:
        cut(leaf, "spine1")
        dead = lab.cable_ports(leaf, "spine1") + lab.cable_ports("spine1", leaf)
        wait_until(lambda: not any(lives(lab, port) for port in dead), "the switches have seen it")
        for _ in range(3):
            reach_all(guests)
    finally:
        os.kill(southbound, signal.SIGCONT)
    wait_dead(world, 1)
    flows = [Flow(guests["a"], guests["b"], RATE).start()]
    flows.append(Flow(guests["c"], guests["a"], RATE, port=7_705).start())
    mend(leaf, "spine1")
    wait_dead(world, 0)
    assert lossless(*flows)
    reach_all(guests)


def lives(lab, port):
    """Whether a switch takes a port for alive."""
    switch = port.rsplit("-", 1)[0]
    told = lab.ofctl("dump-ports-desc", switch, str(lab.port_number(port)))
    return "LIVE" in told


def test_a_spine_that_dies_and_comes_back(world, guests):
    bystander = Stream(guests["b"], guests["c"], port=7_712).start()
    world.lab.isolate("spine2")
    wait_dead(world, 3)
    reach_all(guests)
    flows = [Flow(guests["a"], guests["b"], RATE).start()]
    flows.append(Flow(guests["c"], guests["a"], RATE, port=7_705).start())
    world.lab.rejoin("spine2")
    wait_dead(world, 0)
    assert lossless(*flows)
    reach_all(guests)
    told = bystander.stop()
    assert (told.survived, told.failure) == (True, "")


def test_an_edge_cut_off_from_everything_comes_back_and_nobody_else_notices(world, guests):
    """Cut off from the fabric, and from the controller, which changes things meanwhile."""
    lab = world.lab
    edge = lab.dpid("leaf3")
    with Flow(guests["a"], guests["b"], RATE) as flow:
        lab.isolate("leaf3")
        lab.vsctl("del-controller", "leaf3")
        wait_until(lambda: not connected(world, edge), "leaf3 is gone")
        wait_dead(world, 2)
        late = world.define("late", world.subnets["a"])
        world.place(late, "leaf1-h1")
        lab.rejoin("leaf3")
        lab.vsctl("set-controller", "leaf3", f"tcp:{lab.controller[0]}:{lab.controller[1]}")
        wait_until(lambda: connected(world, edge), "leaf3 is back")
        wait_dead(world, 0)
        assert lossless(flow)
    reach_all({**guests, "late": late})
    world.drop(late)


def connected(world, datapath):
    """Whether a switch is connected, as the brain knows."""
    client: Client = world.client
    return any(p.connected for p in client.topology().progress if p.datapath == datapath)


def test_two_failures_leave_the_long_way_and_mending_loses_nothing(world, guests):
    """leaf1 has but spine1, leaf2 but spine2: between them goes a repair tree by leaf3."""
    for leaf, spine in (("leaf1", "spine2"), ("leaf2", "spine1")):
        world.lab.link_down(leaf, spine)
    wait_dead(world, 2)
    reach_all(guests)
    flows = [Flow(guests["a"], guests["b"], RATE).start()]
    flows.append(Flow(guests["c"], guests["a"], RATE, port=7_705).start())
    for leaf, spine in (("leaf1", "spine2"), ("leaf2", "spine1")):
        world.lab.link_up(leaf, spine)
    wait_dead(world, 0)
    assert lossless(*flows)
    reach_all(guests)


def test_a_failure_and_its_repair_leave_the_core_as_it_was(world, guests):
    before = world.tables(*world.lab.cores)
    everything = world.tables(*world.lab.edges, *world.lab.cores)
    world.lab.link_down("leaf1", "spine1")
    wait_dead(world, 1)
    assert world.tables(*world.lab.cores) == before
    world.lab.link_up("leaf1", "spine1")
    wait_dead(world, 0)
    assert world.tables(*world.lab.edges, *world.lab.cores) == everything
