"""How good are forecasts of demand, on real VMs and against the seasonal naive forecast?

The product is what is measured: a `Forecaster` learns from all but the last seven days, and is
then asked in each of them again and again, as the brain asks it; what it told is settled as
time goes on, and nothing later than the moment of a forecast is ever shown to it. The seasonal
naive forecast (with the quantiles of its own past errors) is asked at the same moments.

Figures are means over VMs of means over forecasts. Errors are divided by the VM's seasonal
naive error over its whole past before the test (MASE), yet by no less than the metric's
resolution, so that VMs that idle do not outweigh all others. `h1`: the twelve steps of 5
minutes of the next hour; `h24`: the means of the next 24 hours; `daily_peak`: the largest value
of 5 minutes in the next 24 hours.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from controller.predict.demand import neural, statistics
from controller.predict.demand.boosted import Growth
from controller.predict.demand.features import usual_scale
from controller.predict.demand.forecaster import Forecaster, Round
from controller.predict.demand.global_model import NAME as GLOBAL
from controller.predict.demand.global_model import Training
from controller.predict.demand.keep import ModelStore
from controller.predict.demand.ledger import Ledger
from controller.predict.demand.models import Model
from controller.predict.demand.seasonal import NAME as NAIVE
from controller.predict.demand.series import (
    DAY_BINS,
    STEP,
    WINDOW,
    Array,
    Metric,
    Panel,
    carried,
    gaps_allowed,
    on_grid,
)
from controller.predict.demand.targets import QUANTILES, Target, pinball
from controller.predict.demand.training import HELD_OUT, horizon
from tests.benchmarks.harness import Json, Options, say

TEST = 7 * DAY_BINS
#: Bins between two forecasts of the next hour; not a whole hour, so that all minutes are met.
EVERY = 13
#: Each so many of them all targets are asked for.
FULL = 4
#: Share of the two weeks before the test, and of the test, that must be known of a VM.
ENOUGH = 0.7
P95 = QUANTILES.index(0.95)
#: Columns of the data: the metric's unit in theirs, and what is at most used.
COLUMNS = {
    Metric.CPU: ("cpu_pct", 0.01),
    Metric.MEMORY: ("mem_kb", 1024.0),
    Metric.NET_RX: ("net_rx_kbps", 1000.0),
    Metric.NET_TX: ("net_tx_kbps", 1000.0),
}
FAMILIES = {
    "": (Metric.CPU,),
    "mem_": (Metric.MEMORY,),
    "net_": (Metric.NET_RX, Metric.NET_TX),
}
SCALE_VMS = 5_000
#: Bins between two forecasts by all models, and VMs that they are compared on.
SAMPLE_EVERY = 17 * 12 + 1
SAMPLE_VMS = 12
#: Rows that trees and networks are timed on.
TIMED_ROWS = 100_000
QUICK = Training(rows=20_000, networks=1, growth=Growth(rows=4_000, iterations=15))


@dataclass(slots=True)
class Told:
    """Forecasts of one target by one source, and what came: lists over moments."""

    quantiles: list[Array] = field(default_factory=list)
    came: list[Array] = field(default_factory=list)

    def figures(self, scale: Array) -> tuple[float, float, float, float]:
        """MASE, scaled pinball loss at .95, mean scaled pinball loss of all quantiles, and the
        share that stayed below .95."""
        told, came = np.stack(self.quantiles, axis=1), np.stack(self.came, axis=1)
        unit = scale[:, None, None]
        losses = pinball(came, told) / unit[..., None]
        known = np.isfinite(came) & np.isfinite(told[..., P95])
        return (
            _over_vms(np.abs(came - told[..., 0]) / unit),
            _over_vms(losses[..., P95]),
            _over_vms(losses.mean(axis=-1)),
            float((came <= told[..., P95])[known].mean()),
        )


def run(options: Options) -> Json:
    """Learn and forecast each family of metrics; then all models on some VMs, and 5,000 VMs."""
    data = made_up(options.quick) if options.data is None else load(options.data, options.quick)
    training = QUICK if options.quick else Training()
    out: Json = {
        "data": "made up" if options.data is None else str(options.data),
        "vms": len(data[Metric.CPU]),
        "test_days": TEST // DAY_BINS,
        "horizons": {"h1": "12 steps of 5 min", "h24": "24 hourly means"},
    }
    for prefix, metrics in FAMILIES.items():
        with forecaster(training) as tried:
            panels = [data[metric] for metric in metrics]
            began = time.process_time()
            wall = time.perf_counter()
            done = tried.retrain([p.until(p.bins - TEST) for p in panels], panels[0].end - TEST)
            out[f"{prefix}fit_s"] = round(time.perf_counter() - wall, 1)
            out[f"{prefix}fit_cpu_s"] = round(time.process_time() - began, 1)
            say(f"{prefix or 'cpu_'}fit:", done.reason)
            out |= {prefix + key: value for key, value in judged(tried, panels, options).items()}
            if prefix == "":
                out |= at_scale(tried, panels[0], 500 if options.quick else SCALE_VMS)
                out["models"] = compared(tried, panels[0], options)
    out["rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return out


@contextmanager
def forecaster(training: Training) -> Iterator[Forecaster]:
    """A forecaster that has learned nothing yet."""
    with tempfile.TemporaryDirectory() as place:
        ledger = Ledger(Path(place) / "ledger.db")
        try:
            yield Forecaster(ModelStore(Path(place) / "models"), ledger, training=training)
        finally:
            ledger.close()


def judged(tried: Forecaster, panels: Sequence[Panel], options: Options) -> Json:
    """The keys of one family: the product and the seasonal naive forecast over the test."""
    parts = [over_the_test(tried, panel, options.quick) for panel in panels]
    out: Json = {}
    for key, target in (
        ("h1", Target.FIVE_MINUTES),
        ("h24", Target.HOURS),
        ("hour_peak", Target.HOUR_PEAKS),
        ("daily_peak", Target.DAY_PEAK),
    ):
        for source, suffix in (("", ""), (NAIVE, "_seasonal_naive")):
            rows = [
                part[target, source].figures(usual_scale(p.until(p.bins - TEST), target))
                for part, p in zip(parts, panels, strict=True)
            ]
            mase, p95, _, coverage = np.mean(rows, axis=0).round(4).tolist()
            error = "error" if target.peak else "mase"
            out |= {f"{key}_{error}{suffix}": mase, f"{key}_p95{suffix}": p95}
            out[f"{key}_coverage95{suffix}"] = coverage
        say(key, {name: value for name, value in out.items() if name.startswith(key + "_")})
    return out


def over_the_test(tried: Forecaster, panel: Panel, quick: bool) -> dict[tuple[Target, str], Told]:
    """All forecasts in the test by the product ("") and by the seasonal naive model."""
    out = {(target, source): Told() for target in Target for source in ("", NAIVE)}
    begin = panel.bins - TEST
    every = EVERY * 12 if quick else EVERY
    for number, at in enumerate(range(begin, panel.bins - 12 + 1, every)):
        past = panel.until(at)
        full = (quick or number % FULL == 0) and at + DAY_BINS <= panel.bins
        targets = tuple(Target) if full else (Target.FIVE_MINUTES,)
        made = tried.round(past, {target: horizon(target) for target in targets})
        enter(out, made, panel, at, (NAIVE,))
        tried.ledger.remember(made.told)
        tried.settle(past)
        if number % (24 * FULL) == 0:
            say(panel.metric, f"day {(at - begin) // DAY_BINS + 1} of {TEST // DAY_BINS}")
    return out


def enter(
    out: Mapping[tuple[Target, str], Told],
    made: Round,
    panel: Panel,
    at: int,
    models: Sequence[str],
) -> None:
    """Put what was told at bin `at`, with what came, where it belongs."""
    chosen: dict[Target, list[Array]] = {}
    for forecast in made.forecasts:
        chosen.setdefault(forecast.target, []).append(forecast.quantiles)
    words = {(target, ""): np.stack(rows) for target, rows in chosen.items()}
    words |= {
        (told.target, told.model): np.maximum(told.quantiles, 0)
        for told in made.told
        if told.model in models
    }
    for (target, model), word in words.items():
        came = target.series(panel.values[:, at : at + word.shape[1] * target.bins])
        out[target, model].quantiles.append(word)
        out[target, model].came.append(came)


def at_scale(tried: Forecaster, panel: Panel, vms: int) -> Json:
    """Seconds for one round over many VMs: an hour of 5 minutes, 24 hours, their peaks and the
    day's, all quantiles, chosen and calibrated, with the reasons."""
    last = panel.until(panel.bins)
    rows = np.resize(np.arange(len(panel)), vms)
    names = tuple(f"{last.names[row]}-{n}" for n, row in enumerate(rows))
    window = last.window()[rows]
    many = Panel(panel.metric, names, window, panel.end, panel.capacity[rows])
    wall, cpu = time.perf_counter(), time.process_time()
    made = tried.round(many)
    assert len(made.forecasts) == vms * len(Target)
    out: Json = {
        f"predict_{vms}_vms_s": round(time.perf_counter() - wall, 2),
        f"predict_{vms}_vms_cpu_s": round(time.process_time() - cpu, 2),
        **row_cost(tried, panel.metric.family),
    }
    say(out)
    return out


