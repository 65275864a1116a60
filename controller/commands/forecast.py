"""`pleach forecast`: what a VM will need in the next 24 hours, as a table or a picture, and why."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.client import Client
from controller.commands.common import Failure, Json, client, settings, show_json
from controller.model.nouns import Vm

if TYPE_CHECKING:
    from controller.predict.demand.events import Calendar
    from controller.predict.demand.forecast import Forecast
    from controller.predict.demand.forecaster import Forecaster
    from controller.predict.demand.series import Metric, Panel
    from controller.predict.demand.targets import Target

#: Days of past that are read: twice what models look at, so that they can be tried on it.
_DAYS = 28
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
    learn: Annotated[
        bool, typer.Option("--learn", help="Learn from the past of all VMs anew, on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a VM will need in the next 24 hours, with the model, the reasons and the past that
    the forecast stands on."""
    # Here, because numpy and scikit-learn are slow to import and most commands need neither.
    from controller.predict.demand.series import Metric

    if metric not in list(Metric):
        raise Failure(f"there is no forecast of {metric}", f"Name one of {', '.join(Metric)}.")
    events = _calendar(calendar)
    with client() as pleach, _forecaster(events) as forecaster:
        if learn:
            typer.echo(_learn(pleach, forecaster, Metric(metric)))
        if vm is None:
            if not learn:
                raise Failure("no VM is named", "Name one, or --learn.")
            return
        wanted = _wanted(of, steps)
        past = _past(pleach, forecaster, vm, Metric(metric))
        forecaster.rehearse(past.rows([0]), tuple(wanted))
        told = [f for f in forecaster.round(past, wanted).forecasts if f.vm == vm]
    _show(forecaster, told, past, plot, as_json)


def _wanted(of: Sequence[str] | None, steps: int | None) -> dict[Target, int]:
    from controller.predict.demand.targets import Target
    from controller.predict.demand.training import horizon

    unknown = [name for name in of or () if name not in list(Target)]
    if unknown:
        raise Failure(f"{unknown[0]} is nothing that is told", f"One of {', '.join(Target)}.")
    chosen = [Target(name) for name in of] if of else [Target.HOURS, Target.DAY_PEAK]
    wanted = {target: horizon(target) for target in chosen}
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


def _past(pleach: Client, forecaster: Forecaster, vm: str, metric: Metric) -> Panel:
    """The past of `vm`, and of others of its group where it has hardly any."""
    from controller.predict.demand.newcomers import ENOUGH

    now = time.time()
    record = pleach.get(Vm, vm)
    forecaster.load(metric.family)
    forecaster.group_of = _groups([record])
    alone = _panel(pleach, [vm], metric, now, _DAYS)
    if (alone.window() >= 0).sum() >= ENOUGH:
        return alone
    alike = (other for other in pleach.list(Vm) if other.id != vm and _alike(other, record))
    peers = list(islice(alike, _PEERS))
    forecaster.group_of = _groups([record, *peers])
    return _panel(pleach, [vm, *(peer.id for peer in peers)], metric, now, _DAYS)


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
    forecaster: Forecaster,
    told: Sequence[Forecast],
    past: Panel,
    plot: Path | None,
    as_json: bool,
) -> None:
    from controller.predict.demand import draw

    if plot is not None:
        try:
            draw.picture(told, past, plot)
        except (OSError, ValueError) as error:
            raise Failure(f"{plot}: {error}", "Name a file that ends in .png or .svg.") from error
    if as_json:
        show_json([draw.document(forecast) for forecast in told])
        return
    typer.echo("\n\n".join(draw.table(forecast) for forecast in told))
    if plot is not None:
        typer.echo(f"wrote {plot}")
