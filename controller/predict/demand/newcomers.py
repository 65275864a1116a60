"""A VM with no past starts from how others that are like it behave: of its role, its group, its
flavour or its tenant, the closest of these of which anybody has a past."""

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
#: All VMs, for those of whose own kinds nobody has a past.
_ALL = ""
#: The kinds that each VM is of, the closest first.
Kin = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Peers:
    """Quantiles [24 hours of the day (UTC), len(QUANTILES)] by target and kind, and the kinds of
    each VM."""

    profiles: Mapping[Target, Mapping[str, Array]]
    kin: Kin
    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; NaN where no VM at all has a past."""
        profiles = self.profiles.get(target, {})
        nothing = np.full((24, len(QUANTILES)), np.nan)
        begins = past.end + target.seconds * np.arange(steps)
        hours = begins // 3_600 % 24
        kinds = (self.kind(vm, target) for vm in past.names)
        rows = [(nothing if kind is None else profiles[kind])[hours] for kind in kinds]
        return np.stack(rows) if rows else np.empty((0, steps, len(QUANTILES)))

    def kind(self, vm: str, target: Target) -> str | None:
        """The kind that a VM is told from: "" stands for all VMs, None where none has a past."""
        profiles = self.profiles.get(target, {})
        return next((k for k in (*self.kin.get(vm, ()), _ALL) if k in profiles), None)


def learn(panel: Panel, kin: Kin) -> Peers:
    """How the VMs of `panel` that have a past behaved in its last two weeks."""
    known = np.flatnonzero(np.isfinite(panel.window()).sum(axis=1) >= ENOUGH)
    grown = panel.rows(known)
    members: dict[str, list[int]] = {}
    for row, vm in enumerate(grown.names):
        for kind in {_ALL, *kin.get(vm, ())}:
            members.setdefault(kind, []).append(row)
    profiles: dict[Target, dict[str, Array]] = {}
    for target in Target:
        series = target.series(grown.window(WINDOW))
        begins = grown.end - target.seconds * np.arange(series.shape[1], 0, -1)
        profiles[target] = {
            kind: _profile(series[rows], begins, target) for kind, rows in members.items()
        }
    return Peers(profiles, kin)


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
