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

#: Parts and the peak of the whole that they are lowered by.
_LOWERED = (
    (Target.HOUR_PEAKS, Target.DAY_PEAK),
    (Target.HOURS, Target.DAY_PEAK),
    (Target.FIVE_MINUTES, Target.DAY_PEAK),
    (Target.HOURS, Target.HOUR_PEAKS),
    (Target.FIVE_MINUTES, Target.HOUR_PEAKS),
)
#: Parts and the peak of the whole that is raised by them.
_RAISED = (
    (Target.FIVE_MINUTES, Target.HOUR_PEAKS),
    (Target.HOURS, Target.HOUR_PEAKS),
    (Target.FIVE_MINUTES, Target.DAY_PEAK),
    (Target.HOURS, Target.DAY_PEAK),
    (Target.HOUR_PEAKS, Target.DAY_PEAK),
)


def coherent(
    told: Mapping[Target, Array], sure: Mapping[Target, NDArray[np.bool_]]
) -> dict[Target, Array]:
    """`told`, quantiles [series, steps, levels] of targets from one origin on, made to agree.
    `sure` says of which series [series] a peak is believed rather than its parts."""
    out = {target: values.copy() for target, values in told.items()}
    for part, whole in _LOWERED:
        if part in out and whole in out:
            above = np.repeat(out[whole], whole.bins // part.bins, axis=1)
            here = out[part][:, : above.shape[1]]
            above = above[:, : here.shape[1]]
            if part is Target.FIVE_MINUTES:
                above = np.maximum(above, here[..., :1])
            np.minimum(here, above, out=here, where=sure[whole][:, None, None])
    for part, whole in _RAISED:
        if part in out and whole in out:
            steps = whole.bins // part.bins
            for step, at in enumerate(range(0, out[part].shape[1], steps)):
                if step < out[whole].shape[1]:
                    here = out[whole][:, step]
                    np.maximum(here, out[part][:, at : at + steps].max(axis=1), out=here)
    return out
