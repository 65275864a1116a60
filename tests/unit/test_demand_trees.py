"""Trees whose rows are bits tell what scikit-learn tells of the same rows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor

from controller.predict.demand import trees
from controller.predict.demand.trees import Trees


def table(rng, rows, infinite=True, columns=6):
    """Rows with gaps, values that repeat, huge ones, a column that hardly ever changes, and maybe
    infinities."""
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    values[:, 1] = np.round(values[:, 1], 1)
    values[:, 2] = values[:, 2] > 2
    values[:, 3] *= np.float32(1e30)
    values[rng.random(values.shape) < 0.2] = np.nan
    if infinite:
        values[rng.random(values.shape) < 0.01] = np.inf
        values[rng.random(values.shape) < 0.01] = -np.inf
    return values


def fitted(rng, rows, **how):
    """A model of few trees; where something is unknown says much, and left or right is meant."""
    values = table(rng, rows, infinite=False)
    sums = np.nan_to_num(values[:, :2]).sum(axis=1)
    wanted = sums + 3 * np.isnan(values[:, 0]) - 3 * np.isnan(values[:, 4]) + 5 * values[:, 5] ** 2
    how = {"max_iter": 5, "min_samples_leaf": 3, "early_stopping": False, **how}
    model = HistGradientBoostingRegressor(random_state=int(rng.integers(2**31)), **how)
    return model.fit(values, np.clip(np.nan_to_num(wanted), -50, 50))


@pytest.fixture(scope="module")
def some():
    rng = np.random.default_rng(3)
    models = [fitted(rng, 300, max_leaf_nodes=8) for _ in range(2)]
    return Trees.learned([models])


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    leaves=st.sampled_from([2, 3, 31, 64, 200, 256]),
    bags=st.integers(1, 3),
    outputs=st.integers(1, 3),
    rows=st.integers(0, 300),
)
def test_they_tell_what_scikit_learn_tells(seed, leaves, bags, outputs, rows):
    rng = np.random.default_rng(seed)
    learned_from = int(rng.integers(20, 900))
    models = [
        [fitted(rng, learned_from, max_leaf_nodes=leaves) for _ in range(bags)]
        for _ in range(outputs)
    ]
    made = Trees.learned(models)
    asked = table(rng, rows)
    told = made(np.ascontiguousarray(asked.T))
    assert told.shape == (outputs, rows)
    for output, bag in enumerate(models):
        if rows:
            expected = np.mean([model.predict(asked) for model in bag], axis=0)
            np.testing.assert_allclose(told[output], expected, rtol=1e-5, atol=1e-4)


def test_values_on_a_threshold_go_the_same_way():
    """Where a threshold of scikit-learn lies between two singles, none of them may change sides."""
    rng = np.random.default_rng(0)
    values = (np.float32(16_777_216) + rng.integers(0, 64, size=(500, 1)) * 2).astype(np.float32)
    model = HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=1, early_stopping=False)
    model.fit(values, rng.normal(size=500))
    asked = np.unique(np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, 9e9)]))
    told = Trees.learned([[model]])(asked[None])
    np.testing.assert_allclose(told[0], model.predict(asked[:, None]), rtol=1e-5, atol=1e-6)


def test_what_is_told_of_a_row_does_not_depend_on_those_beside_it(some, monkeypatch):
    columns = np.ascontiguousarray(table(np.random.default_rng(5), 1_000).T)
    whole = some(columns)
    for size in (64, 192, 640):
        monkeypatch.setattr(trees, "_ROWS", size)
        np.testing.assert_array_equal(some(columns), whole)
    np.testing.assert_array_equal(some(columns[:, 17:18]), whole[:, 17:18])


def test_trees_that_share_nothing_tell_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    made = Trees.learned([[fitted(rng, 300, max_iter=11)] for _ in range(3)])
    columns = np.ascontiguousarray(table(rng, 200).T)
    whole = made(columns)
    monkeypatch.setattr(trees, "_TREES", 3)
    monkeypatch.setattr(trees, "_SHARING", 7)
    monkeypatch.setattr(trees, "_THRESHOLDS", 1)
    np.testing.assert_array_equal(Trees.of(made.arrays())(columns), whole)


def test_a_tree_that_learned_nothing_tells_its_value():
    values = np.zeros((50, 1), dtype=np.float32)
    model = HistGradientBoostingRegressor(max_iter=2, early_stopping=False)
    model.fit(values, np.full(50, 7.0))
    np.testing.assert_allclose(Trees.learned([[model]])(values.T), 7.0)


def test_trees_of_categories_are_refused():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 5, size=(200, 1)).astype(float)
    model = HistGradientBoostingRegressor(max_iter=2, categorical_features=[0])
    model.fit(values, values[:, 0] % 2)
    with pytest.raises(ValueError, match="categories"):
        Trees.learned([[model]])


def wrong(some, name, at, value):
    array = getattr(some, name).copy()
    array[at] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: {"value": t.value[:-1]}, "other lengths"),
        (lambda t: wrong(t, "value", -1, np.nan), "not finite"),
        (lambda t: wrong(t, "base", 0, np.inf), "not finite"),
        (lambda t: wrong(t, "threshold", 0, np.nan), "thresholds that are NaN"),
        (lambda t: wrong(t, "outputs", 0, 1), "other outputs"),
        (lambda t: {"outputs": t.outputs[1:]}, "other outputs"),
        (lambda t: wrong(t, "roots", 0, 1), "do not begin"),
        (lambda t: {"roots": t.roots[::-1].copy()}, "do not begin"),
        (lambda t: wrong(t, "left", t.left[0], 0) | wrong(t, "left", t.left[0], 1), "after them"),
        (lambda t: wrong(t, "right", 0, len(t.feature)), "after them"),
        (lambda t: wrong(t, "right", 0, t.left[0]), "to no tree, or to several"),
        (lambda t: wrong(t, "left", 0, t.roots[1]), "to no tree, or to several"),
    ],
)
def test_arrays_that_are_no_trees_are_refused(some, change, match):
    with pytest.raises(ValueError, match=match):
        replace(some, **change(some))


def test_arrays_of_other_kinds_are_refused(some):
    arrays = some.arrays()
    with pytest.raises(ValueError, match="value is no list of float32"):
        Trees.of({**arrays, "value": arrays["value"].astype(float)})
    with pytest.raises(KeyError):
        Trees.of({name: array for name, array in arrays.items() if name != "left"})


def test_trees_of_too_many_leaves_are_refused():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(2_000, 1)).astype(np.float32)
    model = HistGradientBoostingRegressor(
        max_iter=1, max_leaf_nodes=1_000, max_bins=255, min_samples_leaf=1, early_stopping=False
    )
    model.fit(np.hstack([values, values[::-1]]), rng.normal(size=2_000))
    with pytest.raises(ValueError, match="more than 256 leaves"):
        Trees.learned([[model]])


def test_who_only_forecasts_needs_no_scikit_learn():
    code = (
        "import sys, controller.predict.demand.forecaster;"
        "sys.exit(any(name in sys.modules for name in ('sklearn', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
