"""Choosing models, calibrating intervals, and the record of how good forecasts were."""

from __future__ import annotations

import numpy as np
import pytest
from demand_data import MONDAY, panel_of, rhythm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.predict.demand.conformal import LEADS, calibrate, misses, together
from controller.predict.demand.forecast import sane
from controller.predict.demand.ledger import Ledger, Told
from controller.predict.demand.selection import EVIDENCE, HALF_LIFE, Scores, loss
from controller.predict.demand.series import DAY_BINS, Metric
from controller.predict.demand.targets import QUANTILES, Target

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(arrays(np.float64, (3, 5, 4), elements=ANY), arrays(np.float64, 3, elements=ANY))
def test_quantiles_are_finite_not_negative_and_do_not_cross(told, level):
    made = sane(told, level)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    assert (np.diff(made, axis=-1) >= 0).all()


def normal(rng, rows, spread):
    """What came, and the quantiles of a model that thinks the spread is 1."""
    actual = rng.standard_normal((rows, 24)) * spread
    levels = np.array([0.0, 1.2816, 1.6449, 2.3263])
    return actual, np.broadcast_to(levels, (rows, 24, 4)).copy()


@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_calibrated_levels_hold_on_what_comes_after(spread):
    rng = np.random.default_rng(3)
    actual, told = normal(rng, 800, spread)
    ones = np.ones(800)
    calibration = calibrate(misses(actual, told, ones))
    later, told = normal(rng, 800, spread)
    moved = calibration.apply(told, ones)
    np.testing.assert_array_equal(moved[..., 0], told[..., 0])
    for column, level in list(enumerate(QUANTILES))[1:]:
        assert (later <= moved[..., column]).mean() == pytest.approx(level, abs=0.01)


def test_wide_and_narrow_forecasts_are_calibrated_apart():
    rng = np.random.default_rng(4)
    actual, told = normal(rng, 800, 1.0)
    told[::2] *= 0.1  # too sure of every other series
    calibration = calibrate(misses(actual, told, np.ones(800)))
    moved = calibration.apply(told, np.ones(800))
    covered = actual <= moved[..., 2]
    assert covered[::2].mean() == pytest.approx(0.95, abs=0.01)
    assert covered[1::2].mean() == pytest.approx(0.95, abs=0.01)


def test_a_forecast_is_moved_in_proportion_to_its_width():
    rng = np.random.default_rng(6)
    actual, told = normal(rng, 400, 2.0)
    wide = np.exp2(rng.uniform(0, 3, (400, 1)))  # those of a group differ by two thirds
    told *= wide[..., None]
    moved = calibrate(misses(actual * wide, told, np.ones(400))).apply(told, np.ones(400))
    added = (moved - told)[:, 0, 1] / wide[:, 0]
    assert added.min() > 0
    assert added.max() < 1.2 * added.min()


def test_without_misses_nothing_is_moved():
    told = np.arange(8.0).reshape(1, 2, 4)
    unknown = misses(np.full((1, 2), np.nan), told, np.ones(1))
    for parts in ([], [unknown, unknown]):
        nothing = calibrate(together(parts))
        np.testing.assert_array_equal(nothing.apply(told, np.ones(1)), told)


def test_few_misses_are_judged_with_those_of_all_leads():
    rng = np.random.default_rng(5)
    actual, told = normal(rng, 20, 2.0)
    calibration = calibrate(misses(actual, told, np.ones(20)))
    assert (calibration.offsets[:, :, 1] > 0).all()
    assert len({*calibration.offsets[:, :, 2].ravel()}) == 1
    assert calibration.offsets.shape[0] == LEADS


@given(arrays(np.float64, (2, 24), elements=st.floats(0, 1e6) | st.just(np.nan)))
def test_a_calibration_keeps_every_level_above_the_median(actual):
    told = np.tile(np.array([1.0, 2, 3, 4]), (2, 24, 1))
    moved = calibrate(misses(actual, told, np.ones(2))).apply(told, np.ones(2))
    assert np.isfinite(moved).all()
    assert (moved >= moved[..., :1]).all()


def scores(*means, counts=10.0):
    sums = np.array(means, dtype=float)[:, None] * counts
    return Scores(tuple("abc"[: len(means)]), sums, np.full_like(sums, counts))


def test_the_preferred_model_stays_until_another_is_better_by_a_margin():
    assert scores(1.0, 0.95, counts=1e6).choose("a")[0] == 0
    assert scores(1.0, 0.8, counts=1e6).choose("a")[0] == 1
    assert scores(1.0, 0.8, 0.7, counts=1e6).choose("a")[0] == 2


