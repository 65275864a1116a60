"""Links that go and come back, and links that were never there."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from controller.act.dataplane import lldp
from controller.model.nouns import Nic, Vm
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Stream, probe
from tests.fabric.world import Tap, fence, udp

pytestmark = pytest.mark.fabric

#: Silence counts only after ages: what is found here is found by port status.
SETTINGS = {
    "PLEACH_SOUTHBOUND__LLDP_S": "0.5",
    "PLEACH_SOUTHBOUND__LINK_TIMEOUT_S": "3600",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "1000",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "3600",
}


@pytest.fixture(scope="module")
def guests(world):
    """One guest on each edge, and more on the first to have many connections."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    hosts = {"a": "leaf1-h1", "b": "leaf1-h2", "c": "leaf2-h1", "d": "leaf2-h2"}
    return {name: world.vm(name, one, host) for name, host in hosts.items()}


def up(world):
    """Links that are up, as (datapath, port)."""
    return {(k.datapath, k.port) for k in world.client.topology().links if k.up}


def wait_links(world, number):
    wait_until(lambda: len(up(world)) == number, f"{number} links are up")
    world.applied()


def reach_all(guests, version=4):
    """Everybody reaches everybody, over many connections."""
    pairs = [(a, b) for a in guests.values() for b in guests.values() if a is not b]
    assert probe(pairs, version=version).reachable == {(a.name, b.name) for a, b in pairs}
    with Tap(guests["a"]) as out, Tap(guests["c"]) as into:
        fence(out, into)


@pytest.mark.parametrize("spine", ["spine1", "spine2"])
def test_traffic_goes_on_over_the_other_spine(world, guests, spine):
    whole = world.tables(*world.lab.edges, *world.lab.cores)
    world.lab.link_down("leaf1", spine)
    wait_links(world, 6)
    reach_all(guests)
    reach_all(guests, 6)
    with Tap(guests["a"]) as out, Tap(guests["c"]) as into:
        shout = udp(guests["a"], guests["c"], b"shout", mac="ff:ff:ff:ff:ff:ff", dst="10.0.0.255")
        out.send(shout)
        into.payload(b"shout")
        fence(out, into)
        assert into.got(b"shout") == 1
    world.lab.link_up("leaf1", spine)
    wait_links(world, 8)
    reach_all(guests)
    assert world.tables(*world.lab.edges, *world.lab.cores) == whole


def test_connections_survive_a_link_that_goes_and_comes_back(world, guests):
    with (
        Stream(guests["a"], guests["c"]) as one,
        Stream(guests["d"], guests["b"], port=7_711) as two,
    ):
        for spine in ("spine1", "spine2"):
            world.lab.link_down("leaf1", spine)
            wait_links(world, 6)
            world.lab.link_up("leaf1", spine)
            wait_links(world, 8)
        results = [one.stop(), two.stop()]
    assert [(r.survived, r.failure) for r in results] == [(True, "")] * 2


def test_an_edge_cut_off_and_back(world, guests):
    world.lab.isolate("leaf2")
    wait_links(world, 4)
    assert guests["a"].ping(guests["b"].ipv4, count=2)
    assert guests["c"].ping(guests["d"].ipv4, count=2)
    assert guests["c"].ping("10.0.0.1", count=2)
    assert not guests["a"].ping(guests["c"].ipv4)
    world.lab.rejoin("leaf2")
    wait_links(world, 8)
    reach_all(guests)


def forged(sender_dpid, sender_port, secret=b"guessed"):
    """What discovery would send, but for the secret."""
    return lldp.build(sender_dpid, sender_port, secret, ttl_s=30)


def test_lldp_that_a_vm_made_up_creates_no_link(world, guests):
    a = guests["a"]
    before = up(world)
    dpid = world.lab.dpid("leaf2")
    captured = []
    stranger = world.define("stranger", world.subnets["a"])
    port = world.plug(stranger, "leaf1-h1")
    with Tap(a) as out, Tap(stranger) as ear:
        # A port that no VM has yet hears the fabric's own frames: true ones to be replayed.
        captured.append(bytes(ear.until(lambda f: f.type == 0x88CC, "a frame of discovery")))
        frames = [forged(dpid, 1), forged(dpid, 99), captured[0]]
        frames.append(bytes(Ether(frames[0]) / Raw(b"trailing")))
        for source in (out, ear):
            source.send(*frames)
        read = world.received(port)
        ear.send(*frames)
        wait_until(lambda: world.received(port) >= read + len(frames), "the switch read them")
    world.client.delete(Vm, "stranger")
    world.lab.remove_vm("stranger")
    world.applied()
    # What came up before a frame of discovery was dealt with before it: a link that is cut
    # and found again shows that all of it was.
    world.lab.link_down("leaf1", "spine1")
    wait_links(world, 6)
    world.lab.link_up("leaf1", "spine1")
    wait_links(world, 8)
    assert {(k.datapath, k.port) for k in world.client.topology().links} == before


def test_a_wire_between_two_ports_of_vms_is_no_link(world, guests):
    """Two ports joined behind the fabric's back look like a link, until VMs are placed there."""
    lab, subnet = world.lab, world.subnets["a"]
    ends = {"x": ("leaf1", "leaf1-h1", "back-1"), "y": ("leaf2", "leaf2-h1", "back-2")}
    for (edge, _, port), (_, _, peer) in zip(ends.values(), reversed(ends.values()), strict=True):
        patch = ("type=patch", f"options:peer={peer}")
        lab.vsctl("add-port", edge, port, "--", "set", "Interface", port, *patch)

    def crossing(edge, port):
        """Whether packets for another edge go out of a port."""
        out = f"output:{lab.port_number(port)}"
        buckets = [b.rstrip(",") for g in world.groups(edge) for b in g.split("bucket=")]
        return any("watch_port" in b and b.endswith(out) for b in buckets)

    wait_links(world, 10)
    assert crossing("leaf1", "back-1")
    for name, (_, host, port) in ends.items():
        number = ord(name)
        nic = Nic(mac=f"02:00:00:00:aa:{number:02x}", subnet=subnet.id, ipv4=subnet.cidr[number])
        world.client.put(Vm(id=name, tenant="red", nics=(nic,)))
        world.client.place(name, host, [port])
    world.applied()
    for edge, _, port in ends.values():
        assert not crossing(edge, port)
    reach_all(guests)
    for name, (edge, _, port) in ends.items():
        world.client.delete(Vm, name, force=True)
        lab.remove_ports(edge, [port])
    wait_links(world, 8)
