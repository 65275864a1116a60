"""`pleach forecast`: what a VM will need in the next 24 hours, as a table or a picture, and why."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.api import ForecastReply, ForecastSteps
from controller.client import Client, Problem
from controller.commands.common import Failure, Json, client, settings, show_json
from controller.model.nouns import Vm

if TYPE_CHECKING:
    from controller.predict.demand.events import Calendar
    from controller.predict.demand.forecast import Forecast
    from controller.predict.demand.forecaster import Forecaster
    from controller.predict.demand.ledger import Quality
    from controller.predict.demand.series import Metric, Panel
    from controller.predict.demand.targets import Target

#: Days of past that are read: twice what models look at, so that they can be tried on it.
_DAYS = 28
#: Days of past in a picture.
_PLOTTED_DAYS = 3
#: Days of past that the models of all VMs learn from.
_LEARNED_DAYS = 56
#: VMs of the same group that one without a past is compared with.
_PEERS = 20
#: Where models and the record of forecasts lie, in `state_dir`.
DIRECTORY = "demand"


def forecast(
    vm: Annotated[str | None, typer.Argument(help="The VM's id.")] = None,
    metric: Annotated[
        str, typer.Argument(help="cpu, memory, net_rx, net_tx, disk_read or disk_write.")
    ] = "cpu",
    of: Annotated[
        list[str] | None,
        typer.Option(help="hours, hour-peaks, day-peak or 5min; may be repeated."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of 5 minutes: 12 by default, 288 at most.", min=1)
    ] = None,
    calendar: Annotated[
        Path | None, typer.Option(help="Known events, YAML, such as policies/calendar.yaml.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw into this file: .png or .svg.")] = None,
    horizon: Annotated[
        float, typer.Option(help="Hours ahead that are told.", min=0.1, max=24)
    ] = 24.0,
    here: Annotated[
        bool, typer.Option("--here", help="Forecast on this machine now, from the history.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(help="Forecast from a .csv or .parquet file: vm, ts (Unix s), the metric."),
    ] = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="Learn from the past of all VMs anew, on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a VM will need in the next 24 hours, with the model, the reasons and the past that
    the forecast stands on: as the controller last told it, or made here and now (--here, or
    any of --file, --learn, --calendar and --steps)."""
    # Here, because numpy and scikit-learn are slow to import and most commands need neither.
    from controller.predict.demand.series import Metric

    if metric not in list(Metric):
        raise Failure(f"there is no forecast of {metric}", f"Name one of {', '.join(Metric)}.")
    if vm is None and not learn:
        raise Failure("no VM is named", "Name one, or --learn.")
    wanted = _wanted(of, steps, horizon)
    view = _View(plot, as_json)
    if file is not None:
        _of_file(file, vm, Metric(metric), wanted, _calendar(calendar), learn, view)
        return
    with client() as pleach:
        # First, so that a VM that is not there is refused at once.
        known = None if vm is None else pleach.get(Vm, vm)
        made_here = here or learn or calendar is not None or steps is not None
        if (
            known is not None
            and not made_here
            and _as_told(pleach, known.id, Metric(metric), wanted, view)
        ):
            return
        with _forecaster(_calendar(calendar)) as forecaster:
            if learn:
                typer.echo(_learn(pleach, forecaster, Metric(metric)))
            if known is not None:
                past = _past(pleach, forecaster, known, Metric(metric))
                _tell(forecaster, known.id, past, wanted, view)


@dataclass(frozen=True, slots=True)
class _View:
    """How forecasts are shown."""

    plot: Path | None
    as_json: bool


def _as_told(
    pleach: Client, vm: str, metric: Metric, wanted: Mapping[Target, int], view: _View
) -> bool:
    """Show what the controller last told; whether it has told anything of `wanted`."""
    from controller.predict.demand.ledger import Quality

    try:
        reply = pleach.forecast(vm, metric.value)
    except Problem as problem:
        if problem.type != "not-found":
            raise
        typer.echo(f"{problem.detail}: it is made here", err=True)
        return False
    told = [f for f in map(partial(_record, reply), reply.forecasts) if f.target in wanted]
    cut = [replace(f, quantiles=f.quantiles[: wanted[f.target]]) for f in told]
    past = _panel(pleach, [vm], metric, reply.origin, _PLOTTED_DAYS) if view.plot else None
    by_target: dict[str, list[Quality]] = {}
    for one in reply.quality:
        earlier = Quality(**one.model_dump(exclude={"target"}))
        by_target.setdefault(one.target, []).append(earlier)
    _show(cut, past, view, by_target)
    return bool(cut)


