"""The models behind one protocol, where they are kept, and what happens when one is lost."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from demand_data import MONDAY, panel_of, rhythm

from controller.predict.demand import global_model, keep, neural, statistics
from controller.predict.demand.boosted import Growth
from controller.predict.demand.features import design, summarise
from controller.predict.demand.global_model import Training, train
from controller.predict.demand.keep import About, ModelStore
from controller.predict.demand.network import Descent
from controller.predict.demand.newcomers import learn
from controller.predict.demand.seasonal import SeasonalNaive
from controller.predict.demand.series import DAY_BINS, Metric
from controller.predict.demand.sources import SOURCES, in_words, sources
from controller.predict.demand.targets import Target
from controller.predict.demand.training import HELD_OUT, retrain

SMALL = Training(
    rows=1_000,
    networks=1,
    growth=Growth(rows=1_000, iterations=5, leaf_rows=10),
    descent=Descent(width=16, epochs=2),
)


@pytest.fixture(scope="module")
def model():
    return train([panel_of(rhythm(8, 4))], (Target.HOURS,), SMALL)


def about(made=1):
    return About("cpu", made, 0, 1, 4, 0.5, 0.6)


def test_what_is_seen_has_neither_unit_nor_name():
    values = rhythm(15, 3)
    for target in Target:
        plain = design(summarise(panel_of(values)), target, [1])
        times_8 = design(summarise(panel_of(8 * values)), target, [1])
        same = [n for n, name in enumerate(plain.columns) if name != "scale"]
        np.testing.assert_allclose(
            plain.rows[:, same], times_8.rows[:, same], rtol=1e-2, atol=1e-2, equal_nan=True
        )


def test_nothing_of_the_future_is_seen():
    values = rhythm(16, 2)
    changed = values.copy()
    changed[:, 15 * DAY_BINS :] = 9.0
    for target in Target:
        leads = range(1, target.steps + 1)
        told = [
            design(summarise(panel_of(v).until(15 * DAY_BINS)), target, leads)
            for v in (values, changed)
        ]
        np.testing.assert_array_equal(told[0].rows, told[1].rows)


def test_whatever_is_told_is_said_to_be_of_something():
    seen = summarise(panel_of(rhythm(15, 2)))
    for target in Target:
        made = design(seen, target, [1])
        names = made.columns[: made.levels]
        assert sources(names, target).sum(axis=1).tolist() == [1.0] * (made.levels + 1)
    with pytest.raises(ValueError, match="tomorrow of hours"):
        sources(["tomorrow"], Target.HOURS)


def test_what_a_forecast_is_made_of_adds_up(model):
    past = panel_of(rhythm(8, 3, seed=5))
    told, notes = model.explained(past, {Target.HOURS: 24})
    np.testing.assert_array_equal(told[Target.HOURS], model.quantiles(past, Target.HOURS, 24))
    assert len(notes[Target.HOURS]) == 3
    learned = model.learned[Target.HOURS]
    made = design(summarise(past), Target.HOURS, range(1, 25))
    _, shares = learned(made.values, sources(made.columns[: made.levels], Target.HOURS), None)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert (
        "boosted trees" in model.alone("trees").explained(past, {Target.HOURS: 24})[1]["hours"][0]
    )


def test_what_counts_most_is_said_first():
    shares = np.zeros(len(SOURCES))
    shares[[0, 3, 5]] = 0.2, 0.75, 0.05
    assert in_words(shares, Target.HOURS) == (
        "the median follows the same time of other days (75%), the last hours (20%)"
    )
    assert "the peaks of other days (75%)" in in_words(shares, Target.DAY_PEAK)


def test_a_model_is_the_same_after_it_was_kept(model, tmp_path):
    store = ModelStore(tmp_path)
    store.put(model, about())
    kept = store.newest("cpu")
    past = panel_of(rhythm(8, 2, seed=5))
    told = model.quantiles(past, Target.HOURS, 24)
    np.testing.assert_array_equal(kept.model.quantiles(past, Target.HOURS, 24), told)


@pytest.mark.parametrize("what", ["flipped", "cut", "gone", "no-json", "foreign"])
def test_a_model_that_is_not_whole_is_passed_over_for_the_one_before(model, tmp_path, what):
    store = ModelStore(tmp_path)
    store.put(model, about(1))
    store.put(model, about(2))
    newest = tmp_path / "cpu" / "000000000002"
    file, told = newest / "model.npz", newest / "about.json"
    data = file.read_bytes()
    if what == "flipped":
        file.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    elif what == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif what == "gone":
        file.unlink()
    elif what == "no-json":
        told.write_text("{")
    else:
        told.write_text(json.dumps({**json.loads(told.read_text()), "more": 1}))
    assert store.newest("cpu").about.made == 1


def test_without_any_whole_model_there_is_none(tmp_path):
    assert ModelStore(tmp_path).newest("cpu") is None


def test_old_versions_are_forgotten_and_half_written_ones_are_none(model, tmp_path):
    store = ModelStore(tmp_path)
    for made in range(1, keep.KEPT + 3):
        store.put(model, about(made))
    (tmp_path / "cpu" / ".writing-000000000099").mkdir()
    assert store.newest("cpu").about.made == keep.KEPT + 2
    assert len([p for p in (tmp_path / "cpu").iterdir() if p.name[0] != "."]) == keep.KEPT


@pytest.mark.parametrize("data", [b"", b"no model", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_model_is_refused(data):
    with pytest.raises(ValueError, match="no model of demand"):
        global_model.load(data)


def test_a_training_that_fails_leaves_the_model_that_there_is(model, tmp_path, monkeypatch):
    store = ModelStore(tmp_path)
    store.put(model, about())

    def fail(*_, **__):
        raise MemoryError("no memory")

    monkeypatch.setattr(global_model, "train", fail)
    done = retrain(store, [panel_of(rhythm(8, 4))], MONDAY)
    assert not done.taken
    assert done.kept.about.made == 1
    assert "no memory" in done.reason


def test_what_was_tried_without_the_newest_days_learns_of_them_too(tmp_path, monkeypatch):
    asked = []

    def watched(panels, *_, begin=None, **__):
        asked.append((panels[0].end, begin))
        return train(panels, training=SMALL, begin=begin)

    monkeypatch.setattr(global_model, "train", watched)
    panel = panel_of(rhythm(8, 4))
    done = retrain(ModelStore(tmp_path), [panel], MONDAY)
    assert done.taken
    (before, nothing), (now, tried) = asked
    assert (before, now) == (panel.end - HELD_OUT * 86_400, panel.end)
    assert nothing is None
    assert tried is not None
    assert done.kept.about.last == panel.end


def test_a_model_that_is_worse_is_not_taken(tmp_path, monkeypatch):
    store = ModelStore(tmp_path)
    tiny = replace(SMALL, rows=200)
    worse = train([panel_of(rhythm(8, 4))], training=tiny)
    store.put(worse, about())
    higher = {
        target: replace(one, networks=(), trees=replace(one.trees, base=one.trees.base + 200))
        for target, one in worse.learned.items()
    }
    worst = replace(worse, learned=higher)
    monkeypatch.setattr(global_model, "train", lambda *_, **__: worst)
    done = retrain(store, [panel_of(rhythm(8, 4))], MONDAY)
    assert not done.taken
    assert "of the one in use" in done.reason
    assert store.newest("cpu").about.made == 1


def late(days):
    """Two series of 20 days of which the last ones alone are known."""
    return np.hstack([np.full((2, (20 - days) * DAY_BINS), np.nan), rhythm(days, 2)])


@pytest.mark.parametrize("values", [np.full((2, 8 * DAY_BINS), np.nan), rhythm(3, 2), late(6)])
def test_too_little_to_learn_from_is_told_in_a_line(tmp_path, values, caplog):
    done = retrain(ModelStore(tmp_path), [panel_of(values)], MONDAY)
    assert (done.kept, done.taken) == (None, False)
    assert done.reason == "less than 7 days of past"
    assert not any(record.exc_info for record in caplog.records)


def test_metrics_that_are_not_alike_are_not_learned_together():
    values = rhythm(8, 1)
    with pytest.raises(ValueError, match="one family"):
        train([panel_of(values), panel_of(values, Metric.MEMORY)])


def test_the_seasonal_naive_forecast_is_the_day_before_with_past_differences():
    values = np.tile(np.arange(DAY_BINS, dtype=float), 3)[None]
    told = SeasonalNaive().quantiles(panel_of(values), Target.FIVE_MINUTES, 12)
    for column in range(4):
        np.testing.assert_array_equal(told[0, :, column], np.arange(12))


def test_peers_are_of_the_closest_kind_that_has_a_past_or_else_everybody():
    values = np.concatenate([np.full((2, 2 * DAY_BINS), 0.1), np.full((2, 2 * DAY_BINS), 0.9)])
    panel = panel_of(values)
    kin = {
        "vm0": ("role-1", "web"), "vm1": ("web",), "vm2": ("db",), "vm3": ("db",),
        "new": ("role-9", "web", "db"), "odd": ("none",),
    }  # fmt: skip
    peers = learn(panel, kin)
    asked = panel_of(np.full((2, DAY_BINS), np.nan))
    asked = type(asked)(asked.metric, ("new", "odd"), asked.values, asked.end, asked.capacity)
    for target in Target:
        told = peers.quantiles(asked, target, 1)
        np.testing.assert_allclose(told[0], 0.1, rtol=1e-6)
        assert [peers.kind(vm, target) for vm in ("vm0", "new", "odd")] == ["role-1", "web", ""]
        assert told[1, 0, 0] == pytest.approx(0.1)
        assert told[1, 0, 3] == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["theta", "auto-ets", "auto-arima"])
def test_the_models_of_the_literature_follow_a_clear_rhythm(name):
    (model,) = [m for m in statistics.available() if m.name == name]
    values = rhythm(6, 1)
    past = panel_of(values).until(5 * DAY_BINS)
    told = model.quantiles(past, Target.HOURS, 24)
    come = Target.HOURS.series(values[:, 5 * DAY_BINS :])
    assert np.abs(told[..., 0] - come).mean() < 0.25 * come.mean()
    assert (np.diff(told, axis=-1) >= 0).all()


def test_the_models_of_the_literature_say_nothing_where_nothing_is_known():
    values = np.stack([np.full(2 * DAY_BINS, np.nan), np.full(2 * DAY_BINS, 0.2)])
    for model in statistics.available():
        told = model.quantiles(panel_of(values), Target.HOURS, 3)
        assert np.isnan(told[0]).all()
        np.testing.assert_allclose(told[1], 0.2, rtol=1e-6)


def test_extras_that_are_not_installed_are_no_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert statistics.available() == ()
    assert not neural.available()
    nothing = neural.Neural({}).quantiles(panel_of(rhythm(1, 2)), Target.HOURS, 24)
    assert np.isnan(nothing).all()
