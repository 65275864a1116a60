"""Do forecasts of one VM agree? No part of a time needs more than the peak of the whole.

Each target is told by outputs of its own, so that the mean of an hour may be told higher than the
largest value in it. A quantile of a part is never above the same quantile of the peak. Where it
is told so, and the peak is told by a model that has seen many peaks, the part is lowered, which
on real VMs brought it nearer to what came; any other peak is raised. Nothing of 5 minutes falls
below its median: the last minutes tell that better than they tell a peak.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.series import Array
from controller.predict.demand.targets import Target

#: Parts and the peak of the whole, in the order in which parts are lowered; peaks are raised in
#: the opposite one.
_PARTS = (
    (Target.HOUR_PEAKS, Target.DAY_PEAK),
    (Target.HOURS, Target.DAY_PEAK),
    (Target.FIVE_MINUTES, Target.DAY_PEAK),
    (Target.HOURS, Target.HOUR_PEAKS),
    (Target.FIVE_MINUTES, Target.HOUR_PEAKS),
)


def coherent(
    told: Mapping[Target, Array], sure: Mapping[Target, NDArray[np.bool_]]
) -> dict[Target, Array]:
    """`told`, quantiles [series, steps, levels] of targets from one origin on, made to agree.
    `sure` says of which series [series] a peak is believed rather than its parts."""
    out = {target: values.copy() for target, values in told.items()}
    pairs = [(part, whole) for part, whole in _PARTS if part in out and whole in out]
    for part, whole in pairs:
        above = np.repeat(out[whole], whole.bins // part.bins, axis=1)
        here = out[part][:, : above.shape[1]]
        above = above[:, : here.shape[1]]
        if part is Target.FIVE_MINUTES:
            above = np.maximum(above, here[..., :1])
        np.minimum(here, above, out=here, where=sure[whole][:, None, None])
    for part, whole in reversed(pairs):
        steps = whole.bins // part.bins
        for step in range(out[whole].shape[1]):
            parts = out[part][:, step * steps : (step + 1) * steps]
            if parts.shape[1]:
                here = out[whole][:, step]
                np.maximum(here, parts.max(axis=1), out=here)
    return out