def _record(reply: ForecastReply, told: ForecastSteps) -> Forecast:
    """A forecast as REST tells it."""
    import numpy as np

    from controller.predict.demand.forecast import Forecast, Reason
    from controller.predict.demand.series import STEP, Metric
    from controller.predict.demand.targets import Target

    levels = np.array(list(told.quantiles.values())).T
    known = told.known_s // STEP
    reason = Reason(told.model, known, told.first, told.last, told.losses, told.notes)
    metric, target = Metric(reply.metric), Target(told.target)
    return Forecast(reply.vm, metric, target, reply.origin, levels, told.capacity, reason)


def _tell(
    forecaster: Forecaster, vm: str, past: Panel, wanted: Mapping[Target, int], view: _View
) -> None:
    """Forecast the first series of `past`, and show it. Raises Failure where nothing is known of
    any."""
    import numpy as np

    if not np.isfinite(past.values).any():
        raise Failure(
            f"there is no sample of {past.metric} of {vm}, nor of any VM like it",
            f"See that samples come in: `pleach history {vm} {past.metric}`.",
        )
    forecaster.rehearse(past.rows([0]), tuple(wanted))
    told = [f for f in forecaster.round(past, dict(wanted)).forecasts if f.vm == vm]
    _show(told, past, view, {})


def _of_file(
    path: Path,
    vm: str | None,
    metric: Metric,
    wanted: Mapping[Target, int],
    calendar: Calendar,
    learn: bool,
    view: _View,
) -> None:
    """Forecast, or learn, from the samples of a file."""
    from controller.predict.demand.files import FileError, load

    try:
        all_vms = load(path, metric, _LEARNED_DAYS)
    except FileError as error:
        raise Failure(str(error), error.mend) from error
    with _forecaster(calendar) as forecaster:
        if learn:
            done = forecaster.retrain([all_vms], all_vms.end)
            typer.echo(f"{metric}: {'learned' if done.taken else 'nothing new'}: {done.reason}")
        if vm is None:
            return
        if vm not in all_vms.names:
            some = ", ".join(all_vms.names[:5])
            raise Failure(f"{path}: there is no VM {vm} in it", f"It has {some} and so on.")
        forecaster.load(metric.family)
        row = all_vms.names.index(vm)
        peers = [other for other in range(len(all_vms)) if other != row][:_PEERS]
        _tell(forecaster, vm, all_vms.rows([row, *peers]), wanted, view)


def _wanted(of: Sequence[str] | None, steps: int | None, hours: float) -> dict[Target, int]:
    from controller.predict.demand.targets import Target
    from controller.predict.demand.training import horizon

    unknown = [name for name in of or () if name not in list(Target)]
    if unknown:
        raise Failure(f"{unknown[0]} is nothing that is told", f"One of {', '.join(Target)}.")
    chosen = [Target(name) for name in of] if of else [Target.HOURS, Target.DAY_PEAK]
    wanted = {t: max(1, min(horizon(t), ceil(hours * 3_600 / t.seconds))) for t in chosen}
    if steps is not None:
        wanted[Target.FIVE_MINUTES] = min(steps, Target.FIVE_MINUTES.steps)
    return wanted


def _calendar(path: Path | None) -> Calendar:
    from controller.predict.demand.events import Calendar, CalendarError, load

    if path is None:
        return Calendar()
    try:
        return load(path)
    except CalendarError as error:
        raise Failure(
            str(error), "Correct the calendar; policies/calendar.yaml tells how."
        ) from error


