"""Weighted max-min filling, against a definition that solves a linear program a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from controller.decide.bandwidth.fill import Floats, fill
from tests.benchmarks.maxmin import by_definition


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    users, resources = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    share = st.sampled_from([0.0, 0.0, 0.5, 1.0])
    usage = np.array([[draw(share) for _ in range(users)] for _ in range(resources)])
    weight = np.array([draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(users)])
    lower = np.array([draw(st.sampled_from([0.0, 0.0, 1.0, 4.0])) for _ in range(users)])
    upper = lower + [draw(st.sampled_from([0.0, 2.0, 10.0, 50.0])) for _ in range(users)]
    room = np.array([draw(st.sampled_from([0.0, 1.0, 7.0, 20.0])) for _ in range(resources)])
    return usage, usage @ lower + room, weight, lower, upper


@given(problems())
@settings(max_examples=100)
def test_filling_is_what_the_definition_says(problem: tuple[Floats, ...]) -> None:
    usage, capacity, weight, lower, upper = problem
    filled = fill(csr_matrix(usage), capacity, weight, lower, upper)
    wanted = by_definition(csr_matrix(usage), capacity, weight, lower, upper)
    assert filled.rates == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@given(problems())
def test_rates_fit_and_whoever_has_not_all_is_stopped_by_a_full_resource(
    problem: tuple[Floats, ...],
) -> None:
    usage, capacity, weight, lower, upper = problem
    filled = fill(csr_matrix(usage), capacity, weight, lower, upper)
    load = usage @ filled.rates
    assert (load <= capacity + 1e-9).all()
    assert (filled.rates >= lower - 1e-12).all()
    assert (filled.rates <= upper + 1e-12).all()
    for user, resource in enumerate(filled.bottleneck.tolist()):
        if resource < 0:
            assert filled.rates[user] == pytest.approx(upper[user])
            continue
        assert load[resource] == pytest.approx(capacity[resource], abs=1e-9)
        sharing = usage[resource] > 0
        above = filled.rates > lower + 1e-9
        mine = filled.rates[user] / weight[user]
        # Nobody who shares the bottleneck and has more than the lower bound is better off.
        levels = (filled.rates / weight)[sharing & above]
        assert (levels <= mine + 1e-9).all()


def test_a_textbook_example() -> None:
    # Three links in a row of capacity 1, 1, 2: one user over all, one on each.
    usage = csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=float))
    filled = fill(usage, np.array([1.0, 1.0, 2.0]), np.ones(4), np.zeros(4), np.full(4, 9.0))
    assert filled.rates == pytest.approx([0.5, 0.5, 0.5, 1.5])
    assert filled.bottleneck.tolist()[2:] == [1, 2]


def test_rates_of_very_different_sizes_are_exact() -> None:
    users = 2_000
    random = np.random.default_rng(1)
    host = random.integers(0, 50, users)
    usage = csr_matrix((np.ones(users), (host, np.arange(users))), shape=(50, users))
    upper = 10 ** random.uniform(2, 10, users)
    filled = fill(usage, np.full(50, 1e10), np.ones(users), np.zeros(users), upper)
    for one in range(50):
        mine = np.sort(upper[host == one])
        # One resource alone: fill from the smallest.
        left, level = 1e10, np.inf
        for place, most in enumerate(mine):
            if most * (len(mine) - place) > left:
                level = left / (len(mine) - place)
                break
            left -= most
        assert filled.rates[host == one] == pytest.approx(np.minimum(upper[host == one], level))
