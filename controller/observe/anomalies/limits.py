"""Is a metric beyond what it may ever be? By bounds that an operator set. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from controller.history.series import Matrix
from controller.observe.anomalies.alerts import Kind, Signal
from controller.observe.anomalies.rules import Limit


def before(limits: Sequence[Limit], step: float) -> float:
    """So many seconds before the first step that is judged have to be known."""
    return max((round(limit.for_s / step) * step - step for limit in limits), default=0.0)


def beyond(
    limits: Sequence[Limit],
    found: Mapping[str, Matrix],
    step: float,
    begin: float,
    vms: Collection[str],
) -> list[Signal]:
    """What was beyond its bound for as long as its limit says, up to some step of `found`
    (metrics by name, on a grid of `step` seconds) that is not before `begin`: a signal for the
    last such step of each VM. A gap is no reason and ends a stretch."""
    signals = []
    for limit in limits:
        matrix = found[limit.metric]
        above = limit.above is not None
        bound = limit.above if limit.above is not None else limit.below
        assert bound is not None
        over = matrix.values > bound if above else matrix.values < bound
        needed = max(1, round(limit.for_s / step))
        for row, vm in enumerate(matrix.subjects):
            if vm not in vms or not limit.concerns(vm):
                continue
            last = _last_stretch(over[row], needed)
            if last is None or matrix.times[last] < begin:
                continue
            value = float(matrix.values[row, last])
            why = (
                f"{limit.metric} is {value:.4g}, for {limit.for_s:.0f} s "
                f"{'above' if above else 'below'} {bound:.4g}, which policies/alerts.yaml allows"
            )
            at = float(matrix.times[last]) + step
            score = max(1.0, value / bound if above and bound > 0 else 1.0)
            signals.append(Signal(Kind.LIMIT, vm, limit.metric, at, score, why, limit.severity))
    return signals


def _last_stretch(over: np.ndarray[tuple[int], np.dtype[np.bool_]], needed: int) -> int | None:
    """The last step that ends a stretch of `needed` steps that are all beyond."""
    if over.size < needed:
        return None
    whole = np.convolve(over, np.ones(needed), "valid") >= needed
    ends = np.flatnonzero(whole)
    return int(ends[-1]) + needed - 1 if ends.size else None
