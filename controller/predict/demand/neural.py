"""An LSTM for all VMs, where PyTorch is installed (the optional extra `neural`).

It reads the last week of a target's series, scaled like the features of the global model,
with the time of day and week, and tells all steps and quantiles at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.features import scales, summarise
from controller.predict.demand.series import (
    CARRY,
    DAY_BINS,
    WINDOW,
    Array,
    Panel,
    carried,
    gaps_allowed,
)
from controller.predict.demand.targets import QUANTILES, Target

NAME = "lstm"

#: Steps that are read, and told.
_READ = {Target.FIVE_MINUTES: DAY_BINS, Target.DAY_PEAK: 14}
_HOURS = 7 * 24
_TOLD = {Target.FIVE_MINUTES: 12}


@dataclass(frozen=True, slots=True)
class Schooling:
    """How it is trained."""

    epochs: int = 12
    samples: int = 12_000
    hidden: int = 48
    batch: int = 256
    rate: float = 3e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Neural:
    """Trained networks by target."""

    networks: Mapping[Target, Any]
    name: str = NAME

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model; NaN for targets that were not learned and steps beyond those learned."""
        out = np.full((len(past), steps, len(QUANTILES)), np.nan)
        network = self.networks.get(target)
        if network is None:
            return out
        torch = importlib.import_module("torch")
        inputs, base, scale = _inputs(past, target)
        with torch.no_grad():
            told = network(torch.from_numpy(inputs)).numpy().astype(np.float64)
        reach = min(steps, told.shape[1])
        out[:, :reach] = base[:, None, None] + scale[:, None, None] * told[:, :reach]
        out[~np.isfinite(past.window()).any(axis=1)] = np.nan
        return out


def available() -> bool:
    """Whether PyTorch is there."""
    return importlib.util.find_spec("torch") is not None


def train(
    panels: Sequence[Panel], targets: Sequence[Target], schooling: Schooling | None = None
) -> Neural:
    """Learn `targets` from the past of all `panels`. Raises ModuleNotFoundError without
    PyTorch, ValueError where the past is less than two days."""
    how = schooling or Schooling()
    torch = importlib.import_module("torch")
    torch.manual_seed(how.seed)
    return Neural({target: _train(torch, panels, target, how) for target in targets})


def _train(torch: Any, panels: Sequence[Panel], target: Target, how: Schooling) -> Any:
    inputs, wanted = _samples(panels, target, how)
    network = _network(torch, inputs.shape[2], wanted.shape[1], how.hidden)
    optimiser = torch.optim.Adam(network.parameters(), lr=how.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.epochs)
    levels = torch.tensor(QUANTILES)
    read, come = torch.from_numpy(inputs), torch.from_numpy(np.nan_to_num(wanted))
    known = torch.from_numpy(np.isfinite(wanted).astype(np.float32))[..., None]
    for _ in range(how.epochs):
        for part in torch.randperm(len(read)).split(how.batch):
            miss = come[part][..., None] - network(read[part])
            each = torch.maximum(levels * miss, (levels - 1) * miss)
            optimiser.zero_grad()
            weight = known[part]
            ((each * weight).sum() / weight.sum()).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        schedule.step()
    return network.eval()


def _network(torch: Any, width: int, steps: int, hidden: int) -> Any:
    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.read = torch.nn.LSTM(width, hidden, batch_first=True)
            self.tell = torch.nn.Linear(hidden, steps * len(QUANTILES))

        def forward(self, past: Any) -> Any:
            states, _ = self.read(past)
            return self.tell(states[:, -1]).reshape(-1, steps, len(QUANTILES))

    return Network()


def _samples(
    panels: Sequence[Panel], target: Target, how: Schooling
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs [samples, steps read, width] and what came [samples, steps told], scaled."""
    rng = np.random.default_rng(how.seed)
    told = _TOLD.get(target, target.steps)
    bins = min(panel.bins for panel in panels)
    first = min(WINDOW, bins // 3)
    if bins < 2 * DAY_BINS:
        raise ValueError(f"{bins} bins of 5 minutes are too few: {2 * DAY_BINS} are needed")
    series = sum(len(panel) for panel in panels)
    moments = max(1, min(how.samples // max(series, 1), bins - first - told * target.bins + 1))
    inputs, wanted = [], []
    for at in rng.integers(first, bins - told * target.bins + 1, moments):
        for panel in panels:
            read, base, scale = _inputs(panel.until(int(at)), target)
            come = target.series(panel.values[:, at : at + told * target.bins])
            inputs.append(read)
            wanted.append(np.clip((come - base[:, None]) / scale[:, None], -50, 50))
    known = np.concatenate(wanted).astype(np.float32)
    some = np.isfinite(known).any(axis=1)
    return np.concatenate(inputs)[some], known[some]


def _inputs(past: Panel, target: Target) -> tuple[NDArray[np.float32], Array, Array]:
    """[series, steps read, 5] of scaled values and time, with base and scale [series]."""
    summary = summarise(past)
    series = target.series(summary.window)
    scale = scales(past, series, target, summary.error)
    read = carried(series, CARRY)[:, -_READ.get(target, _HOURS) :]
    with gaps_allowed():
        base = np.nan_to_num(np.nanmedian(read, axis=1))
    scaled = np.nan_to_num((read - base[:, None]) / scale[:, None])
    begins = past.end - target.seconds * (read.shape[1] - np.arange(read.shape[1]))
    day = 2 * np.pi * (begins % 86_400) / 86_400
    week = 2 * np.pi * (begins % 604_800) / 604_800
    clock = np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)
    wide = np.broadcast_to(clock, (len(past), *clock.shape))
    # Rare values far out would swamp the gradients: they are told by their logarithm.
    squashed = np.arcsinh(scaled)[..., None]
    return np.concatenate([squashed, wide], axis=2).astype(np.float32), base, scale
