"""Intervals that hold what they say: quantiles moved by what past forecasts missed by.

Split conformal prediction on quantiles (Romano, Patterson and Candes 2019), in groups: by how
far ahead a step lies, and by how wide the forecast is, since a model that is sure and one that
is not err differently. What is missed grows with the width too, so it is told and moved in units
of that (normalised: Papadopoulos, Gammerman and Vovk 2008). The misses are those of the last
days, and so follow a change within days (rolling, as in Gibbs and Candes 2021). The median is
left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.series import Array
from controller.predict.demand.targets import QUANTILES

#: Groups of leads, and of widths within each.
LEADS = 4
WIDTHS = 4
#: Misses beyond a level that a group must have had, or a larger group is asked.
_ENOUGH = 20
#: A forecast is at least this wide, in units of the scale: one of next to no width moves still.
_LEAST_WIDTH = 0.3
#: Misses that are kept: more say nothing more.
_MOST = 400_000


@dataclass(frozen=True, slots=True)
class Misses:
    """What forecasts missed by, each step of each series a row.

    `over` [rows, len(QUANTILES)] is actual minus quantile in units of the forecast's width,
    `width` [rows] that of .95 above .5 in units of the series' scale, `lead` [rows] from 0 to
    below LEADS.
    """

    over: Array
    width: Array
    lead: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.over)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Offsets [LEADS, WIDTHS, len(QUANTILES)] in units of the forecast's width, `edges`
    [LEADS, WIDTHS - 1] between groups of widths, and `misses`, how many they were made of."""

    offsets: Array
    edges: Array
    misses: int

    def apply(self, quantiles: Array, scale: Array) -> Array:
        """`quantiles` [series, steps, levels] moved; no level below the median."""
        lead = lead_group(quantiles.shape[1])
        width = _width(quantiles, scale)
        group = (width[..., None] > self.edges[lead][None]).sum(axis=-1)
        moved = quantiles + self.offsets[lead[None, :], group] * _unit(width, scale)
        return np.asarray(np.maximum(moved, quantiles[..., :1]))


def lead_group(steps: int) -> NDArray[np.intp]:
    """The group of leads, 0 to below LEADS, of each of `steps` steps."""
    return np.arange(steps) * LEADS // max(steps, LEADS)


def misses(actual: Array, quantiles: Array, scale: Array) -> Misses:
    """What `quantiles` [series, steps, levels] missed `actual` [series, steps] by; steps of
    which nothing became known are left out."""
    told = np.sort(quantiles, axis=-1)  # as they are when they are moved
    width = _width(told, scale)
    over = (actual[..., None] - told) / _unit(width, scale)
    usable = np.isfinite(over).all(axis=-1)
    lead = np.broadcast_to(lead_group(actual.shape[1]), actual.shape)
    return Misses(over[usable].astype(np.float32), width[usable], lead[usable])


def together(parts: list[Misses]) -> Misses:
    """All of `parts`, evenly thinned where they are more than is needed."""
    if not parts:
        return Misses(np.empty((0, len(QUANTILES))), np.empty(0), np.empty(0, dtype=np.intp))
    total = sum(len(part) for part in parts)
    every = max(1, -(-total // _MOST))
    return Misses(
        np.concatenate([part.over[::every] for part in parts]),
        np.concatenate([part.width[::every] for part in parts]),
        np.concatenate([part.lead[::every] for part in parts]),
    )


def calibrate(known: Misses) -> Calibration:
    """Offsets after which each level would have been exceeded as often as it says."""
    offsets = np.zeros((LEADS, WIDTHS, len(QUANTILES)))
    edges = np.full((LEADS, WIDTHS - 1), np.inf, dtype=np.float32)
    everything = _offsets(known.over, np.zeros(len(QUANTILES)))
    for lead in range(LEADS):
        here = known.lead == lead
        offsets[lead] = whole = _offsets(known.over[here], everything)
        if not here.any():
            continue
        edges[lead] = np.quantile(known.width[here], np.arange(1, WIDTHS) / WIDTHS)
        group = (known.width[here][:, None] > edges[lead]).sum(axis=1)
        for width in range(WIDTHS):
            offsets[lead, width] = _offsets(known.over[here][group == width], whole)
    return Calibration(offsets, edges, len(known))


def _offsets(over: Array, otherwise: Array) -> Array:
    """The conformal quantile of each level of `over` [rows, levels]; of `otherwise` what they
    are too few for. Of the median 0."""
    out = np.array(otherwise, dtype=float)
    out[0] = 0.0
    for column, level in list(enumerate(QUANTILES))[1:]:
        if len(over) * (1 - level) >= _ENOUGH:
            rank = min(1.0, np.ceil((len(over) + 1) * level) / len(over))
            out[column] = np.quantile(over[:, column], rank, method="inverted_cdf")
    return out


def _width(quantiles: Array, scale: Array) -> Array:
    # In single precision, as misses are kept: a width must not fall on the other side of an edge.
    width = (quantiles[..., QUANTILES.index(0.95)] - quantiles[..., 0]) / scale[:, None]
    return np.asarray(width, dtype=np.float32)


def _unit(width: Array, scale: Array) -> Array:
    """What misses are told by, in the metric's unit: [series, steps, 1]."""
    return np.asarray(np.maximum(width, _LEAST_WIDTH) * scale[:, None])[..., None]
