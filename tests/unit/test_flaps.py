"""Links that flap are damped, and trusted again in the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.flapping import Damping, Flapping

RULE = Damping(cutoff=3.0, reuse=1.0, half_life_s=10.0, max_s=60.0)


def after(*times: float, rule: Damping = RULE) -> Flapping:
    state = Flapping()
    for time in times:
        state = state.failed(time, rule)
    return state


def test_a_single_failure_damps_nothing() -> None:
    assert not after(100.0).damped
    assert after(100.0).penalty == 1.0


def test_the_penalty_halves_in_a_half_life() -> None:
    assert after(100.0).now(110.0, RULE).penalty == pytest.approx(0.5)
    assert after(100.0, 110.0).penalty == pytest.approx(1.5)


def test_failures_in_a_row_damp_and_time_heals() -> None:
    state = after(0.0, 0.0, 0.0)
    assert state.damped
    # From 3 to 1 it takes log2(3) half-lives, 15.8 s.
    assert state.now(15.0, RULE).damped
    assert not state.now(16.0, RULE).damped


def test_between_the_bounds_it_stays_what_it_is() -> None:
    assert not after(0.0, 0.0).now(1.0, RULE).damped
    assert after(0.0, 0.0, 0.0).now(10.0, RULE).damped


def test_failures_seldom_enough_never_damp() -> None:
    assert not after(*(20.0 * n for n in range(50))).damped


@given(st.lists(st.floats(0, 1_000), max_size=200).map(sorted))
def test_nobody_is_damped_for_longer_than_the_maximum(times: list[float]) -> None:
    last = times[-1] if times else 0.0
    assert not after(*times).now(last + RULE.max_s + 0.1, RULE).damped


def test_a_clock_that_goes_back_does_no_harm() -> None:
    assert after(100.0).now(50.0, RULE).penalty == 1.0
