"""How well are anomalies found in metrics of machines, from the past only?

`--data` is a folder of files with `timestamp,value` and `windows.json` (see `nab`). `score` is
NAB's, standard profile, of `controller.observe.anomalies.bank` as it is configured, with nothing
fitted to these files. `windowed_gaussian_score` is that of the chance of a value under the mean
and deviation of a sliding window, with the one threshold that suits these files best, as NAB
does it for the detectors that it lists; `windows_found`, `windows` and `false_positives` tell
what the score is made of. `values_per_s`: samples per second of CPU time, of many series at once.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from controller.observe.anomalies.bank import Bank
from tests.benchmarks import nab
from tests.benchmarks.harness import Options, say

Json = dict[str, object]
Array = NDArray[np.float64]

#: Of the windowed Gaussian.
_WINDOW = 500
_SERIES = 20_000


def run(options: Options) -> Json:
    """Measure; see the module for what the figures mean."""
    if options.data is None:
        say("left out: anomaly needs --data, a folder with windows.json and its files")
        return {"left_out": "no --data"}
    series = nab.load(options.data)
    say(f"{len(series)} files")
    detections = detect(series)
    total = nab.Tally(0.0, 0, 0, 0)
    for one, found in zip(series, detections, strict=True):
        part = nab.tally(one, found)
        total += part
        say(one.name, part)
    return {
        "score": total.score,
        "windows": total.windows,
        "windows_found": total.found,
        "false_positives": total.false_positives,
        "windowed_gaussian_score": _gaussian(series),
        "values_per_s": _speed(200 if options.quick else 400),
    }


def detect(series: list[nab.Series]) -> list[list[int]]:
    """The records of each series at which the product reports."""
    longest = max(len(one.at) for one in series)
    at = np.full((longest, len(series)), np.nan)
    values = at.copy()
    for column, one in enumerate(series):
        at[: len(one.at), column] = one.at
        values[: len(one.at), column] = one.values
    bank = Bank(len(series))
    found: list[list[int]] = [[] for _ in series]
    for record in range(longest):
        for finding in bank.step(at[record], values[record]):
            found[finding.series].append(record)
    return found


def _gaussian(series: list[nab.Series]) -> float:
    scores = [_surprise(np.asarray(one.values)) for one in series]
    every = np.concatenate([s[one.probation :] for one, s in zip(series, scores, strict=True)])
    best = -np.inf
    for threshold in np.unique(np.quantile(every, 1.0 - np.geomspace(1e-4, 0.3, 40))):
        total = nab.Tally(0.0, 0, 0, 0)
        for one, surprise in zip(series, scores, strict=True):
            total += nab.tally(one, np.flatnonzero(surprise > threshold).tolist())
        best = max(best, total.score)
    return float(best)


def _surprise(values: Array) -> Array:
    """The distance of each value from the mean of the window before it, in deviations."""
    ones = np.concatenate(([0.0], np.cumsum(values - values[0])))
    squares = np.concatenate(([0.0], np.cumsum((values - values[0]) ** 2)))
    last = np.arange(len(values))
    first = np.maximum(0, last - _WINDOW)
    count = np.maximum(1, last - first)
    mean = (ones[last] - ones[first]) / count
    variance = (squares[last] - squares[first]) / count - mean**2
    deviation = np.sqrt(np.maximum(variance, 1e-12 * (1.0 + squares[last] / count)))
    return np.asarray(np.abs(values - values[0] - mean) / deviation)


def _speed(steps: int) -> float:
    chance = np.random.default_rng(1)
    bank = Bank(_SERIES)
    values = chance.gamma(2.0, 1.0, (16, _SERIES))
    began = time.process_time()
    for step in range(steps):
        bank.step(300.0 * step, values[step % 16] + 0.1 * values[step % 13])
    return steps * _SERIES / (time.process_time() - began)
