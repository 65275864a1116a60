"""The other fabrics: a fat-tree and a hybrid, each once through."""

from __future__ import annotations

import pytest

from controller.model.nouns import Host
from mininet_labs.deployment import Deployment
from mininet_labs.lab import Lab
from mininet_labs.sandbox import work_dir
from mininet_labs.traffic import Flow, probe
from tests.fabric.world import Tap, World, fence, udp
from topologies.generate import fat_tree, hybrid

pytestmark = pytest.mark.fabric

FABRICS = {"fat-tree": (fat_tree(4), 20), "hybrid": (hybrid(2, 1, 1, 1, 1), 9)}


@pytest.mark.parametrize("name", FABRICS)
def test_a_tenant_all_over_a_fabric(name, record_property):
    fabric, switches = FABRICS[name]
    assert len(fabric.switches) == switches
    with Deployment(work_dir() / name, {"PLEACH_PATHS__ENABLED": "false"}) as deployment:
        deployment.start()
        with Lab(fabric, controller=deployment.controller) as lab:
            world = World(lab, deployment)
            for host in fabric.hosts:
                deployment.client.put(Host(id=host.name, datapath=lab.dpid(host.edge)))
            try:
                world.whole()
                core = world.tables(*lab.cores)
                cross(world)
                assert world.tables(*lab.cores) == core
            except BaseException:
                record_property("southbound.log", deployment.log("southbound")[-20_000:])
                raise


def cross(world):
    """Guests on every edge, in two subnets: all reach all, a broadcast comes once, and a guest
    moves from one end to the other."""
    world.tenant("red")
    subnets = (
        world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64"),
        world.subnet("two", "red", "10.0.1.0/24", "fd00:2::/64"),
    )
    hosts = [host.name for host in world.lab.fabric.hosts]
    guests = [world.define(f"v{n}", subnets[n % 2]) for n in range(len(hosts))]
    for guest, host in zip(guests, hosts, strict=True):
        world.place(guest, host)
    world.applied()
    pairs = [(a, b) for a in guests for b in guests if a is not b]
    for version in (4, 6):
        reach = probe(pairs, version=version)
        assert reach.reachable == {(a.name, b.name) for a, b in pairs}
    first, last = guests[0], guests[2 * ((len(guests) - 1) // 2)]
    with Tap(first) as out, Tap(last) as into:
        out.send(udp(first, last, b"shout", mac="ff:ff:ff:ff:ff:ff", dst="10.0.0.255"))
        into.payload(b"shout")
        fence(out, into)
        assert into.got(b"shout") == 1
    with Flow(guests[1], last, 200) as flow:
        old, port = last.active, world.plug(last, hosts[0])
        source = hosts[guests.index(last)]
        world.client.start_migration("m", last.name, source, hosts[0], [port])
        world.applied()
        last.switch_over(port)
        world.wait_phase("m", "settling", "finished")
        last.unplug(old)
        assert [(r.lost, r.errors) for r in flow.stop()] == [(0, 0), (0, 0)]