@contextmanager
def _forecaster(calendar: Calendar) -> Iterator[Forecaster]:
    """With the models that this machine has; without any, those that need no learning."""
    from controller.predict.demand import statistics
    from controller.predict.demand.forecaster import Forecaster
    from controller.predict.demand.keep import ModelStore
    from controller.predict.demand.ledger import Ledger

    store = ModelStore(settings().state_dir / DIRECTORY / "models")
    # AutoARIMA costs seconds a forecast, and there are many of them to try it on.
    others = tuple(m for m in statistics.available() if m.name != "auto-arima")
    with tempfile.TemporaryDirectory() as place:
        ledger = Ledger(Path(place) / "ledger.db")
        try:
            yield Forecaster(store, ledger, calendar, others)
        finally:
            ledger.close()


def _learn(pleach: Client, forecaster: Forecaster, metric: Metric) -> str:
    from controller.predict.demand.series import Metric as Metrics

    now = time.time()
    vms = list(pleach.list(Vm))
    forecaster.group_of = _groups(vms)
    family = [other for other in Metrics if other.family == metric.family]
    names = [vm.id for vm in vms]
    panels = [_panel(pleach, names, other, now, _LEARNED_DAYS) for other in family]
    done = forecaster.retrain(panels, int(now))
    return f"{metric.family}: {'learned' if done.taken else 'nothing new'}: {done.reason}"


def _past(pleach: Client, forecaster: Forecaster, vm: Vm, metric: Metric) -> Panel:
    """The past of `vm`, and of others of its group where it has hardly any."""
    from controller.predict.demand.newcomers import ENOUGH

    now = time.time()
    forecaster.load(metric.family)
    forecaster.group_of = _groups([vm])
    alone = _panel(pleach, [vm.id], metric, now, _DAYS)
    if (alone.window() >= 0).sum() >= ENOUGH:
        return alone
    alike = (other for other in pleach.list(Vm) if other.id != vm.id and _alike(other, vm))
    peers = list(islice(alike, _PEERS))
    forecaster.group_of = _groups([vm, *peers])
    return _panel(pleach, [vm.id, *(peer.id for peer in peers)], metric, now, _DAYS)


def _alike(one: Vm, other: Vm) -> bool:
    return one.groups[:1] == other.groups[:1] if other.groups else one.tenant == other.tenant


def _groups(vms: Sequence[Vm]) -> dict[str, str]:
    """The role of each VM: its first group, or else its tenant."""
    return {vm.id: vm.groups[0] if vm.groups else vm.tenant for vm in vms}


def _panel(pleach: Client, vms: Sequence[str], metric: Metric, end: float, days: int) -> Panel:
    from controller.predict.demand.series import DAY_BINS, STEP, panel

    stop = int(end) // STEP * STEP
    samples = []
    capacity = []
    for vm in vms:
        found = pleach.history(vm, [metric.value], stop - days * 86_400, stop, step=STEP)
        values = [float("nan") if v is None else v for v in found.metrics[metric.value]]
        samples.append((vm, found.times, values))
        capacity.append(_capacity(pleach, vm, metric, stop))
    return panel(metric, samples, stop, days * DAY_BINS, capacity)


def _capacity(pleach: Client, vm: str, metric: Metric, end: int) -> float:
    """What the VM has: all of its CPUs, or the memory that it was last given; NaN for others."""
    if metric.value == "cpu":
        return 1.0
    if metric.value != "memory":
        return float("nan")
    found = pleach.history(vm, ["memory_size"], end - 86_400, end, step=3_600)
    known = [value for value in found.metrics["memory_size"] if value is not None]
    return known[-1] if known else float("nan")


def _show(
    told: Sequence[Forecast],
    past: Panel | None,
    view: _View,
    quality: Mapping[str, Sequence[Quality]],
) -> None:
    from controller.predict.demand import draw

    plot = view.plot
    if plot is not None and past is not None and told:
        try:
            draw.picture(told, past, plot)
        except (OSError, ValueError) as error:
            raise Failure(f"{plot}: {error}", "Name a file that ends in .png or .svg.") from error
    if view.as_json:
        show_json([draw.document(forecast) for forecast in told])
        return
    typer.echo("\n\n".join(draw.table(f, quality.get(f.target, ())) for f in told))
    if plot is not None:
        typer.echo(f"wrote {plot}")
