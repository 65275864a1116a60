"""Made-up demand for the tests: VMs with a day's rhythm, jobs and noise, on the grid."""

from __future__ import annotations

import numpy as np

from controller.predict.demand.series import DAY_BINS, STEP, Array, Metric, Panel, carried

#: 2026-03-02, a Monday, 00:00 UTC.
MONDAY = 1_772_409_600


def rhythm(days: int, series: int, seed: int = 1) -> Array:
    """[series, days * DAY_BINS] shares of a CPU: a wave of a day, an hourly job, noise."""
    rng = np.random.default_rng(seed)
    bins = np.arange(days * DAY_BINS)
    wave = 0.2 + 0.15 * np.sin(2 * np.pi * bins / DAY_BINS)
    rows = []
    for _ in range(series):
        job = 0.3 * rng.random() * (bins % 12 == rng.integers(12))
        noise = 0.02 * rng.random() * rng.standard_normal(len(bins))
        rows.append((0.2 + rng.random()) * np.maximum(wave + job + noise, 0))
    return np.stack(rows).astype(np.float32)


def panel_of(values: Array, metric: Metric = Metric.CPU, capacity: float = 1.0) -> Panel:
    """`values` as a panel that begins on MONDAY."""
    names = tuple(f"vm{row}" for row in range(len(values)))
    end = MONDAY + STEP * values.shape[1]
    limits = np.full(len(values), capacity)
    return Panel(metric, names, carried(values.astype(np.float32)), end, limits)
