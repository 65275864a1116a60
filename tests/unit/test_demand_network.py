"""Networks that choose: that they learn quantiles, and follow the slope that they compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller.predict.demand.examples import Examples
from controller.predict.demand.network import (
    Descent,
    Learner,
    Network,
    _State,
    _stretched,
    lesson,
)
from controller.predict.demand.targets import QUANTILES, pinball

SMALL = Descent(width=24, batch=64, epochs=10, rate=3e-3, drop=0.0, hide=0.0)


def examples(count=6_000, seed=0):
    """What came is twice the first column, with exponential noise as wide as the second."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 3)).astype(np.float32)
    values = 2 * rows[:, 0] + rng.exponential(np.abs(rows[:, 1]))
    rows[rng.random(count) < 0.02, 2] = np.nan
    return Examples(rows, values, np.ones(count), ("a", "b", "c"), 2)


def learn(shown, descent, seed, begin=None):
    learner = Learner(descent, np.random.default_rng(seed), begin)
    learner.study(lesson(shown, begin))
    return learner.network()


@pytest.fixture(scope="module")
def network():
    return learn(examples(), SMALL, 1)


def test_quantiles_are_met_by_as_many_as_they_say(network):
    fresh = examples(20_000, seed=2)
    told = network(fresh.rows.T).T
    below = (fresh.values[:, None] <= told).mean(axis=0)
    np.testing.assert_allclose(below, QUANTILES, atol=0.03)
    # Far better than the same word for all, which knows the quantiles exactly.
    same = np.broadcast_to(np.quantile(fresh.values, QUANTILES), told.shape)
    assert pinball(fresh.values, told).mean() < 0.5 * pinball(fresh.values, same).mean()


def test_the_slope_is_that_of_the_pinball_loss():
    rng = np.random.default_rng(3)
    state = _State.begun(3, 5, 2, rng)
    state.flat += rng.normal(scale=0.3, size=state.flat.shape).astype(np.float32)
    rows = rng.normal(size=(64, 3)).astype(np.float32)
    seen = rng.normal(size=(64, 2)).astype(np.float32)
    came = rng.normal(size=64).astype(np.float32)
    before = state.flat.astype(np.float64)

    def loss(flat):
        parts, at = [], 0
        for inputs, outputs in ((3, 5), (5, 5), (5, len(QUANTILES)), (5, 3 * len(QUANTILES))):
            end = at + inputs * outputs
            parts.append((flat[at:end].reshape(inputs, outputs), flat[end : end + outputs]))
            at = end + outputs
        x = rows.astype(np.float64)
        for weights, biases in parts[:2]:
            x = x @ weights + biases
            x = x / (1 + np.exp(-x))
        added, shares = (x @ weights + biases for weights, biases in parts[2:])
        shares = np.exp(shares.reshape(64, -1, 3))
        shares /= shares.sum(axis=2, keepdims=True)
        told = _stretched(added) + (shares[..., :2] * seen[:, None]).sum(axis=2)
        return pinball(came, told).mean()

    state.descend(rows, seen, came, 0.0, SMALL, rng)  # a step of no length
    for place in rng.choice(len(before), 60, replace=False):
        moved = np.zeros_like(before)
        moved[place] = 1e-4
        expected = (loss(before + moved) - loss(before - moved)) / 2e-4
        assert state.slope[place] == pytest.approx(expected, abs=2e-3)


def test_what_was_seen_is_told_as_it_was_however_far_out():
    """Which of two values comes is told by a third column: the network learns to copy it."""
    rng = np.random.default_rng(8)

    def made(count, size):
        rows = (rng.normal(size=(count, 3)) * [size, size, 1]).astype(np.float32)
        values = np.where(rows[:, 2] > 0, rows[:, 0], rows[:, 1])
        return Examples(rows, values, np.ones(count), ("a", "b", "which"), 2)

    network = learn(made(6_000, 3.0), replace(SMALL, epochs=20), 1)
    far = made(2_000, 60.0)  # twenty times what it learned from
    missed = np.abs(network(far.rows.T)[0] - far.values)
    assert np.median(missed) < 0.1 * np.median(np.abs(far.values))


def test_several_lessons_teach_like_a_long_one():
    learner = Learner(SMALL, np.random.default_rng(1))
    first = lesson(examples(2_000, seed=11))
    for number in range(3):
        given = lesson(examples(2_000, seed=11 + number), first)
        learner.study(given, 1 / 3)
    fresh = examples(5_000, seed=2)
    short = pinball(fresh.values, learner.network()(fresh.rows.T).T).mean()
    same = np.broadcast_to(np.quantile(fresh.values, QUANTILES), (5_000, len(QUANTILES)))
    assert short < 0.6 * pinball(fresh.values, same).mean()


def test_one_that_goes_on_keeps_what_it_knew(network):
    further = replace(SMALL, width=8, epochs=1, rate=1e-4)
    more = learn(examples(600, seed=5), further, 6, network)
    fresh = examples(5_000, seed=7)
    losses = [pinball(fresh.values, each(fresh.rows.T).T).mean() for each in (network, more)]
    assert losses[1] < 1.1 * losses[0]
    assert not np.array_equal(more.weights_1, network.weights_1)


def test_the_same_seed_learns_the_same(network):
    again = learn(examples(), SMALL, 1)
    for name, array in network.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])


def test_whatever_is_asked_the_answer_is_finite(network):
    wild = np.array([[np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0]] * 3, dtype=np.float32)
    assert np.isfinite(network(wild)).all()


def test_a_file_is_checked(network):
    arrays = network.arrays()
    assert Network.of(arrays)(np.zeros((3, 1), np.float32)).shape == (len(QUANTILES), 1)
    broken = [
        {"weights_2": arrays["weights_2"][1:]},
        {"biases_shares": arrays["biases_shares"][:-1]},
        {
            "weights_shares": arrays["weights_shares"][:, :5],
            "biases_shares": np.zeros(5, np.float32),
        },
        {"spread": np.zeros(3, np.float32)},
        {"biases_1": np.full_like(arrays["biases_1"], np.nan)},
        {"middle": arrays["middle"].astype(np.float64)},
    ]
    for change in broken:
        with pytest.raises(ValueError, match=r"layer|shares|spread|finite|precision"):
            Network.of(arrays | change)


def test_what_cannot_be_learned_is_told():
    with pytest.raises(ValueError, match="did not learn"), np.errstate(all="ignore"):
        learn(examples(500), replace(SMALL, rate=1e38), 0)