def test_the_margin_is_wider_the_less_is_known():
    assert scores(1.0, 0.7, counts=20).choose("a")[0] == 0
    assert scores(1.0, 0.7, counts=40).choose("a")[0] == 1


def test_a_model_needs_evidence_before_it_is_chosen():
    assert scores(1.0, 0.1, counts=EVIDENCE - 0.1).choose("a")[0] == 0


def test_who_says_nothing_is_not_chosen():
    possible = np.array([[False], [True], [True]])
    assert scores(0.1, 0.5, 0.4).choose("a", possible)[0] == 2
    nothing_settled = Scores.none(("a", "b"), 1)
    assert nothing_settled.choose("a", np.array([[False], [True]]))[0] == 1


def test_old_losses_count_less():
    first = Scores.none(("a",), 1).after(np.array([[4.0]]), days=0)
    later = first.after(np.array([[1.0]]), days=HALF_LIFE)
    assert later.means[0, 0] == pytest.approx((4 * 0.5 + 1) / 1.5)
    same = first.after(np.array([[np.nan]]), days=HALF_LIFE)
    assert same.means[0, 0] == 4


def test_loss_is_in_units_of_the_scale():
    told = np.zeros((2, 3, 4))
    actual = np.array([[1.0, 1, np.nan], [np.nan] * 3])
    found = loss(actual, told, np.array([2.0, 1.0]))
    assert found[0] == pytest.approx(np.mean(QUANTILES) / 2)
    assert np.isnan(found[1])


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def told_of(past, model, value):
    shape = (len(past), 24, 4)
    return Told(
        past.metric,
        Target.HOURS,
        model,
        past.end,
        past.names,
        np.full(shape, value),
        np.ones(len(past)),
    )


def test_a_forecast_is_settled_once_it_is_over_and_only_once(ledger):
    panel = panel_of(np.full((2, 4 * DAY_BINS), 0.5))
    past = panel.until(2 * DAY_BINS)
    ledger.remember([told_of(past, "good", 0.5), told_of(past, "bad", 0.1)])
    assert ledger.settle(panel.until(3 * DAY_BINS - 1)) == []
    settled = ledger.settle(panel)
    assert {told.model for told, _ in settled} == {"good", "bad"}
    assert ledger.settle(panel) == []
    best, worst = ledger.quality("vm0", Metric.CPU, Target.HOURS, MONDAY)
    assert (best.model, best.loss, best.error, best.below95) == ("good", 0, 0, 1)
    assert worst.error == pytest.approx(0.4)
    assert worst.below95 == 0
    found = ledger.scores(Metric.CPU, Target.HOURS, ("bad", "good"), ["vm1", "who"], panel.end)
    assert found.means[1, 0] == 0
    assert np.isnan(found.means[:, 1]).all()


def test_what_can_no_longer_be_compared_is_dropped(ledger):
    panel = panel_of(np.full((1, 6 * DAY_BINS), 0.5))
    ledger.remember([told_of(panel.until(DAY_BINS), "good", 0.5)])
    values = panel.values[:, 3 * DAY_BINS :]
    late = type(panel)(panel.metric, panel.names, values, panel.end, panel.capacity)
    assert ledger.settle(late) == []
    assert ledger.settle(panel) == []


def test_the_record_outlives_a_restart_and_forgets_on_demand(tmp_path):
    panel = panel_of(rhythm(3, 1))
    first = Ledger(tmp_path / "ledger.db")
    first.remember([told_of(panel.until(2 * DAY_BINS), "some", 0.3)])
    first.close()
    second = Ledger(tmp_path / "ledger.db")
    assert len(second.settle(panel)) == 1
    assert len(second.quality("vm0", Metric.CPU, Target.HOURS, MONDAY)) == 1
    second.forget(panel.end + 86_400)
    assert second.quality("vm0", Metric.CPU, Target.HOURS, MONDAY) == ()
    second.close()


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["vm0", "vm1", "gone", "new"]), unique=True, min_size=1))
def test_vms_may_come_and_go_between_forecast_and_outcome(tmp_path_factory, names):
    panel = panel_of(np.full((2, 2 * DAY_BINS), 0.5))
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.db")
    shape = (len(names), 24, 4)
    origin = panel.until(DAY_BINS).end
    ones = np.ones(len(names))
    ledger.remember(
        [Told(Metric.CPU, Target.HOURS, "m", origin, tuple(names), np.full(shape, 0.5), ones)]
    )
    ((_, missed),) = ledger.settle(panel)
    known = sum(name in panel.names for name in names)
    assert len(missed) == known * 24
    ledger.close()
