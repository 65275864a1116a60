"""Are periods found where there are some, and none where there are none? How fast?

Made series of two weeks of five-minute samples. `periods_found`: the share of true periods that
are among those told, within 3 %. Series have one or two (the second no multiple of the first), as
sines, squares or pulses, in white, AR(1) (0.3 to 0.9) or random-walk noise; a sine has 0.5 to
2 times the deviation of the noise (of the increments, for a walk: of what the walk moves over
half a period). `false_periods`: the share of series of noise alone, of the same kinds, of which
a period is told. `vms_per_s`: VMs of ten metrics whose feature vectors are made per CPU second.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from controller.observe.behaviour.features import features
from controller.observe.behaviour.periods import periods
from tests.benchmarks.harness import Options, say

Json = dict[str, object]
Array = NDArray[np.float64]

SAMPLES = 4_032
TOLERANCE = 0.03
METRICS = 10


def run(options: Options) -> Json:
    """Measure; see the module for what the figures mean."""
    chance = np.random.default_rng(4)
    count = 150 if options.quick else 900
    kinds = ("white", "ar1", "walk")
    found, known, false = 0, 0, dict.fromkeys(kinds, 0)
    for number in range(count):
        kind = kinds[number % 3]
        values, true = _made(chance, kind)
        told = [period.length for period in periods(values)]
        found += sum(any(abs(t / p - 1) <= TOLERANCE for t in told) for p in true)
        known += len(true)
        false[kind] += bool(periods(_noise(chance, kind)))
    say(f"{found} of {known} periods; false: {false} of {count // 3} each")
    return {
        "periods_found": found / known,
        "false_periods": sum(false.values()) / count,
        **{f"false_periods_{kind}": many / (count / 3) for kind, many in false.items()},
        "vms_per_s": _speed(chance, 10 if options.quick else 40),
    }


def _noise(chance: np.random.Generator, kind: str) -> Array:
    white = chance.normal(size=SAMPLES)
    if kind == "white":
        return white
    if kind == "walk":
        return np.cumsum(white)
    keep = chance.uniform(0.3, 0.9)
    red = np.empty(SAMPLES)
    last = 0.0
    for i, step in enumerate(white):
        red[i] = last = keep * last + step
    return red


def _made(chance: np.random.Generator, kind: str) -> tuple[Array, list[float]]:
    true = [float(np.exp(chance.uniform(np.log(6), np.log(SAMPLES / 7))))]
    if chance.random() < 0.5:
        true.append(true[0] * chance.uniform(0.37, 0.45))
    true = [period for period in true if period >= 5.0]
    noise = _noise(chance, kind)
    where = np.arange(SAMPLES)
    values = 100.0 + noise
    for period in true:
        scale = np.sqrt(period / 2) if kind == "walk" else float(noise.std())
        phase = (where / period + chance.random()) % 1.0
        size = chance.uniform(0.5, 2.0) * scale
        shape = ("sine", "square", "pulse")[int(chance.integers(3 if len(true) == 1 else 1))]
        if shape == "sine":
            values += size * np.sin(2 * np.pi * phase)
        elif shape == "square":
            values += size * np.sign(0.5 - phase)
        else:
            values += 4 * size * (phase < 0.15)
    return values, true


def _speed(chance: np.random.Generator, vms: int) -> float:
    series = [_made(chance, "ar1")[0] for _ in range(METRICS)]
    began = time.process_time()
    for _ in range(vms):
        for values in series:
            features(values)
    return vms / (time.process_time() - began)
