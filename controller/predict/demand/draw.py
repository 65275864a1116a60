"""A forecast for people: a table with its reasons, and a picture of past and future."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.predict.demand.forecast import Forecast, Reason
from controller.predict.demand.ledger import Quality
from controller.predict.demand.series import STEP, Metric, Panel
from controller.predict.demand.targets import QUANTILES, Target

#: What a person reads: the factor to the metric's unit, and its name.
_UNITS = {"cpu": (100.0, "%"), "memory": (2.0**-20, "MiB")}
_RATE = (8e-6, "Mbit/s")
_DISK = (1e-6, "MB/s")
#: Hours of past in a picture.
_PAST_HOURS = 48
_BLOCKS = " ▁▂▃▄▅▆▇█"


def unit(metric: Metric) -> tuple[float, str]:
    """What values are multiplied by to be told, and in which unit."""
    if metric.family in _UNITS:
        return _UNITS[metric.family]
    return _DISK if metric.family == "disk" else _RATE


def table(forecast: Forecast, quality: Sequence[Quality] = ()) -> str:
    """The forecast in lines of text: a row a step, then why it is so, and how good earlier ones
    of its kind were."""
    factor, name = unit(forecast.metric)
    head = (
        f"{forecast.vm} {forecast.metric} {forecast.target}, {name}, from {_time(forecast.origin)}"
    )
    levels = "".join(f"{f'q{level:g}':>10}" for level in QUANTILES)
    lines = [head, f"{'UTC':<17}{levels}"]
    above = forecast.above_capacity
    top = max(float(np.max(forecast.quantiles[:, 2])), 1e-30)
    for step, begin in enumerate(forecast.times):
        figures = "".join(f"{factor * value:>10.2f}" for value in forecast.quantiles[step])
        bar = _BLOCKS[round(float(forecast.quantiles[step, 2]) / top * (len(_BLOCKS) - 1))]
        mark = "  above capacity" if above[step] else ""
        lines.append(f"{_time(begin)} {figures} {bar}{mark}")
    return "\n".join([*lines, *reasons(forecast), *_quality(quality)])


def reasons(forecast: Forecast) -> list[str]:
    """Why the forecast is as it is, a line each."""
    why = forecast.reason
    lines = [f"model: {why.model}"]
    if why.losses:
        told = ", ".join(
            f"{model} {loss:.3f}" for model, loss in sorted(why.losses.items(), key=lambda e: e[1])
        )
        lines.append(f"recent loss of each model (1 is the seasonal naive error): {told}")
        if why.model in why.losses:
            lines.append(_why_this(why))
    else:
        lines.append("no forecast of this VM has been settled yet; this model is the first choice")
    if why.first is not None and why.last is not None:
        hours = why.known * STEP / 3_600
        lines.append(
            f"past: {hours:.0f} h known, from {_time(why.first)} to {_time(why.last + STEP)}"
        )
    return [*lines, *why.notes]


def _why_this(why: Reason) -> str:
    """How the chosen model fares among those that have a record."""
    best = min(why.losses.values())
    if why.losses[why.model] <= best:
        return "it is chosen as the best of late of those that can tell this"
    return "it is kept until another is better by so much, for so long, that it is no chance"


def document(forecast: Forecast) -> dict[str, Any]:
    """The forecast as plain values, in the metric's own unit."""
    why = forecast.reason
    return {
        "vm": forecast.vm,
        "metric": forecast.metric.value,
        "target": forecast.target.value,
        "origin": forecast.origin,
        "step": forecast.target.seconds,
        "times": list(forecast.times),
        "quantiles": {
            f"{level:g}": forecast.quantiles[:, column].tolist()
            for column, level in enumerate(QUANTILES)
        },
        "capacity": forecast.capacity,
        "above_capacity": list(forecast.above_capacity),
        "model": why.model,
        "losses": why.losses,
        "known_s": why.known * STEP,
        "first": why.first,
        "last": why.last,
        "notes": list(why.notes),
    }


def picture(forecasts: Sequence[Forecast], past: Panel, path: Path) -> None:
    """Draw `forecasts` of one VM and metric, after the last two days of `past`, into `path`,
    whose ending says how: .png or .svg. Raises ValueError for other endings."""
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path}: a picture ends in .png or .svg")
    # Here, because it is slow to import, and needs no display this way.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = forecasts[0]
    factor, name = unit(first.metric)
    row = past.names.index(first.vm)
    values = past.values[row, -_PAST_HOURS * 3_600 // STEP :]
    begins = past.end - STEP * np.arange(len(values), 0, -1)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(_hours(begins, first.origin), values * factor, lw=0.8, color="0.3", label="past")
    for forecast in forecasts:
        _draw(axes, forecast, factor)
    if first.capacity is not None:
        axes.axhline(first.capacity * factor, ls=":", color="tab:red", label="capacity")
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_xlabel(f"hours from {_time(first.origin)} UTC")
    axes.set_ylabel(f"{first.metric}, {name}")
    axes.set_title(f"{first.vm}: {first.metric} ({first.reason.model})")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small", ncols=3)
    figure.savefig(path, format=path.suffix[1:])


def _draw(axes: Any, forecast: Forecast, factor: float) -> None:
    """One target: bands of means, marks of peaks."""
    middle = _hours(np.asarray(forecast.times) + forecast.target.seconds / 2, forecast.origin)
    levels = forecast.quantiles * factor
    if forecast.target is Target.DAY_PEAK:
        axes.axhline(
            levels[0, 2], ls="--", lw=0.9, color="tab:purple", label="peak of the day, q.95"
        )
    elif forecast.target is Target.HOUR_PEAKS:
        axes.plot(middle, levels[:, 2], "^", ms=4, color="tab:orange", label="peaks of hours, q.95")
    else:
        colour = "tab:blue" if forecast.target is Target.HOURS else "tab:green"
        axes.plot(middle, levels[:, 0], color=colour, lw=1.4, label=f"{forecast.target}, median")
        axes.fill_between(middle, levels[:, 0], levels[:, 2], color=colour, alpha=0.25, lw=0)
        axes.fill_between(middle, levels[:, 2], levels[:, 3], color=colour, alpha=0.1, lw=0)


def _quality(quality: Sequence[Quality]) -> list[str]:
    return [
        f"{q.model}: {q.forecasts} forecasts settled, loss {q.loss:.3f}, error {q.error:.3f}, "
        f"{100 * q.below95:.1f} % below q.95"
        for q in quality
    ]


def _hours(times: NDArray[Any], origin: int) -> NDArray[Any]:
    return (np.asarray(times) - origin) / 3_600


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
