"""Chosen paths: whatever routes ask for, every tree leads to its edge; weights are realised as
they were decided; and what fails is gone around."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from controller.act.dataplane.compiler import Compiler, GroupKey
from controller.act.dataplane.pipeline import (
    WEIGHTED,
    Class,
    GroupKind,
    Payload,
    path_group,
    path_of_group,
)
from controller.act.dataplane.rollout import Step, step_of
from controller.act.dataplane.view import FabricView
from controller.model.addresses import format_dpid
from controller.model.nouns import Route, RouteClass, Way
from controller.model.state import Change
from tests.unit.label_machine import POPPED, Cable, Machine, fabric
from tests.unit.test_paths import cablings, check, graph

SQUARE: list[Cable] = [(1, 2), (2, 4), (1, 3), (3, 4), (1, 4)]
LEFT, DIRECT, RIGHT = (1, 2, 4), (1, 4), (1, 3, 4)


def route(*ways: tuple[tuple[int, ...], int, int], kind: RouteClass = RouteClass.BULK) -> Route:
    """A route over ways: their switches, their tree, and how many buckets each has."""
    made, first = [], 0
    for nodes, tree, count in ways:
        buckets = tuple(range(first, first + count))
        made.append(Way(nodes=tuple(map(format_dpid, nodes)), tree=tree, buckets=buckets))
        first += count
    return Route(
        ingress=made[0].nodes[0], egress=made[0].nodes[-1], traffic_class=kind, ways=tuple(made)
    )


def taken(machine: Machine, kind: Class = Class.DEFAULT) -> Counter[tuple[int, ...]]:
    """How many buckets of the group from 1 to 4 lead which way."""
    ways = list(machine.ways(format_dpid(1), format_dpid(4), kind))
    assert all(way[-1] == POPPED for way in ways)
    return Counter(tuple(int(node, 16) for node in way[:-1]) for way in ways)


@st.composite
def routed(draw: st.DrawFn) -> tuple[list[Cable], list[Route]]:
    """A fabric, and routes over simple paths that may contradict each other."""
    cables = draw(cablings())
    simple = nx.Graph(graph(cables))
    routes = {}
    for _ in range(draw(st.integers(1, 8))):
        one, other = draw(st.permutations(sorted(simple)))[:2]
        found = list(nx.all_simple_paths(simple, one, other, cutoff=5))[:6]
        ways = draw(st.lists(st.sampled_from(found or [(one, other)]), min_size=1, max_size=3))
        trees = st.sampled_from([*WEIGHTED[:2], 5])
        made = route(
            *((tuple(way), draw(trees), draw(st.integers(1, 3))) for way in ways),
            kind=draw(st.sampled_from(RouteClass)),
        )
        routes[made.key] = made
    return cables, list(routes.values())


@settings(max_examples=30)
@given(routed(), st.data())
def test_whatever_is_asked_for_and_dies_nothing_goes_in_circles(
    drawn: tuple[list[Cable], list[Route]], data: st.DataObject
) -> None:
    cables, routes = drawn
    edges = sorted(graph(cables))
    known = data.draw(st.sets(st.integers(0, len(cables) - 1), max_size=2))
    view = FabricView.of(fabric(cables, edges, known, routes))
    machine = Machine(view, frozenset(known))
    check(machine, cables, graph(cables, machine.dead))
    if not known:
        for cut in range(len(cables)):
            machine.dead = frozenset({cut})
            check(machine, cables, graph(cables, machine.dead))


def test_weights_are_numbers_of_equal_buckets() -> None:
    asked = route((DIRECT, 48, 5), (LEFT, 49, 2), (RIGHT, 50, 1))
    view = FabricView.of(fabric(SQUARE, [1, 4], routes=[asked]))
    assert taken(Machine(view)) == {DIRECT: 5, LEFT: 2, RIGHT: 1}


def test_a_class_has_a_group_of_its_own_and_the_rest_goes_with_the_bulk() -> None:
    urgent = route((DIRECT, 50, 4), kind=RouteClass.INTERACTIVE)
    bulk = route((LEFT, 48, 1), (RIGHT, 49, 1))
    machine = Machine(FabricView.of(fabric(SQUARE, [1, 4], routes=[urgent, bulk])))
    assert taken(machine) == {LEFT: 1, RIGHT: 1}
    assert taken(machine, Class.INTERACTIVE) == {DIRECT: 4}
    # Nothing was chosen for the way back.
    back = path_group(1, Payload.IPV4, Class.INTERACTIVE)
    assert back not in machine.groups[format_dpid(4)]


def test_buckets_of_a_broken_way_go_by_the_others_which_keep_theirs() -> None:
    asked = route((DIRECT, 48, 2), (LEFT, 49, 3), (RIGHT, 50, 3))
    whole = FabricView.of(fabric(SQUARE, [1, 4], routes=[asked]))
    hurt = FabricView.of(fabric(SQUARE, [1, 4], [1], [asked]))  # the cable from 2 to 4
    ends = format_dpid(1), format_dpid(4)
    before = whole.routes.weighted.buckets(*ends, RouteClass.BULK)
    after = hurt.routes.weighted.buckets(*ends, RouteClass.BULK)
    assert len(after) == len(before)
    assert all(a == b for a, b in zip(after, before, strict=True) if b[0] != 49)
    assert {tree for tree, _ in after} == {48, 50}
    # What is laid stays as it is.
    assert hurt.routes.weighted.laid == whole.routes.weighted.laid


def test_without_a_whole_way_the_planned_trees_are_used() -> None:
    asked = route((LEFT, 48, 2))
    view = FabricView.of(fabric(SQUARE, [1, 4], [0], [asked]))
    assert taken(Machine(view, frozenset({0}))) == {DIRECT: 1}


@pytest.mark.parametrize(
    "asked",
    [
        route(((1, 2, 3, 4), 48, 1)),  # no cable from 2 to 3
        route((LEFT, 5, 1)),  # a planned tree's number
        route(((1, 2, 1, 4), 48, 1)),  # by 1 twice
        route(((1, 2, 9), 48, 1)),  # to nobody
    ],
)
def test_a_way_that_cannot_be_is_left_out(asked: Route) -> None:
    view = FabricView.of(fabric(SQUARE, [1, 4], routes=[asked]))
    assert taken(Machine(view)) == {DIRECT: 1}
    assert not view.routes.weighted.laid.carried


def test_of_two_ways_of_a_tree_that_part_one_is_left_out() -> None:
    one, other = route((DIRECT, 48, 1), (LEFT, 48, 1)), route(((2, 1, 4), 48, 1))
    view = FabricView.of(fabric(SQUARE, [1, 2, 4], routes=[one, other]))
    assert taken(Machine(view)) == {DIRECT: 1}


def test_other_weights_change_one_group_and_no_label() -> None:
    """For each address family."""
    before = route((DIRECT, 48, 5), (LEFT, 49, 3))
    compiler = Compiler(fabric(SQUARE, [1, 4], routes=[before]))
    entries = {d: dict(desired.entries) for d, desired in compiler.desired.items()}
    after = route((DIRECT, 48, 4), (LEFT, 49, 4))
    applied = compiler.apply([Change(1, "route", after.key, after)])
    groups = {GroupKey(path_group(4, payload)) for payload in (Payload.IPV4, Payload.IPV6)}
    assert {d: keys for d, keys in applied.changed.items() if keys} == {format_dpid(1): groups}
    one = format_dpid(1)
    for key in groups:
        wanted = compiler.desired[one].entries[key]
        assert step_of(key, wanted, entries[one][key]) is Step.USE


def test_other_weights_touch_nothing_but_paths() -> None:
    state = fabric(SQUARE, [1, 4], routes=[route((DIRECT, 48, 5), (LEFT, 49, 3))])
    view = FabricView.of(state)
    before = view.routes
    state.routes.update({r.key: r for r in [route((DIRECT, 48, 1), (RIGHT, 50, 3))]})
    view.rechoose()
    view.reroute()
    assert before.differ(view.routes, format_dpid(1))
    assert not any(before.floods_differ(view.routes, format_dpid(n)) for n in range(1, 5))


def test_a_new_way_is_laid_before_it_is_used_and_an_old_one_cleared_after() -> None:
    compiler = Compiler(fabric(SQUARE, [1, 4], routes=[route((DIRECT, 48, 1), (LEFT, 49, 1))]))
    entries = {d: dict(desired.entries) for d, desired in compiler.desired.items()}
    after = route((DIRECT, 48, 1), (RIGHT, 50, 1))
    applied = compiler.apply([Change(1, "route", after.key, after)])
    steps = {
        (int(datapath, 16), step_of(key, desired.get(key), entries[datapath].get(key)))
        for datapath, keys in applied.changed.items()
        for desired in [compiler.desired[datapath].entries]
        for key in keys
    }
    assert (3, Step.LAY) in steps
    assert (2, Step.CLEAR) in steps
    assert (1, Step.USE) in steps
    assert not {step for _, step in steps} & {Step.TURN, Step.FREE}


def test_core_rules_do_not_grow_with_what_sends() -> None:
    """One a tree and edge, however many ingresses use it."""
    cables = [(n, 9) for n in range(1, 7)] + [(9, 8)]
    routes = [route(((n, 9, 8), 48, 1)) for n in range(1, 7)]
    view = FabricView.of(fabric(cables, [*range(1, 7), 8], routes=routes))
    laid = view.routes.weighted.laid.carried[format_dpid(9)]
    assert [key for key in laid if key[1] in WEIGHTED] == [(format_dpid(8), 48)]


def test_a_group_tells_whom_it_is_for() -> None:
    for kind in Class:
        assert path_of_group(path_group(77, Payload.IPV6, kind)) == (77, kind)
    assert path_of_group(GroupKind.FAILOVER << 28 | 5) is None
    assert path_of_group(GroupKind.PATH << 28 | 5 << 4 | 3 << 2) is None


@pytest.mark.parametrize(
    "ways",
    [
        [((1, 2, 4), (0, 2))],
        [((1, 2, 4), (0, 1)), ((1, 4), (1, 2))],
        [((1, 2), (0,))],
    ],
)
def test_a_route_that_contradicts_itself_is_no_route(
    ways: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    with pytest.raises(ValidationError):
        Route(
            ingress=format_dpid(1),
            egress=format_dpid(4),
            ways=tuple(
                Way(nodes=tuple(map(format_dpid, nodes)), tree=48, buckets=buckets)
                for nodes, buckets in ways
            ),
        )


def test_trees_begin_at_different_ones_of_parallel_links() -> None:
    asked = route(((1, 2), 48, 1), ((1, 2), 49, 1))
    view = FabricView.of(fabric([(1, 2), (1, 2)], [1, 2], routes=[asked]))
    lanes = view.routes.weighted.laid.lanes[format_dpid(1)][format_dpid(2), RouteClass.BULK]
    assert {lane.hop.ports for lane in lanes} == {(10, 11), (11, 10)}
    assert all(a != b for a, b in pairwise(lane.hop.ports for lane in lanes))
