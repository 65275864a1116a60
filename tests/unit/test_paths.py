"""Paths: every edge is reached by every other, also around a link or switch that has just died,
and nothing ever goes in circles."""

from __future__ import annotations

from itertools import combinations, pairwise

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.act.dataplane import paths
from controller.act.dataplane.detours import independent_trees
from controller.act.dataplane.pipeline import DETOURS, PLANNED, REPAIRS
from controller.act.dataplane.view import FabricView
from controller.model.addresses import format_dpid
from tests.unit.label_machine import POPPED, Cable, Machine, fabric
from topologies.generate import fat_tree, leaf_spine
from topologies.model import Fabric, Role


@st.composite
def cablings(draw: st.DrawFn) -> list[Cable]:
    """A fabric in one piece, perhaps with parallel cables."""
    size = draw(st.integers(2, 7))
    tree = [(draw(st.integers(1, s - 1)), s) for s in range(2, size + 1)]
    pairs = st.sampled_from(list(combinations(range(1, size + 1), 2)))
    return tree + draw(st.lists(pairs, max_size=size + 2))


def graph(cables: list[Cable], dead: frozenset[int] = frozenset()) -> nx.MultiGraph:
    drawn = nx.MultiGraph()
    drawn.add_nodes_from(s for cable in cables for s in cable)
    drawn.add_edges_from(c for i, c in enumerate(cables) if i not in dead)
    return drawn