def row_cost(tried: Forecaster, family: str) -> Json:
    """Trees that are asked for a step of each target, and the processor's time for a row by one
    of them and by one network: what more of them would cost."""
    kept = tried.store.newest(family)
    assert kept is not None
    learned = kept.model.learned
    hours = learned[Target.HOURS]
    shape = (len(hours.columns), TIMED_ROWS)
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    started = time.process_time()
    hours.trees(rows)
    between = time.process_time()
    hours.networks[0](rows)
    ended = time.process_time()
    return {
        "trees": {str(target): len(one.trees.roots) for target, one in learned.items()},
        "ns_per_tree_row": round(
            (between - started) / TIMED_ROWS / len(hours.trees.roots) * 1e9, 2
        ),
        "ns_per_network_row": round((ended - between) / TIMED_ROWS * 1e9),
    }


def compared(tried: Forecaster, panel: Panel, options: Options) -> list[Json]:
    """A row a model, on some VMs and for the means of hours: each alone, and what the choice
    among all of them made of it."""
    rows = np.linspace(0, len(panel) - 1, 3 if options.quick else SAMPLE_VMS).astype(int)
    sample = panel.rows(np.unique(rows))
    others: list[Model] = list(statistics.available())
    fit = {model.name: 0.0 for model in others}
    before = panel.until(panel.bins - TEST - HELD_OUT * DAY_BINS)
    if neural.available():
        began = time.process_time()
        samples = 500 if options.quick else 6_000
        schooling = neural.Schooling(epochs=2 if options.quick else 8, samples=samples)
        others.append(neural.train([before], (Target.HOURS,), schooling))
        fit[neural.NAME] = time.process_time() - began
    kept = tried.store.newest(panel.metric.family)
    assert kept is not None
    clocks = [Clocked(model) for model in others]
    # What the global model's learners say alone is only compared: the product does not choose it.
    alone = [Clocked(kept.model.alone("trees")), Clocked(kept.model.alone("networks"))]
    asked = ["", GLOBAL, NAIVE, *(clock.name for clock in clocks)]
    names = [*asked, *(clock.name for clock in alone)]
    out = {(Target.HOURS, name): Told() for name in names}
    begin, test = panel.bins - TEST - HELD_OUT * DAY_BINS, panel.bins - TEST
    every = SAMPLE_EVERY * (3 if options.quick else 1)
    # With a record of its own, in which no model has an advantage.
    with forecaster(tried.training) as fresh:
        fresh.store, fresh.others = tried.store, tuple(clocks)
        fresh.load(panel.metric.family)
        for at in range(begin, panel.bins - DAY_BINS + 1, every):
            made = fresh.round(sample.until(at), {Target.HOURS: 24})
            fresh.ledger.remember(made.told)
            fresh.settle(sample.until(at))
            if at >= test:
                enter(out, made, sample, at, asked)
                came = out[Target.HOURS, ""].came[-1]
                for clock in alone:
                    word = clock.quantiles(sample.until(at), Target.HOURS, 24)
                    out[Target.HOURS, clock.name].quantiles.append(np.maximum(word, 0))
                    out[Target.HOURS, clock.name].came.append(came)
    scale = usual_scale(sample.until(test), Target.HOURS)
    spent = {clock.name: clock for clock in (*clocks, *alone)}
    rows_told: list[Json] = []
    for name in names:
        mase, p95, loss, coverage = out[Target.HOURS, name].figures(scale)
        row: Json = {
            "model": name or "selected",
            "vms": len(sample),
            "h24_mase": round(mase, 4),
            "h24_p95": round(p95, 4),
            "h24_pinball": round(loss, 4),
            "h24_coverage95": round(coverage, 4),
        }
        if name in fit:
            row["fit_cpu_s"] = round(fit[name], 1)
        if name in spent:
            row["cpu_s_per_forecast"] = round(spent[name].seconds / max(spent[name].series, 1), 4)
        rows_told.append(row)
        say(row)
    for name in ("theta", "auto-ets", "auto-arima", neural.NAME):
        if name not in names:
            extra = "neural" if name == neural.NAME else "statistics"
            why = f"not available: the optional extra {extra} is not installed"
            rows_told.append({"model": name, "note": why})
    return rows_told


