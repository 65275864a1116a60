"""Latency of links, out of times that have the controller's own delays in them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.observe.latency import ENOUGH, WINDOW, Latencies, is_news


def measured(link_s: float, a_s: float, b_s: float, noise: float, seed: int) -> float | None:
    """The estimate for a link between switches whose round trips are `a_s` and `b_s`."""
    rng, seen = random.Random(seed), Latencies()
    for _ in range(3 * WINDOW):
        seen.crossed("ab", link_s + (a_s + b_s) / 2 + rng.expovariate(1 / noise))
        seen.returned("a", a_s + rng.expovariate(1 / noise))
        seen.returned("b", b_s + rng.expovariate(1 / noise))
    return seen.estimate("ab", "a", "b")


@given(st.floats(0, 0.2), st.floats(0.0001, 0.05), st.floats(0.0001, 0.05), st.integers(0, 10_000))
def test_delays_of_the_control_channels_are_taken_off(
    link_s: float, a_s: float, b_s: float, seed: int
) -> None:
    assert measured(link_s, a_s, b_s, 0.0001, seed) == pytest.approx(link_s, abs=0.0002)


def test_too_little_tells_nothing() -> None:
    seen = Latencies()
    assert seen.estimate("ab", "a", "b") is None
    for _ in range(ENOUGH):
        assert seen.estimate("ab", "a", "b") is None
        seen.crossed("ab", 0.003)
        seen.returned("a", 0.001)
        seen.returned("b", 0.001)
    assert seen.estimate("ab", "a", "b") == 0.002
    seen.forget("ab")
    assert seen.estimate("ab", "a", "b") is None


def test_what_was_long_ago_is_forgotten() -> None:
    seen = Latencies()
    for took in (*[0.001] * WINDOW, *[0.011] * WINDOW):
        seen.crossed("ab", took)
        seen.returned("a", 0.001)
        seen.returned("b", 0.001)
    assert seen.estimate("ab", "a", "b") == 0.01


def test_a_link_is_never_faster_than_nothing() -> None:
    assert measured(0.0, 0.001, 0.001, 0.001, 1) is not None
    seen = Latencies()
    for _ in range(ENOUGH):
        seen.crossed("ab", 0.001)
        seen.returned("a", 0.002)
        seen.returned("b", 0.002)
    assert seen.estimate("ab", "a", "b") == 0.0


@pytest.mark.parametrize(
    ("told", "estimate", "news"),
    [
        (None, None, False),
        (None, 0.0, True),
        (0.001, None, True),
        (0.0, 0.0004, False),
        (0.0, 0.0006, True),
        (0.010, 0.012, False),
        (0.010, 0.013, True),
        (0.010, 0.007, True),
    ],
)
def test_noise_is_no_news(told: float | None, estimate: float | None, news: bool) -> None:
    assert is_news(told, estimate) is news
