"""Paths that are chosen for the traffic: weights are realised, changed without a loss, and gone
around where a link of them fails."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from controller.act.dataplane.pipeline import Class, TableId
from controller.api import NewReservation
from controller.model.nouns import LinkSpeed, Mark, Marking, RouteClass, Tunnel
from controller.store.traffic import read_rows
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, probe
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(2, 2)
SETTINGS = {
    "PLEACH_PATHS__ENABLED": "true",
    # Whose marks are those of a policy.
    "PLEACH_BANDWIDTH__ENABLED": "false",
    "PLEACH_PATHS__MEASURE_S": "1",
    "PLEACH_PATHS__LOOK_S": "0.1",
    "PLEACH_PATHS__EVERY_S": "3600",
    "PLEACH_SOUTHBOUND__LLDP_S": "0.5",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "1000",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "3600",
}
RATE = 100
GBIT = 10**9
_LABEL = re.compile(r"set_field:(\d+)->mpls_label")


@pytest.fixture(scope="module")
def guests(world):
    """A guest on each leaf."""
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    return world.vm("a", one, "leaf1-h1"), world.vm("b", one, "leaf2-h1")


@pytest.fixture(scope="module")
def flow(world, guests):
    """What paths are chosen for; nothing of it is ever lost."""
    with Flow(*guests, RATE) as flow:
        yield flow


def bulk(world):
    """The route of bulk traffic from one leaf to the other, as REST tells it."""
    return next(
        route
        for route in world.client.paths("leaf1-h1", "leaf2-h1").routes
        if route.traffic_class is RouteClass.BULK
    )


def shares(world):
    """Buckets by the spine that they lead over."""
    names = {world.lab.dpid(s): s for s in world.lab.cores}
    route = bulk(world)
    return {names[way.nodes[1]]: way.buckets for way in route.ways} if route.chosen else {}


def ports(world):
    """By port, in how many buckets of the same group of leaf1 packets leave there."""
    tree = {way.tree: way.nodes[1] for way in bulk(world).ways}
    names = {world.lab.dpid(s): s for s in world.lab.cores}
    for group in world.groups("leaf1"):
        trees = [int(label) >> 2 & 63 for label in _LABEL.findall(group)]
        if len(trees) == 32 and set(trees) == set(tree):
            return Counter(names[tree[number]] for number in trees)
    return Counter()


def speed(world, spine, bps):
    """Say what the links of a spine carry."""
    for port in world.lab.cable_ports(spine):
        key = f"{world.lab.dpid(spine)}:{world.lab.port_number(port)}"
        link = next(k for k in world.client.topology().links if k.key == key)
        for end in (key, f"{link.to_datapath}:{link.to_port}"):
            world.client.put(LinkSpeed(id=end, speed=bps))


def wait_shares(world, **wanted):
    """Return once the weights are as wanted, but for what a few kilobits more or less do."""

    def close():
        found = shares(world)
        return found.keys() == wanted.keys() and all(
            abs(found[spine] - count) <= 2 for spine, count in wanted.items()
        )

    try:
        wait_until(close, f"weights {wanted}", 30)
    except TimeoutError as error:
        route = bulk(world)
        raise AssertionError(f"{shares(world)} instead of {wanted}: {route.reasons}") from error
    world.applied()


def wait_both(world):
    """Return once both spines are used. How much each takes depends on what was measured last."""
    wait_until(lambda: shares(world).keys() == {"spine1", "spine2"}, "both spines are used", 30)
    world.applied()


def test_weights_follow_what_links_carry_and_nothing_is_lost(world, flow):
    wait_until(lambda: world.client.path_decisions().items, "paths are decided", 30)
    speed(world, "spine1", 3 * GBIT)
    speed(world, "spine2", GBIT)
    wait_shares(world, spine1=24, spine2=8)
    assert ports(world) == shares(world)
    labels = {way.tree: way.nodes for way in bulk(world).ways}
    speed(world, "spine1", GBIT)
    wait_shares(world, spine1=16, spine2=16)
    assert ports(world) == shares(world)
    # Other weights are no other labels.
    assert {way.tree: way.nodes for way in bulk(world).ways} == labels


def test_a_tunnel_has_less_for_others_while_it_is_reserved(world, flow):
    links = world.client.topology().links
    link = next(k for k in links if k.datapath == world.lab.dpid("leaf1")
                and k.to_datapath == world.lab.dpid("spine2"))  # fmt: skip
    world.client.put(Tunnel(id="wan", link=link.key, capacity=GBIT))

    world.client.reserve("wan", NewReservation(id="move", rate=GBIT * 2 // 3))
    wait_shares(world, spine1=24, spine2=8)
    world.client.release("move")
    wait_shares(world, spine1=16, spine2=16)
    world.client.delete(Tunnel, "wan")


def test_urgent_traffic_has_a_group_of_its_own(world, flow):
    wait_until(
        lambda: all(k.latency_s is not None for k in world.client.topology().links), "latencies", 30
    )
    before = world.client.path_decisions().items[0].id
    speed(world, "spine1", 2 * GBIT)
    wait_until(lambda: world.client.path_decisions().items[0].id > before, "a decision")
    world.applied()
    urgent = next(
        route
        for route in world.client.paths("leaf1-h1", "leaf2-h1").routes
        if route.traffic_class is RouteClass.INTERACTIVE
    )
    assert urgent.chosen
    assert sum(way.buckets for way in urgent.ways) == 32
    table = f"table={TableId.PATH.value},"
    assert any("reg5=0x1 " in line and table in line for line in world.flows("leaf1"))
    speed(world, "spine1", GBIT)
    wait_shares(world, spine1=16, spine2=16)


def test_what_is_marked_as_urgent_is_counted_and_carried_as_such(world, flow):
    store = world.deployment.store
    leaf1, leaf2 = (world.lab.dpid(leaf) for leaf in ("leaf1", "leaf2"))

    def urgent():
        rows = [row for row in read_rows(store, 0.0) if row.datapath == leaf1]
        return rows[-1].rates.get(leaf2, {}).get(RouteClass.INTERACTIVE, 0.0) > 0

    assert not urgent()
    with store.transaction() as tx:
        mark = Mark(name="voice", dscp=46, paths=Class.INTERACTIVE)
        tx.put(Marking(vm="a", default=mark))
    world.applied()
    wait_until(urgent, "it is measured", 30)
    with store.transaction() as tx:
        tx.delete(Marking, "a")
    world.applied()


def test_all_that_was_never_lost(flow):
    assert [(r.lost, r.errors) for r in flow.stop()] == [(0, 0)] * 2


@pytest.fixture
def again(world, guests):
    """What paths are chosen for; some of it may be lost."""
    with Flow(*guests, RATE, port=9_500) as flow:
        yield flow


def test_a_link_of_a_chosen_path_fails_and_comes_back(world, guests, again):
    world.lab.link_down("leaf1", "spine1")
    wait_shares(world, spine2=32)
    # That is what the ingress does by itself, before anything else is decided.
    wait_until(
        lambda: world.client.path_decisions().items[0].trigger.startswith("links down: "),
        "a decision",
    )
    for version in (4, 6):
        assert probe([guests], version=version).reachable == {("a", "b")}
    world.lab.link_up("leaf1", "spine1")
    wait_both(world)


def test_without_a_brain_what_was_chosen_stays_and_fails_over(world, guests, again):
    world.deployment.kill("brain")
    world.lab.link_down("leaf1", "spine1")
    assert probe([guests]).reachable == {("a", "b")}
    world.lab.link_up("leaf1", "spine1")
    world.deployment.launch("brain")
    wait_both(world)