def named(cables: list[Cable]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {}
    for a, b in cables:
        near.setdefault(str(a), set()).add(str(b))
        near.setdefault(str(b), set()).add(str(a))
    return near


@settings(max_examples=50)
@given(cablings())
def test_the_two_detours_share_no_more_than_they_must(cables: list[Cable]) -> None:
    near = named(cables)
    simple = nx.Graph(graph(cables))
    for root in near:
        trees = independent_trees(near, root)
        assert trees.keys() == near.keys() - {root}
        for switch in trees:
            ways = []
            for tree in (0, 1):
                way = [switch]
                while way[-1] != root:
                    way.append(trees[way[-1]][tree])
                    assert way[-1] in near[way[-2]]
                    assert len(way) <= len(near)
                ways.append(way)
            between = set(ways[0][1:-1]) & set(ways[1][1:-1])
            for joint in between:
                rest = simple.copy()
                rest.remove_node(int(joint))
                assert not nx.has_path(rest, int(switch), int(root))
            links = [{frozenset(x) for x in pairwise(w)} for w in ways]
            for a, b in map(tuple, links[0] & links[1]):
                rest = simple.copy()
                rest.remove_edge(int(a), int(b))
                assert not nx.has_path(rest, int(switch), int(root))


def check(machine: Machine, cables: list[Cable], must: nx.MultiGraph) -> None:
    """Who is joined in `must` reaches each other over every choice."""
    edges = machine.view.routes.plan.edges
    for ingress in edges:
        for egress in edges:
            if ingress == egress:
                continue
            a, b = int(ingress, 16), int(egress, 16)
            joined = must.has_node(a) and must.has_node(b) and nx.has_path(must, a, b)
            for way in machine.ways(ingress, egress):
                if joined:
                    assert way[-2:] == [egress, POPPED], (way, cables)


@settings(max_examples=50)
@given(cablings())
def test_any_link_may_die_before_the_controller_knows(cables: list[Cable]) -> None:
    view = FabricView.of(fabric(cables, sorted(graph(cables))))
    machine = Machine(view)
    for cut in range(len(cables)):
        machine.dead = frozenset({cut})
        check(machine, cables, graph(cables, machine.dead))


@settings(max_examples=25)
@given(cablings())
def test_any_switch_may_die_before_the_controller_knows(cables: list[Cable]) -> None:
    view = FabricView.of(fabric(cables, sorted(graph(cables))))
    machine = Machine(view)
    for switch in graph(cables):
        machine.dead = frozenset(i for i, cable in enumerate(cables) if switch in cable)
        left = graph(cables, machine.dead)
        left.remove_node(switch)
        check(machine, cables, left)


@settings(max_examples=50)
@given(cablings(), st.data())
def test_whatever_dies_nothing_goes_in_circles_and_the_controller_finds_what_is_left(
    cables: list[Cable], data: st.DataObject
) -> None:
    some = st.sets(st.integers(0, len(cables) - 1))
    edges = data.draw(st.sets(st.sampled_from(sorted(graph(cables))), min_size=2))
    known, dead = data.draw(some), frozenset(data.draw(some))
    view = FabricView.of(fabric(cables, sorted(edges), known))
    machine = Machine(view, dead)
    check(machine, cables, nx.MultiGraph())
    machine.dead = frozenset(known)
    check(machine, cables, graph(cables, machine.dead))


@settings(max_examples=50)
@given(cablings(), st.data())
def test_what_carries_packets_is_used_whoever_takes_it_for_dead(
    cables: list[Cable], data: st.DataObject
) -> None:
    """Switches that were too busy for BFD, however many, also when the controller was told."""
    some = st.sets(st.integers(0, len(cables) - 1))
    every = set(range(len(cables)))
    told = data.draw(st.sampled_from([set(), every]) | some)
    view = FabricView.of(fabric(cables, sorted(graph(cables)), told))
    machine = Machine(view)
    for doubted in (every, data.draw(some)):
        machine.doubted = frozenset(doubted)
        check(machine, cables, graph(cables))


@settings(max_examples=25)
@given(cablings(), st.data())
def test_a_failure_changes_nothing_in_the_plan(cables: list[Cable], data: st.DataObject) -> None:
    edges = sorted(graph(cables))
    down = data.draw(st.sets(st.integers(0, len(cables) - 1)))
    whole, hurt = (FabricView.of(fabric(cables, edges, d)).routes for d in ((), down))
    assert whole.plan == hurt.plan
    for ingress, towards in hurt.used.items():
        for edge, trees in towards.items():
            before = dict(whole.trees(edge, ingress))
            assert all(t in REPAIRS or before[t] == hop for t, hop in trees)


def test_where_no_way_is_left_the_planned_trees_stay() -> None:
    cables, edges = cabled(leaf_spine(3, 2))
    cut = [i for i, cable in enumerate(cables) if edges[0] in cable]
    whole, hurt = (FabricView.of(fabric(cables, edges, d)).routes for d in ((), cut))
    lost, one, other = (format_dpid(e) for e in edges)
    assert hurt.trees(lost, one) == whole.trees(lost, one) != ()
    assert hurt.trees(one, lost) == whole.trees(one, lost) != ()
    assert hurt.trees(other, one) == whole.trees(other, one)


def cabled(made: Fabric) -> tuple[list[Cable], list[int]]:
    """Cables and edges of a fabric, by the numbers of its datapaths."""
    number = {s.name: n for n, s in enumerate(made.switches, 1)}
    edges = [number[s.name] for s in made.of_role(Role.EDGE)]
    return [(number[c.a], number[c.b]) for c in made.cables], edges


def test_a_leaf_reaches_another_by_every_spine() -> None:
    cables, edges = cabled(leaf_spine(3, 4))
    view = FabricView.of(fabric(cables, edges))
    one, other = (format_dpid(e) for e in edges[:2])
    ways = list(Machine(view).ways(one, other))
    assert len(ways) == 4
    assert len({tuple(way) for way in ways}) == 4
    assert {len(way) for way in ways} == {4}  # leaf, spine, leaf, "popped"


def test_the_detour_from_a_spine_goes_by_a_leaf_and_another_spine() -> None:
    cables, edges = cabled(leaf_spine(2, 2))
    view = FabricView.of(fabric(cables, edges))
    one, other = (format_dpid(e) for e in edges)
    for cut, cable in enumerate(cables):
        if edges[1] in cable:
            lengths = sorted(len(w) for w in Machine(view, frozenset({cut})).ways(one, other))
            assert lengths == [4, 6]


def test_all_cores_of_a_fat_tree_are_used_and_its_core_rules_stay_few() -> None:
    cables, edges = cabled(fat_tree(4))
    view = FabricView.of(fabric(cables, edges))
    ways = list(Machine(view).ways(format_dpid(edges[0]), format_dpid(edges[-1])))
    assert len({tuple(way) for way in ways}) == 4
    carried = view.routes.plan.carried
    planned = sum(tree in PLANNED for rules in carried.values() for _, tree in rules)
    detours = sum(tree in DETOURS for rules in carried.values() for _, tree in rules)
    # Two detours to every edge from every other switch are the most that there can be.
    assert detours <= len(DETOURS) * len(edges) * (len(carried) - 1)
    # Four trees, each of which has at most one step at a switch.
    assert planned <= 4 * len(edges) * (len(carried) - 1)


def test_parallel_cables_share_the_load_and_stand_in_for_each_other() -> None:
    view = FabricView.of(fabric([(1, 2), (1, 2)], [1, 2]))
    one, other = (format_dpid(n) for n in (1, 2))
    used = view.routes.trees(other, one)
    assert [hop.ports for _, hop in used] == [(10, 11), (11, 10)]
    assert [hop.detour for _, hop in used] == [None, None]


def test_a_plan_does_not_depend_on_the_order_in_which_links_were_found() -> None:
    cables, edges = cabled(leaf_spine(3, 3))
    near: dict[str, dict[str, tuple[int, ...]]] = {}
    for index, (a, b) in enumerate(cables):
        near.setdefault(str(a), {})[str(b)] = (index,)
        near.setdefault(str(b), {})[str(a)] = (index,)
    turned = {s: dict(reversed(list(n.items()))) for s, n in reversed(list(near.items()))}
    names = [str(e) for e in edges]
    made, other = paths.plan(near, names), paths.plan(turned, list(reversed(names)))
    assert made.trees == other.trees
    assert made.carried == other.carried
