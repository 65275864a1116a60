"""Samples on the grid: whatever is wrong with them is a gap, or is averaged out."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from demand_data import MONDAY, panel_of, rhythm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.history.series import Points, in_memory
from controller.model.metrics import Scope
from controller.predict.demand.series import (
    CARRY,
    STEP,
    Metric,
    Panel,
    carried,
    gaps_allowed,
    on_grid,
    panel,
    rates,
    read,
)
from controller.predict.demand.targets import Target, pinball, seasonal_error

ANY = st.floats(width=64, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(ANY, ANY), max_size=30))
def test_the_grid_holds_only_what_can_have_been_measured(samples):
    times = [time for time, _ in samples]
    grid = on_grid(times, [value for _, value in samples], end=MONDAY, bins=10)
    known = grid[~np.isnan(grid)]
    assert np.isfinite(known).all()
    assert (known >= 0).all()


def test_samples_of_one_bin_are_their_mean_and_others_are_left_out():
    times = [MONDAY - 1, MONDAY - STEP, MONDAY - STEP - 1, MONDAY, MONDAY - 99 * STEP]
    grid = on_grid(times, [1, 3, 7, 100, 100], end=MONDAY, bins=3)
    np.testing.assert_array_equal(grid, [np.nan, 7, 2])


def test_times_and_values_have_to_belong_together():
    with pytest.raises(ValueError, match="do not belong"):
        on_grid([1, 2], [1], end=MONDAY, bins=3)
    with pytest.raises(ValueError, match="do not belong"):
        Panel(Metric.CPU, ("a", "b"), np.zeros((1, 3)), MONDAY, np.zeros(2))


def test_only_short_gaps_are_filled():
    row = np.full(3 * CARRY, np.nan)
    row[1] = 5
    filled = carried(row[None])[0]
    assert np.isnan(filled[0])
    assert (filled[1 : CARRY + 2] == 5).all()
    assert np.isnan(filled[CARRY + 2 :]).all()


def test_a_counter_that_was_reset_gives_no_rate_across_the_reset():
    times, values = rates([0, 300, 600, 900, 1200], [100, 400, 50, 350, np.nan])
    np.testing.assert_array_equal(times, [300, 900])
    np.testing.assert_array_equal(values, [1, 1])


def test_a_counter_that_was_away_for_long_gives_no_rate_for_that_time():
    times, _ = rates([0, 300, 4_000, 4_300], [0, 300, 900, 1200])
    np.testing.assert_array_equal(times, [300, 4_300])


@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1e12)))
def test_rates_are_never_negative(counts):
    _, values = rates(np.arange(len(counts)) * 60.0, counts)
    assert (values >= 0).all()


def test_the_history_is_read_in_the_order_asked_for():
    begin = MONDAY - 4 * STEP
    times = np.array([begin, begin, begin + STEP]) * 1000
    points = Points(["a", "b"], np.array([0, 1, 1]), times, np.array([[1.0], [2.0], [3.0]]))
    history = in_memory(Scope.VM, ["cpu"], [points])
    found = read(history, Metric.CPU, ["b", "nobody", "a"], MONDAY + 7, bins=4)
    assert found.end == MONDAY
    assert found.names == ("b", "nobody", "a")
    np.testing.assert_array_equal(found.values[0], [2, 3, 3, 3])
    assert np.isnan(found.values[1]).all()
    np.testing.assert_array_equal(found.values[2], [1, 1, 1, 1])


def test_every_metric_is_one_that_the_history_has():
    from controller.model.metrics import METRICS

    assert {metric.value for metric in Metric} <= {
        name for name, known in METRICS.items() if known.scope is Scope.VM
    }


def test_no_series_at_all_is_a_panel_too():
    nothing = panel(Metric.CPU, [], MONDAY, bins=5)
    assert len(nothing) == 0
    assert nothing.window(7).shape == (0, 7)


def test_a_window_reaches_before_what_is_known():
    short = panel_of(rhythm(1, 2))
    window = short.window(400)
    assert np.isnan(window[:, :112]).all()
    np.testing.assert_array_equal(window[:, 112:], short.values)


def test_targets_are_means_and_peaks_of_the_steps_before_the_end():
    values = np.arange(30, dtype=np.float32)[None]
    np.testing.assert_array_equal(Target.HOURS.series(values), [[11.5, 23.5]])
    np.testing.assert_array_equal(Target.HOUR_PEAKS.series(values), [[17, 29]])
    assert Target.DAY_PEAK.series(values).shape == (1, 0)


def test_an_hour_of_which_less_than_half_is_known_is_not_known():
    values = np.ones((1, 24), dtype=np.float32)
    values[0, 1:8] = np.nan
    np.testing.assert_array_equal(Target.HOURS.series(values), [[np.nan, 1]])


def test_a_seasonal_error_of_a_few_values_is_none():
    """What was known for a day and five minutes more may look as if it never changed."""
    day = np.tile(np.arange(288.0), 2)[None]
    assert np.isnan(seasonal_error(day[:, : 288 + 71], 288)).all()
    assert seasonal_error(day[:, : 288 + 72], 288)[0] == 0


def test_seasonal_error_and_pinball_are_as_defined():
    assert seasonal_error(np.array([[0.0, 1, 2, 5]]), 2)[0] == 3
    loss = pinball(np.array([1.0]), np.array([[0.0, 2.0, 0.0, 2.0]]))
    np.testing.assert_allclose(loss, [[0.5, 0.1, 0.95, 0.01]])


def test_a_thread_that_ends_first_leaves_others_their_gaps():
    """Filters of warnings are shared by all threads, and each of these sets and resets them."""
    before = list(warnings.filters)
    begun, over = threading.Event(), threading.Event()

    def other():
        with gaps_allowed():
            begun.set()
            assert over.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(30)
    with gaps_allowed():
        over.set()
        thread.join()
        with warnings.catch_warnings(record=True) as seen:
            assert np.isnan(np.nanmean(np.full(3, np.nan)))
    assert not seen
    assert warnings.filters == before
