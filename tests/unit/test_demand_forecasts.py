"""Forecasts from end to end: good ones from a clear past, sane ones from any past at all."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from demand_data import MONDAY, panel_of, rhythm
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from controller.predict.demand import draw
from controller.predict.demand.boosted import Growth
from controller.predict.demand.events import Calendar, Event
from controller.predict.demand.forecaster import Forecaster
from controller.predict.demand.global_model import Training
from controller.predict.demand.keep import ModelStore
from controller.predict.demand.ledger import Ledger
from controller.predict.demand.network import Descent
from controller.predict.demand.series import DAY_BINS, Metric, Panel
from controller.predict.demand.targets import Target

DAYS = 9
SMALL = Training(
    rows=3_000,
    networks=1,
    growth=Growth(rows=1_500, iterations=15, leaf_rows=10, columns=0.5),
    descent=Descent(width=32, batch=128, epochs=10),
)
HOURS = {Target.HOURS: 24}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A forecaster that learned from nine days of eight VMs."""
    place = tmp_path_factory.mktemp("demand")
    forecaster = Forecaster(
        ModelStore(place / "models"),
        Ledger(place / "ledger.db"),
        group_of={f"vm{n}": "web" if n < 4 else "batch" for n in range(8)} | {"fresh": "web"},
        training=SMALL,
    )
    done = forecaster.retrain([panel_of(rhythm(DAYS, 8))], MONDAY)
    assert done.taken, done.reason
    yield forecaster
    forecaster.ledger.close()


def check(forecasts, count):
    assert len(forecasts) == count
    for forecast in forecasts:
        assert np.isfinite(forecast.quantiles).all()
        assert (forecast.quantiles >= 0).all()
        assert (np.diff(forecast.quantiles, axis=1) >= 0).all()
        told = [bool(top) for top in forecast.quantiles[:, -1] > (forecast.capacity or np.inf)]
        assert list(forecast.above_capacity) == told
        assert forecast.reason.model


def test_what_was_never_said_is_no_forecast_of_nothing(tmp_path):
    """In the days that models are tried on nothing was known yet: that says nothing of them."""
    values = np.full((1, 14 * DAY_BINS), np.nan)
    values[:, -23 * 12 :] = rhythm(1, 1)[:, : 23 * 12]
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        forecaster = Forecaster(ModelStore(tmp_path / "models"), ledger, training=SMALL)
        forecaster.rehearse(panel_of(values), tuple(HOURS))
        (told,) = forecaster.round(panel_of(values), HOURS).forecasts
    assert told.reason.losses == {}
    check([told], 1)


def test_every_target_is_told_for_a_day(trained):
    told = trained.round(panel_of(rhythm(DAYS, 8))).forecasts
    check(told, 8 * len(Target))
    steps = {forecast.target: len(forecast.quantiles) for forecast in told}
    assert steps == {
        Target.FIVE_MINUTES: 12,
        Target.HOURS: 24,
        Target.HOUR_PEAKS: 24,
        Target.DAY_PEAK: 1,
    }
    assert {forecast.reason.model for forecast in told} <= {"global", "seasonal-naive"}
    assert set(told[0].reason.losses) == {"global", "seasonal-naive"}
    assert told[0].times[0] == MONDAY + DAYS * 86_400
    for forecast in told:  # and of what it is made
        notes = " ".join(forecast.reason.notes)
        assert ("the median follows" in notes) == (forecast.reason.model == "global")


def test_steps_of_5_minutes_reach_a_day_when_asked(trained):
    panel = panel_of(rhythm(DAYS, 2))
    told = trained.round(panel, {Target.FIVE_MINUTES: DAY_BINS}).forecasts
    check(told, 2)
    assert told[0].quantiles.shape == (DAY_BINS, 4)


def test_a_clear_rhythm_is_foreseen(trained):
    values = rhythm(DAYS + 1, 8, seed=9)
    panel = panel_of(values)
    told = trained.round(panel.until(DAYS * DAY_BINS), HOURS).forecasts
    come = Target.HOURS.series(values[:, DAYS * DAY_BINS :])
    medians = np.stack([forecast.level(0.5) for forecast in told])
    assert np.abs(medians - come).mean() < 0.1 * come.mean()


def broken(draw_from, panel):
    """The panel with one row of each kind of trouble that hypothesis chose."""
    values = panel.values.copy()
    for row in range(len(values)):
        kind = draw_from(st.sampled_from(TROUBLES))
        start = draw_from(st.integers(0, panel.bins - 1))
        length = draw_from(st.integers(1, panel.bins))
        kind(values[row], slice(start, start + length))
    return Panel(panel.metric, panel.names, values, panel.end, panel.capacity)


def gap(row, where):
    row[where] = np.nan


def constant(row, where):
    row[:] = 0.37


def nothing(row, where):
    row[:] = np.nan


def zero(row, where):
    row[:] = 0


def burst(row, where):
    row[where] = 1e6


def huge(row, where):
    row[where] = 1e17


def step(row, where):
    row[where.start :] += 0.9


def newcomer(row, where):
    row[: max(where.start, 1)] = np.nan


TROUBLES = [gap, constant, nothing, zero, burst, huge, step, newcomer]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_past_whatever_leads_to_an_impossible_forecast(trained, data):
    panel = broken(data.draw, panel_of(rhythm(DAYS, 4)))
    check(trained.round(panel).forecasts, 4 * len(Target))


