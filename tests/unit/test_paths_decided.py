"""Paths from what is foreseen: optima, hedge, trees, failures, buckets, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from controller.decide.paths.buckets import to_buckets
from controller.decide.paths.classes import Objective, Options, TrafficClass
from controller.decide.paths.columns import spread
from controller.decide.paths.explain import explain
from controller.decide.paths.ground import ground
from controller.decide.paths.network import FabricLink, Floats, Network, PathsError
from controller.decide.paths.optimum import Optimum, over_paths
from controller.decide.paths.plan import Plan, decide
from controller.decide.paths.traffic import Sampling, mended, moved, scenarios
from controller.decide.paths.trees import different, path_set
from tests.benchmarks import paths as paths_benchmark
from tests.benchmarks.harness import Options as BenchmarkOptions
from tests.benchmarks.wide import days, tree, wan

BULK = TrafficClass("bulk")
QUICK = TrafficClass("interactive", Objective.LATENCY)
FEW = Options(sampling=Sampling(window=6, drawn=6))


def both_ways(*cables: tuple[str, str, float, float]) -> tuple[FabricLink, ...]:
    return tuple(
        FabricLink(x, y, capacity, latency)
        for a, b, capacity, latency in cables
        for x, y in ((a, b), (b, a))
    )


#: Two ways from a to d: over b with 10 units, or over c, later, with 30.
DIAMOND = Network(
    ("a", "b", "c", "d"),
    both_ways(
        ("a", "b", 10, 0.001), ("b", "d", 10, 0.001), ("a", "c", 30, 0.01), ("c", "d", 30, 0.01)
    ),
)  # fmt: skip


def constant(matrix: dict[tuple[int, int], float], edges: int, count: int = 8) -> Floats:
    found = np.zeros((count, edges, edges))
    for (ingress, egress), bps in matrix.items():
        found[:, ingress, egress] = bps
    return found


def loads(plan: Plan) -> dict[str, float]:
    return {f"{link.source}{link.target}": link.expected_bps for link in plan.links}


def small_networks() -> st.SearchStrategy[Network]:
    return st.builds(wan, st.integers(5, 8), st.integers(8, 12), st.integers(0, 1_000))


def test_bulk_is_spread_so_that_the_worst_link_is_least_loaded() -> None:
    plan = decide(DIAMOND, ["a", "d"], {BULK: constant({(0, 1): 20}, 2)}, options=FEW)
    assert loads(plan)["ab"] == pytest.approx(5, rel=0.02)
    assert loads(plan)["ac"] == pytest.approx(15, rel=0.02)
    assert plan.worst == pytest.approx(plan.optimum, rel=0.01)
    assert plan.even_worst == pytest.approx(1.0, rel=0.01)
    ways = plan.route("a", "d", "bulk").ways
    assert {way.nodes: way.buckets for way in ways} == {("a", "b", "d"): 8, ("a", "c", "d"): 24}


def test_interactive_takes_the_quick_way_until_its_ceiling() -> None:
    little = decide(DIAMOND, ["a", "d"], {QUICK: constant({(0, 1): 2}, 2)}, options=FEW)
    assert loads(little)["ab"] == pytest.approx(2)
    much = decide(DIAMOND, ["a", "d"], {QUICK: constant({(0, 1): 12}, 2)}, options=FEW)
    assert loads(much)["ab"] == pytest.approx(5, rel=0.02)
    assert loads(much)["ac"] == pytest.approx(7, rel=0.02)


def test_bulk_makes_room_for_interactive() -> None:
    past = {BULK: constant({(0, 1): 12}, 2), QUICK: constant({(0, 1): 4}, 2)}
    plan = decide(DIAMOND, ["a", "d"], past, options=FEW)
    interactive = plan.route("a", "d", "interactive").ways
    assert [way.nodes for way in interactive] == [("a", "b", "d")]
    # 16 in all over 40: each link at 40 %.
    assert loads(plan)["ab"] == pytest.approx(4, rel=0.05)
    assert plan.worst == pytest.approx(0.4, rel=0.02)


def worst_ratio(plan: Plan) -> float:
    """The most that any matrix at all can load a link, over the worst load of even splits: the
    exact maximum, a program for each link."""
    base, capacity = plan.ground, plan.ground.network.capacity
    even = base.paths.shares(base.even).toarray() / capacity[:, None]
    ours = base.paths.shares(plan.classes[0].weights).toarray() / capacity[:, None]
    unit = even.max()
    found = [linprog(-mine / unit, A_ub=even / unit, b_ub=np.ones(len(even))) for mine in ours]
    assert all(one.success for one in found)
    return max(-one.fun for one in found)


@given(small_networks(), st.integers(0, 1_000), st.sampled_from([1.0, 1.5, 3.0]))
@settings(max_examples=10)
def test_whatever_comes_the_hedge_bounds_it_against_even_splits(
    network: Network, seed: int, ratio: float
) -> None:
    past = days(len(network.nodes), 12, 8, seed) * 1e9
    options = Options(ratio=ratio, small=0.01, sampling=FEW.sampling)
    plan = decide(network, network.nodes, {BULK: past}, options=options)
    assert worst_ratio(plan) <= ratio * 1.01


def test_without_the_hedge_a_wrong_forecast_can_cost_far_more() -> None:
    network = wan(9, 14, 3)
    past = days(9, 12, 8, 3) * 1e9
    plans = {
        ratio: decide(
            network,
            network.nodes,
            {BULK: past},
            options=Options(ratio=ratio, sampling=FEW.sampling),
        )
        for ratio in (1.5, 1e6)
    }
    assert worst_ratio(plans[1.5]) <= 1.5 * 1.01
    assert worst_ratio(plans[1e6]) > 4


@pytest.mark.parametrize("seed", range(12))
def test_paths_on_trees_reach_the_optimum_over_all_paths(seed: int) -> None:
    network = wan(5 + seed, 8 + 2 * seed, seed)
    edges = np.arange(len(network.nodes))
    matrix = days(len(edges), 12, 1, seed)[0] * 1e9
    paths = path_set(network, different(network, edges, 16))
    best = Optimum(network, edges).of(matrix)
    ours = over_paths(paths.incidence, paths.pair, matrix.reshape(-1), network.capacity)
    assert best * (1 - 1e-6) <= ours <= best * 1.02


@given(small_networks(), st.integers(0, 1_000))
@settings(max_examples=10)
def test_the_bound_of_the_decomposition_is_below_the_optimum_and_near(
    network: Network, seed: int
) -> None:
    edges = np.arange(len(network.nodes))
    matrix = days(len(edges), 12, 1, seed)[0] * 1e9
    found = spread(network, edges, matrix)
    best = Optimum(network, edges).of(matrix)
    assert found.bound <= best * (1 + 1e-5)
    assert best <= found.utilisation * (1 + 1e-5)
    assert found.utilisation <= best * 1.02


def test_a_background_is_routed_around() -> None:
    busy = np.where(DIAMOND.source == 0, np.where(DIAMOND.target == 1, 5.0, 0.0), 0.0)
    demand = np.array([[0.0, 15.0], [0.0, 0.0]])
    found = spread(DIAMOND, np.array([0, 3]), demand, background=busy)
    assert found.utilisation == pytest.approx(0.5, rel=0.01)
    assert found.bound <= 0.5 * (1 + 1e-6)


def test_a_regular_fabric_of_many_links_is_decided_by_decomposition_too() -> None:
    """Few edges, but the hedge has a column for each two links: that takes minutes at k = 6."""
    network, edges = tree(6)
    matrix = np.ones((len(edges), len(edges)))
    np.fill_diagonal(matrix, 0.0)
    plan = decide(network, edges, {TrafficClass("bulk"): matrix[None]})
    assert len(edges) <= Options().many
    assert any("216 links are too many" in note for note in plan.notes)
    assert plan.worst <= plan.even_worst * 1.001


def test_a_large_fabric_is_decided_by_decomposition() -> None:
    network, edges = tree(4)
    past = {BULK: days(len(edges), 12, 6, 1) * 1e9, QUICK: days(len(edges), 12, 6, 2) * 1e8}
    plan = decide(network, edges, past, options=Options(many=4, sampling=FEW.sampling))
    assert any("too many to weigh all scenarios" in note for note in plan.notes)
    for kind in ("bulk", "interactive"):
        ways = plan.route(edges[0], edges[-1], kind).ways
        assert sum(way.buckets for way in ways) == plan.options.buckets
        assert all(way.nodes[0] == edges[0] and way.nodes[-1] == edges[-1] for way in ways)
    assert plan.worst <= plan.even_worst * 1.1


def test_every_path_follows_its_tree_and_no_tree_has_a_loop() -> None:
    network = wan(12, 18, 5)
    edges = np.arange(12)
    forest = different(network, edges, 16)
    paths = path_set(network, forest)
    for path in range(len(paths.pair)):
        nodes = paths.nodes(network, forest, path)
        assert len(set(nodes)) == len(nodes)
        column = paths.incidence.getcol(path)
        assert column.sum() == len(nodes) - 1
    assert len(paths.pair) == len({(p, tuple(paths.nodes(network, forest, i)))
                                   for i, p in enumerate(paths.pair.tolist())})  # fmt: skip


def test_after_a_failure_trees_that_are_whole_stay_where_they_are() -> None:
    network = wan(12, 20, 5)
    edges = np.arange(12)
    before = different(network, edges, 8)
    failed = network.links[0]
    less = network.without([(failed.source, failed.target), (failed.target, failed.source)])
    after = different(less, edges, 8, kept=before)
    a, b = network.index[failed.source], network.index[failed.target]
    uses = (before.following[:, :, a] == b) | (before.following[:, :, b] == a)
    assert uses.any()
    assert (~uses).any()
    assert (after.following[~uses] == before.following[~uses]).all()
    still = (after.following[:, :, a] == b) | (after.following[:, :, b] == a)
    assert not still.any()


def test_a_failure_is_decided_around_and_good_weights_are_kept() -> None:
    past = {BULK: constant({(0, 1): 20}, 2)}
    first = decide(DIAMOND, ["a", "d"], past, options=FEW)
    again = decide(DIAMOND, ["a", "d"], past, options=FEW, last=first)
    assert again.classes[0].kept
    assert (again.classes[0].weights == first.classes[0].weights).all()
    less = DIAMOND.without([("a", "c")])
    after = decide(less, ["a", "d"], past, options=FEW, last=again, trigger="link a->c failed")
    assert [way.nodes for way in after.route("a", "d", "bulk").ways] == [("a", "b", "d")]
    assert "decided for: link a->c failed" in explain(after, "a", "d")[0].reasons


def test_a_topology_cut_in_two_is_told_and_the_rest_is_routed() -> None:
    cut = Network(("a", "b", "c", "d"), both_ways(("a", "b", 10, 0.0), ("c", "d", 10, 0.0)))
    past = {BULK: constant({(0, 1): 4, (0, 2): 3e6}, 4)}
    for options in (FEW, Options(many=1, sampling=FEW.sampling)):
        plan = decide(cut, ["a", "b", "c", "d"], past, options=options)
        told = next(note for note in plan.notes if "cut" in note)
        assert "{a, b} | {c, d}" in told
        assert "8 pairs have no way, 3 Mbit/s" in told
        assert plan.route("a", "c", "bulk").ways == ()
        assert loads(plan)["ab"] == pytest.approx(4)
        assert "no way leads from a to c" in explain(plan, "a", "c")[0].reasons


def test_no_traffic_is_split_evenly_and_told() -> None:
    for options in (FEW, Options(many=1, sampling=FEW.sampling)):
        plan = decide(DIAMOND, ["a", "d"], {BULK: np.zeros((4, 2, 2))}, options=options)
        assert any("no traffic is foreseen" in note for note in plan.notes)
        assert sum(way.buckets for way in plan.route("a", "d", "bulk").ways) == 32


def test_pauses_alone_edges_and_islands_do_no_harm() -> None:
    paused = constant({(0, 1): 20}, 2)
    paused[2:4] = 0.0
    plan = decide(DIAMOND, ["a", "d"], {BULK: paused, QUICK: paused}, options=FEW)
    assert np.isfinite(plan.worst)
    assert sum(way.buckets for way in plan.route("a", "d", "bulk").ways) == 32
    assert decide(DIAMOND, ["a"], {BULK: np.zeros((3, 1, 1))}, options=FEW).worst == 0
    apart = Network(("a", "b", "c", "d"), both_ways(("a", "b", 1, 0), ("c", "d", 1, 0)))
    islands = decide(apart, ["a", "d"], {BULK: np.ones((3, 2, 2))}, options=FEW)
    assert islands.route("a", "d", "bulk").ways == ()
    with pytest.raises(PathsError, match="no link that is up"):
        decide(Network(("a", "d"), ()), ["a", "d"], {BULK: paused})


def test_gaps_are_mended_and_told() -> None:
    past = constant({(0, 1): 20}, 2)
    past[2, 0, 1] = math.nan
    past[3, 0, 1] = -5
    past[4] = math.inf
    made = mended(past, ["a", "d"])
    assert (made.values[:, 0, 1] == 20).all()
    assert made.notes[0] == "matrix 2 of 8: a to d took the last good value"
    assert made.notes[2] == "matrix 4 of 8: every pair took the last good value"
    plan = decide(DIAMOND, ["a", "d"], {BULK: past}, options=FEW)
    assert "class bulk: matrix 3 of 8: a to d took the last good value" in plan.notes


@pytest.mark.parametrize(
    ("past", "told"),
    [
        (np.full((3, 2, 2), math.nan), "class bulk: no traffic matrix has a usable number"),
        (np.zeros((0, 2, 2)), "class bulk: no traffic matrix has a usable number"),
        (np.zeros((3, 3, 3)), "shape .3, 3, 3.: for 2 edges"),
        (np.zeros((2, 2)), "shape .2, 2."),
    ],
)
def test_matrices_that_cannot_be_used_are_refused(past: Floats, told: str) -> None:
    with pytest.raises(PathsError, match=told):
        decide(DIAMOND, ["a", "d"], {BULK: past}, options=FEW)


def test_names_that_are_not_there_are_refused() -> None:
    past = {BULK: np.ones((3, 2, 2))}
    with pytest.raises(PathsError, match="z: no such node"):
        decide(DIAMOND, ["a", "z"], past)
    with pytest.raises(PathsError, match="a: the same edge is given twice"):
        decide(DIAMOND, ["a", "a"], past)
    with pytest.raises(PathsError, match="no class of traffic"):
        decide(DIAMOND, ["a", "d"], {})
    with pytest.raises(PathsError, match="different numbers of past matrices"):
        decide(DIAMOND, ["a", "d"], {**past, QUICK: np.ones((1, 2, 2))})
    plan = decide(DIAMOND, ["a", "d"], past, options=FEW)
    with pytest.raises(PathsError, match="z: no such edge; there are a, d"):
        explain(plan, "a", "z")
    with pytest.raises(PathsError, match="video: no such class of traffic; there are bulk"):
        plan.route("a", "d", "video")


@pytest.mark.parametrize(
    ("link", "told"),
    [
        (FabricLink("a", "b", 0), "link a->b: capacity is 0"),
        (FabricLink("a", "b", math.nan), "link a->b: capacity is nan"),
        (FabricLink("a", "b", 1, -1), "link a->b: latency is -1"),
        (FabricLink("a", "b", 1, 0, 0), "link a->b: cost is 0"),
        (FabricLink("a", "a", 1), "link a->a: it leads back"),
        (FabricLink("a", "x", 1), "link a->x: x is no node"),
    ],
)
def test_links_that_cannot_be_used_are_refused_by_name(link: FabricLink, told: str) -> None:
    with pytest.raises(PathsError, match=told):
        Network(("a", "b"), (link,))
    with pytest.raises(PathsError, match="link a->b: given twice"):
        Network(("a", "b"), (FabricLink("a", "b", 1), FabricLink("a", "b", 1)))


def test_an_explanation_names_demand_aim_and_the_fullest_link() -> None:
    past = {BULK: constant({(0, 1): 20}, 2), QUICK: constant({(0, 1): 1}, 2)}
    plan = decide(DIAMOND, ["a", "d"], past, options=FEW)
    interactive, bulk = explain(plan, "a", "d")
    assert any(reason.startswith("foreseen: 20 bit/s on average") for reason in bulk.reasons)
    assert any("split evenly over shortest paths it would be at" in r for r in bulk.reasons)
    assert any("of these ways is" in reason for reason in bulk.reasons)
    assert any("least latency" in reason for reason in interactive.reasons)
    assert {(link.source, link.target) for link in bulk.links} == {
        ("a", "b"), ("b", "d"), ("a", "c"), ("c", "d"),
    }  # fmt: skip


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=1, max_size=6), min_size=1, max_size=5),
       st.integers(1, 64))  # fmt: skip
def test_buckets_are_as_many_as_said_and_none_is_off_by_one(
    shares: list[list[float]], count: int
) -> None:
    pair = np.repeat(np.arange(len(shares)), [len(one) for one in shares])
    weights = np.concatenate([np.array(one) / sum(one) for one in shares])
    buckets = to_buckets(pair, weights, count)
    assert np.bincount(pair, weights=buckets).tolist() == [count] * len(shares)
    assert (np.abs(buckets - weights * count) < 1 + 1e-6).all()
    assert (buckets >= 0).all()


def test_scenarios_are_repeatable_and_their_weights_sum_to_one() -> None:
    past = days(4, 12, 20, 1)
    first, again, other = (scenarios(past, seed) for seed in (1, 1, 2))
    assert (first.demands == again.demands).all()
    assert (first.demands != other.demands).any()
    assert first.weights.sum() == pytest.approx(1)
    assert (first.demands >= 0).all()
    assert np.isfinite(first.demands).all()


def test_a_forecast_that_is_given_is_what_scenarios_are_about() -> None:
    past = constant({(0, 1): 10}, 2)
    ahead = np.concatenate([past, constant({(0, 1): 40}, 2, 1)])
    made = scenarios(past, 0, Sampling(window=4, drawn=4), ahead)
    assert made.demands[4:, 0, 1] == pytest.approx(40)
    with pytest.raises(PathsError, match="one for each of the 8 past matrices"):
        scenarios(past, 0, Sampling(), ahead[1:])


def test_a_migration_moves_a_vms_traffic_to_its_new_edge() -> None:
    past = np.array([[[0.0, 10, 5], [8, 0, 2], [1, 1, 0]]])
    # The VM at edge 0 sends 4 to edge 1 and 3 to edge 2, and gets 2 from edge 1.
    after = moved(past, np.array([0.0, 4, 3]), np.array([0.0, 2, 0]), 0, 2)
    assert after[0].tolist() == [[0, 6, 2], [6, 0, 4], [1, 5, 0]]


def test_the_benchmark_reads_both_forms_and_measures(tmp_path: Path) -> None:
    network = wan(6, 9, 1)
    matrices = days(6, 12, 100, 1)
    graph = {
        "nodes": [{"id": n} for n in range(6)],
        "links": [
            {"source": int(a), "target": int(b), "capacity": c}
            for a, b, c in zip(network.source, network.target, network.capacity, strict=True)
        ],
    }
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "g.json").write_text(json.dumps(graph))
    lines = [" ".join(map(repr, m.reshape(-1).tolist())) for m in matrices]
    (folder / "7.hist").write_text("\n".join(lines) + "\n")
    yardstick = Optimum(network, np.arange(6))
    (folder / "7.opt").write_text("\n".join(repr(yardstick.of(m)) for m in matrices))
    result = paths_benchmark.run(BenchmarkOptions(folder, True))
    assert result["optimal_agrees"] is True
    assert result["matrices_scored"] == 4
    for name in ("predicted", "previous_matrix", "ecmp", "rounded"):
        mean, most = (result[f"{name}_over_optimal_{what}"] for what in ("mean", "max"))
        assert isinstance(mean, float)
        assert isinstance(most, float)
        assert 1 - 1e-6 <= mean <= most
    (folder / "7.hist").write_text(lines[0] + " 1\n")
    with pytest.raises(ValueError, match=r"7\.hist:1: 37 numbers for 6 nodes"):
        paths_benchmark.read(folder)
    with pytest.raises(ValueError, match="neither"):
        paths_benchmark.read(tmp_path)


def test_ground_is_kept_while_nothing_changes() -> None:
    first = ground(DIAMOND, ("a", "d"))
    assert ground(DIAMOND, ("a", "d"), last=first) is first
    assert ground(DIAMOND, ("a", "c"), last=first) is not first
