"""The calendar: what is read, what is refused, and what it does to past and future."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from demand_data import MONDAY, panel_of
from hypothesis import given
from hypothesis import strategies as st

from controller.model.calendar import MOST, Cause, Repeats
from controller.predict.demand.events import (
    Calendar,
    CalendarError,
    Event,
    load,
    step_factors,
    without,
)
from controller.predict.demand.series import DAY_BINS, STEP, Metric
from controller.predict.demand.targets import Target

NOON = datetime.fromtimestamp(MONDAY, UTC) + timedelta(hours=12)


def event(**fields):
    given_fields = {
        "name": "sale",
        "cause": "campaign",
        "starts": NOON,
        "lasts": timedelta(hours=1),
        "factor": 2.0,
    }
    return Event.model_validate(given_fields | fields)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "calendar.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_calendar_is_read():
    shipped = Path(__file__).parents[2] / "policies" / "calendar.yaml"
    assert load(shipped) == Calendar()


def test_the_example_in_the_shipped_calendar_is_right(tmp_path):
    shipped = Path(__file__).parents[2] / "policies" / "calendar.yaml"
    lines = shipped.read_text(encoding="utf-8").splitlines()
    first = lines.index("# events:")
    example = [line.removeprefix("# ") for line in lines[first:] if line.startswith("#")]
    found = load(write(tmp_path, "\n".join(example)))
    assert [e.cause for e in found.events] == [Cause.BATCH, Cause.CAMPAIGN, Cause.MAINTENANCE]
    assert found.events[2].factor == 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("factor: 1000000", "less than or equal to 100"),
        ("factor: -1", "greater than or equal to 0"),
        ("factor: .nan", "finite number"),
        ("factor: 0", "cause: maintenance"),
        ("lasts: PT0S", "greater than"),
        ("starts: 2026-11-27T00:00:00", "timezone"),
        ("starts: soon", "datetime"),
        ("repeats: daily\n    lasts: P2D", "longer than it takes"),
        ("until: 2020-01-01T00:00:00Z", "until must be after"),
        ("metrics: [gpu]", "cpu"),
        ("surprise: 1", "not permitted"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(tmp_path, change, cause):
    fields = {
        "name": "x",
        "cause": "campaign",
        "starts": "2026-11-27T00:00:00Z",
        "lasts": "PT1H",
        "factor": "2",
    }
    for line in change.split("\n"):
        key, _, value = line.strip().partition(": ")
        fields[key] = value
    body = "\n    ".join(f"{key}: {value}" for key, value in fields.items())
    path = write(tmp_path, f"# a calendar\nevents:\n  - {body}\n")
    with pytest.raises(CalendarError) as caught:
        load(path)
    assert f"{path}:3:" in str(caught.value)
    assert cause in str(caught.value)


@pytest.mark.parametrize("text", ["- a", "events: 3", "events: [", "other: []", "\x00"])
def test_a_file_that_is_no_calendar_is_told(tmp_path, text):
    with pytest.raises(CalendarError, match=r"calendar\.yaml"):
        load(write(tmp_path, text))


def test_an_event_is_on_in_the_bins_that_it_touches():
    factors = Calendar((event(lasts=timedelta(minutes=7)),)).factors(MONDAY, DAY_BINS)
    assert np.flatnonzero(factors != 1).tolist() == [144, 145]


def test_an_event_comes_again_until_its_end():
    twice = event(repeats=Repeats.DAILY, until=NOON + timedelta(days=2))
    on = np.flatnonzero(Calendar((twice,)).factors(MONDAY, 4 * DAY_BINS) == 2)
    assert on.tolist() == [*range(144, 156), *range(144 + DAY_BINS, 156 + DAY_BINS)]
    before = Calendar((twice,)).factors(MONDAY - 86_400, DAY_BINS)
    assert (before == 1).all()


@given(st.lists(st.floats(0.01, MOST), max_size=6), st.integers(-10, 10_000))
def test_factors_are_finite_and_bounded_however_many_events_there_are(factors, shift):
    events = tuple(event(factor=factor, repeats="daily") for factor in factors)
    told = Calendar(events).factors(MONDAY + shift * STEP, 300)
    assert np.isfinite(told).all()
    assert ((told >= 0) & (told <= MOST)).all()


def test_events_concern_who_is_named():
    mine = event(vms=("a",), groups=("web",), metrics=(Metric.CPU,))
    assert mine.concerns("a", None, Metric.CPU)
    assert mine.concerns("b", "web", Metric.CPU)
    assert not mine.concerns("b", "db", Metric.CPU)
    assert not mine.concerns("a", None, Metric.MEMORY)
    assert event().concerns("anyone", None, Metric.MEMORY)


def test_the_past_is_told_without_events_and_maintenance_is_a_gap():
    values = np.ones((1, 2 * DAY_BINS))
    values[0, 144:156] = 2
    stop = event(cause="maintenance", starts=NOON + timedelta(days=1), factor=0.0)
    clean = without(panel_of(values), [Calendar((event(), stop))])
    known = np.isfinite(clean.values[0])
    np.testing.assert_array_equal(clean.values[0][known], 1)
    assert np.flatnonzero(~known).tolist() == list(range(DAY_BINS + 144, DAY_BINS + 156))


def test_a_mean_takes_the_share_of_an_event_and_a_peak_all_of_it():
    half = Calendar((event(starts=NOON, lasts=timedelta(minutes=30), factor=3.0),))
    assert step_factors(half, Target.HOURS, MONDAY + 12 * 3_600, 2).tolist() == [2, 1]
    assert step_factors(half, Target.HOUR_PEAKS, MONDAY + 12 * 3_600, 2).tolist() == [3, 1]
    assert step_factors(half, Target.DAY_PEAK, MONDAY, 1).tolist() == [3]


def test_a_factor_moves_to_what_was_seen_but_not_without_bound():
    values = np.ones(8 * DAY_BINS)
    for day in range(8):
        values[day * DAY_BINS + 144 : day * DAY_BINS + 156] = 3
    once = Calendar((event(starts=NOON, repeats="weekly"),))
    values[144:156] = 1.5
    values[7 * DAY_BINS + 144 : 7 * DAY_BINS + 156] = 1.5
    learned = once.learned(values, MONDAY).events[0].factor
    assert 0.5 <= learned < 2
    values[144:156] = 1e9
    assert once.learned(values, MONDAY).events[0].factor <= 8
    assert once.learned(np.full(len(values), np.nan), MONDAY).events[0].factor == 2