def test_a_week_that_is_missing_is_no_hindrance(trained):
    values = rhythm(16, 2)
    values[:, 7 * DAY_BINS : 14 * DAY_BINS] = np.nan
    check(trained.round(panel_of(values)).forecasts, 2 * len(Target))


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_what_never_changed_is_foreseen_as_it_is(trained, value):
    told = trained.round(panel_of(np.full((1, DAYS * DAY_BINS), value)), HOURS).forecasts
    np.testing.assert_allclose(told[0].level(0.5), value, atol=0.01)


def test_a_vm_without_a_past_is_forecast_like_others_of_its_role(trained):
    values = np.full((1, DAYS * DAY_BINS), np.nan)
    panel = Panel(Metric.CPU, ("fresh",), values, MONDAY + DAYS * 86_400, np.ones(1))
    (told,) = trained.round(panel, HOURS).forecasts
    assert told.reason.model == "peers"
    assert any("nothing is known" in note for note in told.reason.notes)
    web = rhythm(DAYS, 8)[:4]
    assert web.min() < told.level(0.5).mean() < web.max()
    # It has a rhythm, as the others of its role do.
    assert told.level(0.5).max() > 1.5 * told.level(0.5).min()


def test_where_too_little_is_known_of_anybody_it_is_said(tmp_path):
    """No zero of nowhere passes for a forecast that stands on something."""
    empty = Forecaster(ModelStore(tmp_path / "models"), Ledger(tmp_path / "ledger.db"))
    values = np.full((2, DAYS * DAY_BINS), np.nan)
    values[1, -10:] = 0.5
    for told in empty.round(panel_of(values), HOURS).forecasts:
        assert any("so this says nothing" in note for note in told.reason.notes)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.floats(0.001, 100), max_size=4),
    st.integers(0, 40),
    st.sampled_from(["daily", "weekly", None]),
)
@example([100.0] * 4, 0, "daily")
def test_absurd_factors_are_told_as_above_capacity(trained, factors, hours, repeats):
    starts = datetime.fromtimestamp(MONDAY, UTC) + timedelta(days=DAYS - 1, hours=hours)
    events = tuple(
        Event(
            name=f"e{n}",
            cause="campaign",
            starts=starts,
            lasts=timedelta(hours=20),
            repeats=repeats,
            factor=factor,
        )
        for n, factor in enumerate(factors)
    )
    trained.calendar = Calendar(events)
    try:
        check(trained.round(panel_of(rhythm(DAYS, 2))).forecasts, 2 * len(Target))
    finally:
        trained.calendar = Calendar()


def test_a_campaign_and_maintenance_are_in_the_forecast_with_their_names(trained):
    panel = panel_of(rhythm(DAYS, 2))
    (before, other) = trained.round(panel, HOURS).forecasts
    begin = datetime.fromtimestamp(panel.end, UTC)
    sale = {"starts": begin + timedelta(hours=3), "lasts": timedelta(hours=2), "vms": ("vm0",)}
    work = {"starts": begin + timedelta(hours=8), "lasts": timedelta(hours=1), "vms": ("vm0",)}
    trained.calendar = Calendar(
        (
            Event(name="sale", cause="campaign", factor=30, **sale),
            Event(name="work", cause="maintenance", factor=0, **work),
        )
    )
    try:
        (told, untouched) = trained.round(panel, HOURS).forecasts
    finally:
        trained.calendar = Calendar()
    ratio = told.quantiles / before.quantiles
    np.testing.assert_allclose(ratio[3:5], 30)
    np.testing.assert_allclose(ratio[8], 0)
    np.testing.assert_allclose(ratio[:3], 1)
    assert told.above_capacity[3:5] == (True, True)
    assert [note for note in told.reason.notes if "sale" in note or "work" in note]
    np.testing.assert_array_equal(untouched.quantiles, other.quantiles)


def test_who_forecast_better_is_chosen_and_why_is_told(trained):
    values = rhythm(DAYS + 6, 3)
    # A job on the minute that only the day before foretells.
    rng = np.random.default_rng(8)
    values[0] = np.tile(rng.random(DAY_BINS) ** 8, DAYS + 6)
    names = ("job0", "job1", "job2")
    panel = Panel(Metric.CPU, names, values, MONDAY + (DAYS + 6) * 86_400, np.ones(3))
    for day in range(DAYS, DAYS + 5):
        trained.ledger.remember(trained.round(panel.until(day * DAY_BINS), HOURS).told)
        trained.settle(panel.until((day + 1) * DAY_BINS))
    told = trained.round(panel.until((DAYS + 5) * DAY_BINS), HOURS).forecasts
    assert told[0].reason.model == "seasonal-naive"
    losses = told[0].reason.losses
    assert losses["seasonal-naive"] < losses["global"]
    assert trained.calibration(Metric.CPU, Target.HOURS, "global").misses > 3 * 24


def test_a_forecast_is_told_with_its_reasons(trained):
    panel = panel_of(rhythm(DAYS, 1), capacity=0.01)
    (told,) = trained.round(panel, HOURS).forecasts
    text = draw.table(told)
    assert "vm0 cpu hours, %" in text
    assert f"model: {told.reason.model}" in text
    assert "recent loss of each model" in text
    assert "past: 216 h known, from 2026-03-02 00:00 to 2026-03-11 00:00" in text
    assert text.count("above capacity") == 24


def test_a_forecast_is_drawn(trained, tmp_path):
    panel = panel_of(rhythm(DAYS, 1))
    told = trained.round(panel).forecasts
    draw.picture(told, panel, tmp_path / "a.svg")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    draw.picture(told, panel, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        draw.picture(told, panel, tmp_path / "a.jpeg")


@pytest.mark.parametrize("metric", list(Metric))
def test_every_metric_has_a_unit_that_people_read(metric):
    factor, name = draw.unit(metric)
    assert factor > 0
    assert name
