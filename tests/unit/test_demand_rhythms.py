"""After how long series repeat themselves, and what their repetitions say of the next time."""

from __future__ import annotations

import numpy as np
import pytest
from demand_data import panel_of

from controller.predict.demand.features import design, summarise
from controller.predict.demand.rhythms import bursts, repeated
from controller.predict.demand.series import DAY_BINS, WINDOW
from controller.predict.demand.targets import Target


def pulses(lag, bins=WINDOW, first=0, length=1):
    """0.1 with little noise, and 0.9 for `length` bins each `lag` bins."""
    values = 0.1 + 0.002 * np.random.default_rng(lag).random(bins)
    for at in range(first, bins, lag):
        values[at : at + length] = 0.9
    return values


@pytest.mark.parametrize("lag", [7, 15, 25])
def test_a_short_rhythm_off_the_clock_is_found_and_told_ahead(lag):
    # Once more than a week of bursts, so that nothing but the lag tells of the next.
    summary = summarise(panel_of(pulses(lag)[None]))
    found = {rhythm.name: rhythm for rhythm in summary.rhythms}
    assert found["short_bursts"].lag[0] == lag
    assert found["short_bursts"].likeness[0] > 0.9
    leads = np.arange(1, 31)
    told = repeated(summary.window, summary.rhythms, leads)["short_bursts_1"][0]
    due = [lead for lead in leads if (WINDOW - 1 + lead) % lag == 0]
    assert set(leads[told > 0.5]) == set(due)


def test_a_day_and_a_quarter_is_found_among_long_ones():
    lag = DAY_BINS + 72
    summary = summarise(panel_of(pulses(lag, first=40, length=6)[None]))
    found = {rhythm.name: rhythm for rhythm in summary.rhythms}
    assert found["long_bursts"].lag[0] in (lag, 2 * lag, 3 * lag)


def test_bursts_are_counted_and_the_next_is_due():
    values = np.full((1, WINDOW), 0.1)
    for at in range(WINDOW - 40, 0, -100):
        values[0, at : at + 5] = 0.9
    told = bursts(values, np.array([0.1]), np.array([0.9]))
    assert told["bursts"][0] == 20
    assert told["burst_length"][0] == 5
    assert told["burst_since"][0] == 35
    assert told["burst_for"][0] == 0
    assert told["burst_due"][0] == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize("value", [np.nan, 0.0, 0.3])
def test_without_a_rhythm_nothing_breaks(value):
    made = design(summarise(panel_of(np.full((2, WINDOW), value))), Target.FIVE_MINUTES, [1, 12])
    lags = [n for n, name in enumerate(made.columns) if name.endswith(("_lag", "_like"))]
    assert np.isfinite(made.values[lags]).all()
