"""Links and switches that die under traffic: the switches go around them by themselves, also
where only BFD can tell and where there is no controller; and they come back without a loss."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from controller.client import Client
from controller.model.nouns import Watch
from mininet_labs import netns
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
#: A switch in user space that has to wait for a second still has room for what comes meanwhile.
RATE = 100
OFFLOADS = ("tx", "off", "tso", "off", "gso", "off", "gro", "off")


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


def test_switches_that_were_too_busy_for_bfd_drop_nothing(world, guests):
    """A daemon that does not run for a while takes all its links for dead, and is taken for dead
    by those around it; what waited for it meanwhile goes on nevertheless."""
    lab = world.lab
    ports = [port for switch in (*lab.edges, *lab.cores) for port in lab.cable_ports(switch)]
    daemon = int((Path(os.environ["OVS_RUNDIR"]) / "ovs-vswitchd.pid").read_text())

    def flaps():
        return [lab.vsctl("get", "Interface", port, "bfd_status:flap_count") for port in ports]

    def too_busy():
        os.kill(daemon, signal.SIGSTOP)
        time.sleep(0.7)
        os.kill(daemon, signal.SIGCONT)
        return flaps() != before

    before = flaps()
    # Few enough packets that those of the pause fit into the buffers of the ports.
    flows = [Flow(guests["a"], guests["b"], RATE / 2).start()]
    flows.append(Flow(guests["c"], guests["a"], RATE / 2, port=7_705).start())
    wait_until(too_busy, "a session of BFD has ended")
    wait_dead(world, 0)
    assert lossless(*flows)


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


@pytest.fixture
def more_cables(world):
    """Makes cables that the lab does not know of, and takes them away again."""
    made = []

    def cable(a, b, name, prepare=lambda port: None):
        ends = {f"{name}a": a, f"{name}b": b}
        netns.call("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
        for port, switch in ends.items():
            netns.call("ethtool", "-K", port, *OFFLOADS)
            netns.call("ip", "link", "set", port, "mtu", "1600", "up")
            prepare(port)
            made.append((switch, port))
            # Open vSwitch takes other people's filters off a port, unless told that it has none.
            untouched = ("qos=@none", "--", "--id=@none", "create", "QoS", "type=linux-noop")
            world.lab.vsctl("add-port", switch, port, "--", "set", "Port", port, *untouched)
        return [(world.lab.dpid(s), world.lab.port_number(p)) for p, s in ends.items()]

    yield cable
    for switch, port in made:
        world.lab.vsctl("del-port", switch, port)
    for _, port in made[::2]:
        netns.call("ip", "link", "del", port)
    wait_dead(world, 0)


def test_a_parallel_cable_carries_what_is_left(world, guests, more_cables):
    ends = more_cables("leaf1", "spine1", "twin")
    wait_until(lambda: all(e in links(world) and links(world)[e].up for e in ends), "it is up")
    world.applied()
    reach_all(guests)
    for spine in ("spine1", "spine2"):
        world.lab.link_down("leaf1", spine)
    wait_until(lambda: sum(k.up for k in links(world).values()) == 2 * 5, "leaf1 has but the twin")
    world.applied()
    reach_all(guests)
    for spine in ("spine1", "spine2"):
        world.lab.link_up("leaf1", spine)


def no_bfd(port):
    """Let everything out of a port but BFD (UDP to port 3784, RFC 5881)."""
    filtering = ["qdisc add dev {} root handle 5: htb default 1"]
    filtering += ["class add dev {} parent 5: classid 5:1 htb rate 10gbit quantum 3200"]
    filtering += ["class add dev {} parent 5: classid 5:2 htb rate 10gbit quantum 3200"]
    filtering += ["qdisc add dev {} parent 5:2 tbf rate 8bit burst 10b limit 10b"]
    match = "u32 match ip protocol 17 0xff match ip dport 3784 0xffff"
    filtering += [f"filter add dev {{}} parent 5: protocol ip {match} flowid 5:2"]
    netns.batch("tc", [line.format(port) for line in filtering])


def test_a_link_that_carries_no_bfd_is_watched_by_lldp(world, guests, more_cables):
    ends = more_cables("leaf1", "leaf2", "deaf", no_bfd)
    wait_until(lambda: all(e in links(world) for e in ends), "it is discovered")
    assert not any(links(world)[e].up for e in ends)
    wait_until(lambda: all(links(world)[e].up for e in ends), "it is used without BFD")
    assert {links(world)[e].watch for e in ends} == {Watch.PORT}
    world.applied()
    reach_all(guests)
