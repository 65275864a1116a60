"""Periods, features, neighbours and roles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.observe.behaviour.features import LEVELS, features
from controller.observe.behaviour.neighbours import nearest
from controller.observe.behaviour.periods import periods
from controller.observe.behaviour.roles import Role, follow, groups, stability

WHERE = np.arange(2_016)


def noise(seed: int, size: int = WHERE.size) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("length", [7.3, 12, 60.5, 288])
@pytest.mark.parametrize("shape", ["sine", "pulse"])
def test_a_period_is_found_whatever_its_shape(length, shape):
    phase = WHERE / length % 1
    wave = np.sin(2 * np.pi * phase) if shape == "sine" else 3.0 * (phase < 0.15)
    (first, *_) = periods(wave + 0.7 * noise(1))
    assert first.length == pytest.approx(length, rel=0.02)
    assert 0.1 < first.strength <= 1


def test_two_periods_and_gaps():
    values = 3 * np.sin(2 * np.pi * WHERE / 100) + 2 * np.sin(2 * np.pi * WHERE / 23) + noise(2)
    values[::7] = np.nan
    values[500:560] = np.inf
    found = periods(values)
    assert [round(p.length) for p in found] == [100, 23]


def test_noise_of_any_colour_has_none():
    walks = [np.cumsum(noise(seed)) for seed in range(20)]
    whites = [noise(seed + 100) for seed in range(20)]
    assert sum(bool(periods(values)) for values in (*walks, *whites)) <= 1


def test_what_is_too_short_or_constant_or_mostly_gaps_has_none():
    sine = np.sin(2 * np.pi * WHERE / 10)
    assert periods(sine)
    assert periods(sine[:40]) == ()
    assert periods(np.full(500, 3.0)) == ()
    assert periods(np.where(WHERE % 2, sine, np.nan)) == ()
    assert periods([]) == ()


values = arrays(
    np.float64,
    st.integers(0, 300),
    elements=st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, np.nan]),
)


@settings(max_examples=60)
@given(values)
def test_features_of_any_input_are_numbers(series):
    found = features(series)
    if found is not None:
        assert np.isfinite(found.vector()).all()
        assert all(0 <= share <= 1 + 1e-9 for share in found.wavelet)


@settings(max_examples=25)
@given(st.integers(0, 1_000), st.floats(1e-3, 1e6))
def test_features_have_no_unit(seed, unit):
    series = 10 + noise(seed, 256) + np.sin(np.arange(256) / 3)
    np.testing.assert_allclose(
        features(series).vector(), features(series * unit).vector(), rtol=1e-6, atol=1e-9
    )


def test_features_tell_what_they_say():
    rising = features(WHERE / 100 + 0.1 * noise(3))
    assert rising.trend > 3
    rough = features(noise(4))
    assert abs(rough.trend) < 0.5
    assert rough.wavelet[0] > 0.4 > rough.wavelet[LEVELS]
    assert rising.wavelet[LEVELS] > 0.9
    assert sum(rough.wavelet) == pytest.approx(1)
    bursts = features(np.where(WHERE % 500 == 3, 100.0, 0.0))
    assert bursts.burstiness > 0.7
    assert rising.autocorrelation[0] > 0.9 > abs(rough.autocorrelation[0])
    assert features(np.full(200, 5.0)).burstiness == -1


def test_the_nearest_behaviours():
    kinds = {"flat": noise(5), "daily": 5 * np.sin(WHERE / 40) + noise(6), "up": WHERE + noise(7)}
    keys = [(name, f"day{i}") for name in kinds for i in range(3)]
    chance = np.random.default_rng(8)
    rows = [
        features(kinds[name] + 0.3 * chance.normal(size=WHERE.size)).vector() for name, _ in keys
    ]
    asked = np.array([features(kinds["daily"]).vector()])
    (found,) = nearest(keys, np.array(rows), asked, 3)
    assert {one.key[0] for one in found} == {"daily"}
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert nearest([], np.empty((0, 13)), asked) == [[]]
    with pytest.raises(ValueError, match="one for each"):
        nearest(keys[:1], np.array(rows), asked)


def park(seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """30 VMs of three roles, on some day."""
    chance = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(0).normal(size=(3, 8))
    talks = np.array([[100, 0, 5], [0, 80, 20], [5, 5, 90]])
    kind = np.arange(30) % 3
    vms = [f"vm{i}" for i in range(30)]
    return (
        vms,
        centres[kind] + 0.3 * chance.normal(size=(30, 8)),
        talks[kind] * chance.uniform(0.5, 2, (30, 1)),
    )


def test_roles_are_found_and_stay_from_day_to_day():
    before: tuple[Role, ...] = ()
    for day in range(4):
        found = groups(*park(day))
        assert [len(group) for group in found] == [10, 10, 10]
        assert all(len({int(vm[2:]) % 3 for vm in group}) == 1 for group in found)
        today = follow(before, found[::-1] if day % 2 else found, [f"d{day}r{i}" for i in range(3)])
        assert {role.id for role in today} == {"d0r0", "d0r1", "d0r2"}
        assert day == 0 or stability(before, today) == 1
        before = today


def test_a_role_lives_on_where_most_of_it_is():
    before = (Role("a", frozenset("123456")), Role("b", frozenset("789")))
    today = (frozenset("1234789"), frozenset("56"), frozenset("xyz"))
    roles = follow(before, today, ["n1", "n2", "n3"])
    # Best for all: "a" keeps the two that left it, as most of the large group cannot be both.
    assert [role.id for role in roles] == ["b", "a", "n1"]
    with pytest.raises(ValueError, match="one for each"):
        follow(before, today, ["n1"])


def test_groups_of_hardly_any_vms():
    assert groups([], np.empty((0, 2)), np.empty((0, 2))) == ()
    assert groups(["a"], np.ones((1, 2)), np.ones((1, 2))) == (frozenset({"a"}),)
    bad = np.array([[np.nan, np.inf], [1.0, -1.0]])
    assert groups(["a", "b"], bad, bad)
