"""What leaves its own pattern, and what is only bad input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.observe.anomalies.bank import Bank, Finding, Rule, View
from controller.observe.anomalies.tail import tail
from tests.benchmarks import nab

#: Short memories, so that tests are.
SMALL = Rule(near=8, burst=3, window=4, base=6, block=4, remembered=40, learning=6, quiet=8)


def fed(values, rule=SMALL, step=300.0, least=0.0) -> list[tuple[int, Finding]]:
    bank = Bank(1, rule, least)
    return [(i, f) for i, v in enumerate(values) for f in bank.step(step * i, [v])]


def noise(size: int, seed: int = 1) -> np.ndarray:
    return 50.0 + np.random.default_rng(seed).normal(size=size)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_spike_is_found_at_once(sign):
    values = noise(400)
    values[300] += sign * 40
    found = fed(values)
    first = next(f for i, f in found if i >= 290)
    assert first.at == 300 * 300.0
    assert first.upward is (sign > 0)
    assert first.value == pytest.approx(values[300]) or first.view is not View.SPIKE
    assert first.score > 1


def test_a_shift_of_the_level_is_reported_once():
    values = noise(600)
    values[300:] += 12
    found = [i for i, _ in fed(values) if i >= 290]
    assert 300 <= found[0] < 304
    assert all(i < 320 for i in found)


def test_noise_is_reported_as_seldom_as_the_rule_says():
    rule, steps, size = Rule(), 600, 200
    bank, chance = Bank(size, rule), np.random.default_rng(3)
    count = sum(len(bank.step(300.0 * i, chance.normal(50, 5, size))) for i in range(steps))
    weeks = size * (steps * rule.cadence_s / 604_800)
    assert count <= 2 * rule.per_week * weeks


def test_what_comes_each_day_is_reported_no_more():
    values = noise(800)
    values[40::40] += 30
    assert not [i for i, _ in fed(values) if i > 400]


def test_constants_are_nothing_and_least_says_what_matters():
    assert fed([7.0] * 200) == []
    stepped = [0.0] * 100 + [3.0] * 100
    assert fed(stepped)
    assert fed(stepped, least=10.0) == []


def test_what_is_no_number_or_late_or_double_is_passed_over():
    values = noise(300)
    clean, dirty = Bank(1, SMALL), Bank(1, SMALL)
    expected, found = [], []
    for i, value in enumerate(values):
        at = 300.0 * i
        value += 30 * (i == 250)
        expected += clean.step(at, [value])
        for bad in (np.nan, np.inf, -np.inf, 1e200):
            assert dirty.step(at, [bad]) == []
        found += dirty.step(at, [value])
        assert dirty.step(at, [1e6]) == []
        assert dirty.step(at - 3_000, [1e6]) == []
        assert dirty.step(np.nan, [1e6]) == []
    assert expected
    assert found == expected


def test_where_a_series_went_in_a_long_gap_is_no_jump():
    bank, values = Bank(1, SMALL), noise(300)
    values[200:] += 40
    found = []
    for i, value in enumerate(values):
        found += bank.step(300.0 * i + (86_400.0 if i >= 200 else 0.0), [value])
    assert [f for f in found if f.at >= 86_400.0 + 200 * 300.0] == []
    assert [i for i, _ in fed(values) if i >= 200]


def test_series_of_a_bank_do_not_know_each_other():
    values = np.stack([noise(300, seed) for seed in range(4)], axis=1)
    values[200, 2] += 50
    values[100:120, 1] = np.nan
    bank = Bank(4, SMALL)
    together = [f for i in range(300) for f in bank.step(300.0 * i, values[i])]
    for number in range(4):
        alone = [replace(f, series=number) for _, f in fed(values[:, number])]
        assert [f for f in together if f.series == number] == alone


def test_a_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match="give one each"):
        Bank(2).step(0.0, [1.0])


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=120,
    )
)
def test_no_input_breaks_a_bank(samples):
    bank = Bank(1, SMALL)
    with np.errstate(all="raise", under="ignore"):
        for at, value in samples:
            for finding in bank.step(at, [value]):
                assert np.isfinite(finding.value)
                assert finding.score > 1


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e6))
def test_the_unit_does_not_matter(seed, unit):
    values = noise(150, seed)
    values[120] += 30
    bank = Bank(2, SMALL)
    found = [(i, f) for i, v in enumerate(values) for f in bank.step(300.0 * i, [v, v * unit])]
    told = [[(i, f.view) for i, f in found if f.series == number] for number in (0, 1)]
    assert told[0] == told[1]


@given(st.integers(4, 200), st.floats(1e-6, 0.05))
def test_a_seldom_bound_lies_higher(blocks, chance):
    known = tail(np.random.default_rng(blocks).exponential(size=(blocks, 2)), np.full(2, 1e-6))
    assert (known.bound(chance / 2) > known.bound(chance)).all()
    assert (known.bound(1.0) >= known.start).all()


def test_too_few_blocks_tell_no_tail():
    with pytest.raises(ValueError, match="wait for"):
        tail(np.zeros((3, 1)), np.ones(1))


class TestNab:
    """The scoring, by hand."""

    SERIES = nab.Series(
        "x", tuple(map(float, range(1_000))), (0.0,) * 1_000, ((300, 399), (600, 699))
    )

    def test_nothing_is_0_and_both_left_edges_100(self):
        assert nab.tally(self.SERIES, []).score == 0
        assert nab.tally(self.SERIES, [300, 600]).score == pytest.approx(100)

    def test_only_the_earliest_in_a_window_counts(self):
        assert nab.tally(self.SERIES, [340, 350, 399]) == nab.tally(self.SERIES, [340])

    def test_the_middle_of_a_window(self):
        middle = (2 / (1 + np.exp(-2.5)) - 1) / (2 / (1 + np.exp(-5.0)) - 1)
        assert nab.tally(self.SERIES, [350]).raw == pytest.approx(middle - 1)

    def test_false_positives_cost_by_their_distance(self):
        assert nab.tally(self.SERIES, [200]).raw == pytest.approx(-2 - 0.11)
        near, far = nab.tally(self.SERIES, [402]), nab.tally(self.SERIES, [590])
        assert -2 > near.raw > far.raw > -2.11
        assert nab.tally(self.SERIES, [999]).raw == pytest.approx(-2 - 0.11)

    def test_probation_does_not_count(self):
        assert self.SERIES.probation == 150
        assert nab.tally(self.SERIES, [0, 149]).raw == -2
        assert nab.tally(self.SERIES, [150]).raw < -2
