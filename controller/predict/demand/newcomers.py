"""A VM with no past starts from how others of its role or flavour behave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.features import known_quantiles
from controller.predict.demand.series import STEP, WINDOW, Array, Panel
from controller.predict.demand.targets import QUANTILES, Target

NAME = "peers"

#: Bins that a VM must be known for before its own past is worth more than that of others.
ENOUGH = 72
#: The group of all VMs, for those whose own group has nobody with a past.
_ALL = ""


@dataclass(frozen=True, slots=True)
class Peers:
    """Quantiles [24 hours of the day (UTC), len(QUANTILES)] by target and group, and the group
    (role or flavour) of each VM."""

    profiles: Mapping[Target, Mapping[str, Array]]
    group_of: Mapping[str, str]
    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; NaN where no VM at all has a past."""
        profiles = self.profiles.get(target, {})
        nothing = np.full((24, len(QUANTILES)), np.nan)
        everybody = profiles.get(_ALL, nothing)
        begins = past.end + target.seconds * np.arange(steps)
        hours = begins // 3_600 % 24
        rows = [profiles.get(self.group_of.get(vm, _ALL), everybody)[hours] for vm in past.names]
        return np.stack(rows) if rows else np.empty((0, steps, len(QUANTILES)))


def learn(panel: Panel, group_of: Mapping[str, str]) -> Peers:
    """How the VMs of `panel` that have a past behaved in its last two weeks."""
    known = np.flatnonzero(np.isfinite(panel.window()).sum(axis=1) >= ENOUGH)
    grown = panel.rows(known)
    groups = np.array([group_of.get(vm, _ALL) for vm in grown.names], dtype=object)
    profiles: dict[Target, dict[str, Array]] = {}
    for target in Target:
        series = target.series(grown.window(WINDOW))
        begins = grown.end - target.seconds * np.arange(series.shape[1], 0, -1)
        profiles[target] = {
            str(group): _profile(series[groups == group], begins, target)
            for group in {*groups}
            if group != _ALL
        }
        if len(grown):
            profiles[target][_ALL] = _profile(series, begins, target)
    return Peers(profiles, group_of)


def _profile(series: Array, begins: NDArray[np.int64], target: Target) -> Array:
    """Quantiles of all values at each hour of the day, of day peaks at any."""
    if target is Target.DAY_PEAK:
        whole = np.array(known_quantiles(series.reshape(1, -1), QUANTILES))[:, 0]
        return np.broadcast_to(whole, (24, len(QUANTILES)))
    # Backward steps begin at other minutes than the clock's hours: the nearest hour is meant.
    hours = ((begins + STEP // 2) // 3_600 % 24).astype(int)
    return np.stack(
        [
            np.array(known_quantiles(series[:, hours == hour].reshape(1, -1), QUANTILES))[:, 0]
            for hour in range(24)
        ]
    )
