"""Forecasts of one time agree: no part needs more than the peak of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from controller.predict.demand.coherence import coherent
from controller.predict.demand.targets import QUANTILES, Target

STEPS = {
    Target.FIVE_MINUTES: 30,
    Target.HOURS: 24,
    Target.HOUR_PEAKS: 24,
    Target.DAY_PEAK: 1,
}


def told(rng: np.random.Generator, targets: list[Target]) -> dict[Target, NDArray[np.float64]]:
    """Made-up quantiles of three series that agree in nothing."""
    return {
        t: np.sort(rng.gamma(2.0, size=(3, STEPS[t], len(QUANTILES))), axis=-1) for t in targets
    }


@given(
    st.integers(0, 2**32 - 1),
    st.sets(st.sampled_from(list(Target))),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_parts_never_exceed_peaks(seed: int, targets: set[Target], sure: list[bool]) -> None:
    given_ = told(np.random.default_rng(seed), sorted(targets))
    believed = {Target.HOUR_PEAKS: np.array(sure[:3]), Target.DAY_PEAK: np.array(sure[3:])}
    found = coherent(given_, believed)
    assert set(found) == targets
    for values in found.values():
        assert (np.diff(values, axis=-1) >= 0).all()
    for part, whole in (
        (Target.FIVE_MINUTES, Target.HOUR_PEAKS),
        (Target.HOURS, Target.HOUR_PEAKS),
        (Target.FIVE_MINUTES, Target.DAY_PEAK),
        (Target.HOURS, Target.DAY_PEAK),
        (Target.HOUR_PEAKS, Target.DAY_PEAK),
    ):
        if {part, whole} <= targets:
            above = np.repeat(found[whole], whole.bins // part.bins, axis=1)
            assert (found[part] <= above[:, : STEPS[part]]).all()
    if Target.FIVE_MINUTES in targets:
        same = found[Target.FIVE_MINUTES][..., 0] == given_[Target.FIVE_MINUTES][..., 0]
        assert same.all()


@pytest.mark.parametrize("sure", [True, False])
def test_who_has_seen_many_peaks_is_believed_and_no_other(sure: bool) -> None:
    hours = np.array([[[1.0, 2.0, 3.0, 9.0]]])
    peak = np.array([[[2.0, 2.5, 2.5, 4.0]]])
    found = coherent(
        {Target.HOURS: hours, Target.DAY_PEAK: peak}, {Target.DAY_PEAK: np.array([sure])}
    )
    lower, higher = [[[1.0, 2.0, 2.5, 4.0]]], [[[2.0, 2.5, 3.0, 9.0]]]
    assert found[Target.HOURS].tolist() == (lower if sure else hours.tolist())
    assert found[Target.DAY_PEAK].tolist() == (peak.tolist() if sure else higher)
    assert hours.tolist() == [[[1.0, 2.0, 3.0, 9.0]]]  # what was given stays