class Clocked:
    """A model, and the CPU seconds that its forecasts took."""

    def __init__(self, model: Model) -> None:
        self.name = model.name
        self.seconds = 0.0
        self.series = 0
        self._model = model

    def quantiles(self, past: Panel, target: Target, steps: int) -> Array:
        """See Model."""
        began = time.process_time()
        told = self._model.quantiles(past, target, steps)
        self.seconds += time.process_time() - began
        self.series += len(past)
        return told


def load(place: Path, quick: bool) -> dict[Metric, Panel]:
    """Panels of the VMs of `place/*.parquet` that have enough past, on the time that all files
    span. Raises SystemExit where there are none."""
    files = sorted(place.glob("*.parquet"))
    if not files:
        raise SystemExit(f"{place}: there is no *.parquet with VMs in it: give --data its folder")
    wanted = ["vm", "ts", "memcap_kb", *(column for column, _ in COLUMNS.values())]
    tables = [parquet.read_table(file, columns=wanted) for file in files]
    columns = {
        name: np.concatenate([table[name].to_numpy() for table in tables]) for name in wanted
    }
    end = int(columns["ts"].max()) // STEP * STEP
    bins = (end - int(columns["ts"].min())) // STEP
    order = np.argsort(columns["vm"], kind="stable")
    vms, starts = np.unique(columns["vm"][order], return_index=True)
    groups = np.split(order, starts[1:])
    cpu = np.stack([_grid(columns, Metric.CPU, group, end, bins) for group in groups])
    known = np.isfinite(cpu)
    past, test = known[:, -TEST - WINDOW : -TEST], known[:, -TEST:]
    enough = np.flatnonzero((past.mean(axis=1) >= ENOUGH) & (test.mean(axis=1) >= ENOUGH))
    chosen = enough[:: max(1, len(enough) // 40)] if quick else enough
    say(f"{len(enough)} of {len(vms)} VMs have enough past; {len(chosen)} are taken")
    names = tuple(str(vms[row]) for row in chosen)
    out = {}
    for metric in COLUMNS:
        rows = [_grid(columns, metric, groups[row], end, bins) for row in chosen]
        capacity = np.full(len(chosen), 1.0 if metric is Metric.CPU else np.nan)
        if metric is Metric.MEMORY:
            capacity = np.array([columns["memcap_kb"][groups[row]][-1] for row in chosen]) * 1024.0
        out[metric] = Panel(metric, names, carried(np.stack(rows)), end, capacity)
    return out


def made_up(quick: bool) -> dict[Metric, Panel]:
    """Panels of VMs with a day's rhythm, jobs by the hour and the night, bursts and noise: for
    trying the benchmark where there is no data. Its figures say little of real VMs."""
    rng = np.random.default_rng(1)
    vms, bins = (20, 28 * DAY_BINS) if quick else (100, 42 * DAY_BINS)
    clock = np.arange(bins)
    end = 1_767_225_600 + bins * STEP  # from 2026-01-01
    out = {}
    for metric in COLUMNS:
        unit = 1.0 if metric is Metric.CPU else 1e8
        wave = 0.3 + 0.2 * np.sin(2 * np.pi * (clock[None] / DAY_BINS + rng.random((vms, 1))))
        job = 0.4 * ((clock[None] % 12) == rng.integers(12, size=(vms, 1)))
        night = 0.5 * ((clock[None] - rng.integers(DAY_BINS, size=(vms, 1))) % DAY_BINS < 12)
        burst = (rng.random((vms, bins)) < 0.002) * rng.exponential(0.5, (vms, bins))
        noise = 0.03 * rng.standard_normal((vms, bins))
        share = rng.random((3, vms, 1))
        values = wave * share[0] + job * share[1] + night * share[2] + burst + noise
        grid = (np.maximum(values, 0) * unit).astype(np.float32)
        names = tuple(f"vm{n}" for n in range(vms))
        out[metric] = Panel(metric, names, grid, end, np.full(vms, np.nan))
    return out


def _grid(columns: Mapping[str, Array], metric: Metric, rows: Array, end: int, bins: int) -> Array:
    name, factor = COLUMNS[metric]
    return on_grid(columns["ts"][rows], columns[name][rows] * factor, end, bins)


def _over_vms(values: Array) -> float:
    """The mean over VMs of each one's mean."""
    with gaps_allowed():
        return float(np.nanmean(np.nanmean(values.reshape(len(values), -1), axis=1)))
