"""`pleach history`: what was measured of a VM, as a table or a picture, and whether all that
is kept can be read."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from controller.api import HistoryReply
from controller.commands.common import (
    Exit,
    Failure,
    Json,
    client,
    settings,
    show_json,
    show_table,
)
from controller.model.metrics import METRICS

#: Seconds of each unit of a span.
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
#: Lines of a table where no step is given.
_LINES = 48
#: Points of a picture where no step is given.
_POINTS = 720
#: Steps to choose from, in seconds: not shorter than samples are usually apart.
_STEPS = (60, 300, 600, 1_800, 3_600, 10_800, 21_600, 86_400, 604_800)


def seconds(span: str) -> float:
    """Seconds of a span such as 90s, 15m, 24h or 7d. Raises Failure."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", span)
    if found is None or float(found[1]) == 0:
        raise Failure(f"{span!r} is no span of time", "Write it like 90s, 15m, 24h or 7d.")
    return float(found[1]) * _UNITS[found[2]]


def history(
    vm: Annotated[str, typer.Argument(help="A VM, host or port; or: check.")],
    metric: Annotated[
        list[str] | None, typer.Argument(help="Metrics, such as cpu or net_rx.")
    ] = None,
    last: Annotated[str, typer.Option(help="How far back, such as 90s, 15m, 24h, 7d.")] = "24h",
    step: Annotated[str | None, typer.Option(help="Length of a step, such as 5m.")] = None,
    most: Annotated[bool, typer.Option("--max", help="The largest of a step, not mean.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw into this file: .png, .svg, .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What was measured of a VM. `pleach history check` reads all that is kept on this machine,
    while no brain runs, and tells whether it is sound."""
    if not metric:
        if vm != "check":
            raise Failure("no metric is named", f"Name one or several of {', '.join(METRICS)}.")
        _check()
        return
    end = time.time()
    span = seconds(last)
    points = _POINTS if plot is not None else _LINES
    width = seconds(step) if step is not None else _step(span / points)
    with client() as pleach:
        found = pleach.history(
            vm, metric, end - span, end, step=width, how="max" if most else "mean"
        )
    if as_json and plot is None:
        show_json(found)
        return
    if all(value is None for values in found.metrics.values() for value in values):
        raise Failure(
            f"there is no sample of {' or '.join(metric)} of {vm} in the last {last}",
            "Look further back (--last), and see on its host that samples are sent: "
            "`pleach agent --status`.",
            Exit.REFUSED,
        )
    if plot is not None:
        _draw(found, (end - span, end), plot)
        typer.echo(f"wrote {plot}")
    else:
        _show(found)


def _check() -> None:
    # Here, because the engines are slow to import, and most commands need nothing of them.
    from controller.history.errors import HistoryError
    from controller.history.opening import check

    local = settings()
    try:
        wrong = check(local)
    except HistoryError as error:
        raise Failure(f"{error.place}: {error.cause}", f"{error.mend}.") from error
    if wrong:
        raise Failure("; ".join(wrong), "Restore what is damaged from a copy.", Exit.WRONG)
    typer.echo("history: sound")


def _step(least: float) -> float:
    return float(next((step for step in _STEPS if step >= least), _STEPS[-1]))


def _show(found: HistoryReply) -> None:
    units = [METRICS[name].unit.value for name in found.metrics]
    headers = [f"{name} ({unit})" for name, unit in zip(found.metrics, units, strict=True)]
    rows = [
        (datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"), *map(_number, values))
        for at, values in zip(found.times, zip(*found.metrics.values(), strict=True), strict=True)
    ]
    show_table(("TIME", *headers), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _draw(found: HistoryReply, span: tuple[float, float], file: Path) -> None:
    # Here, because it is slow to import.
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    times: Sequence[datetime] = [datetime.fromtimestamp(at, UTC) for at in found.times]
    figure, axes = plt.subplots(
        len(found.metrics), 1, sharex=True, squeeze=False, figsize=(10, 2 + 2 * len(found.metrics))
    )
    for axis, (name, values) in zip(axes[:, 0], found.metrics.items(), strict=True):
        gaps = [float("nan") if value is None else value for value in values]
        axis.plot(times, gaps, linewidth=1, marker=".", markersize=2)  # a dot between two gaps
        axis.set_ylabel(f"{name} ({METRICS[name].unit.value})")
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
    axes[0, 0].set_title(f"{found.subject}, {found.how} of {found.step:g} s")
    # What was asked for, also where samples are of a part of it only.
    axes[0, 0].set_xlim(*(datetime.fromtimestamp(at, UTC) for at in span))
    figure.autofmt_xdate()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{file}: {error}", "Name a file that ends in .png, .svg or .pdf.") from error
    finally:
        plt.close(figure)
