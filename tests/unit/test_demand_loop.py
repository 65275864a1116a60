"""Demand in the brain: rounds and learning, what is kept of them, and what disturbs none."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from demand_data import MONDAY, panel_of, rhythm
from history_world import batch
from northbound_server import define, running
from pydantic_core import to_json
from typer.testing import CliRunner

from controller.api import MSGPACK
from controller.cli import app
from controller.client import Problem
from controller.decide.bandwidth import qos
from controller.history.samples import to_msgpack_body
from controller.loops.demand import DIRECTORY, CalendarFile, Demand, DemandFailed
from controller.model.nouns import CalendarEvent, Nic, Tenant, Vm
from controller.model.state import State
from controller.observe.behaviour.album import Role
from controller.predict.demand import work
from controller.predict.demand.events import CalendarError, recorded
from controller.predict.demand.forecast import Forecast, Reason
from controller.predict.demand.latest import Latest, sheet
from controller.predict.demand.series import DAY_BINS, STEP, Metric
from controller.predict.demand.targets import QUANTILES, Target
from controller.settings import ForecastSettings

DAYS = 4
REASON = Reason("global", 500, MONDAY, MONDAY + 900, {"global": 0.5}, ("a note",))


def forecast_of(vm: str, quantiles: Any, target: Target = Target.HOURS) -> Forecast:
    return Forecast(vm, Metric.CPU, target, MONDAY, np.asarray(quantiles, float), 1.0, REASON)


def steps(top: float) -> Any:
    """Two steps of ordered quantiles, the highest of which is `top`."""
    return top * np.linspace(0.4, 1.0, 2 * len(QUANTILES)).reshape(2, -1)


# What holds now.


def test_a_sheet_is_read_as_it_was_written(tmp_path):
    peak = forecast_of("b", steps(2.0)[:1], Target.DAY_PEAK)
    both = [forecast_of("a", steps(0.5)), forecast_of("b", steps(1.5))]
    made, refused = sheet([*both, replace(peak, vm="a"), peak])
    assert refused == ()
    Latest(tmp_path / "new").put(made)
    reader = Latest(tmp_path / "new")
    hours, day = reader.get(Metric.CPU).of("b")
    assert (hours.target, day.target) == (Target.HOURS, Target.DAY_PEAK)
    assert hours.quantiles == pytest.approx(steps(1.5))
    assert hours.above_capacity == (False, True)
    assert (hours.reason, hours.origin, hours.capacity) == (REASON, MONDAY, 1.0)
    assert reader.get(Metric.CPU).of("nobody") == ()
    assert reader.get(Metric.MEMORY) is None
    # A newer one is seen by who read the older one.
    Latest(tmp_path / "new").put(replace(made, origin=MONDAY + 300))
    assert reader.get(Metric.CPU).origin == MONDAY + 300


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.01, 9.0])
def test_a_forecast_that_is_none_is_refused_and_no_other(wrong):
    bad = steps(0.5)
    bad[1, 0] = wrong  # 9 is above the higher quantiles
    made, refused = sheet([forecast_of("a", bad), forecast_of("b", steps(0.5))])
    assert refused == ("a",)
    assert made.names == ("b",)
    assert sheet([forecast_of("a", bad)]) == (None, ("a",))


def test_a_damaged_sheet_is_named(tmp_path):
    made, _ = sheet([forecast_of("a", steps(0.5))])
    latest = Latest(tmp_path)
    latest.put(made)
    path = tmp_path / "cpu.npz"
    for content in (b"", path.read_bytes()[:-200], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cpu\.npz: is no sheet"):
            Latest(tmp_path).get(Metric.CPU)


# A round.


def test_rounds_are_kept_settled_and_explained(tmp_path):
    values = rhythm(DAYS + 1, 3)
    values[2] = np.nan  # a newcomer
    whole = panel_of(values)
    order = work.Order(tmp_path, group_of=dict.fromkeys(whole.names, "web"))
    done = work.forecast(order, whole.until(DAYS * DAY_BINS))
    assert (done.vms, done.refused, done.settled) == (3, (), 0)
    assert done.chosen == {"seasonal-naive": 2, "peers": 1}
    found = work.latest_of(tmp_path).get(Metric.CPU)
    assert found.origin == MONDAY + DAYS * 86_400
    assert {t: len(f.quantiles) for f in found.of("vm0") for t in [f.target]} == {
        Target.FIVE_MINUTES: 12,
        Target.HOURS: 24,
        Target.HOUR_PEAKS: 24,
        Target.DAY_PEAK: 1,
    }
    came = Target.HOURS.series(whole.values[:, DAYS * DAY_BINS :])
    hours = found.tables[Target.HOURS].quantiles
    assert np.abs(hours[0, :, 0] - came[0]).mean() < 0.05
    assert "others like it" in " ".join(found.of("vm2")[0].reason.notes)
    later = work.forecast(order, whole)
    assert later.settled == len(Target)
    assert work.latest_of(tmp_path).get(Metric.CPU).origin == whole.end


def test_learning_from_too_little_changes_nothing(tmp_path):
    order = work.Order(tmp_path)
    values = np.full((2, 30 * DAY_BINS), np.nan, np.float32)
    values[:, -2 * DAY_BINS :] = rhythm(2, 2)
    learned = work.learn(order, [panel_of(values)], MONDAY)
    assert (learned.taken, learned.some) == (False, False)
    assert "less than 7 days" in learned.reason
    assert work.made(tmp_path, ("cpu",)) == {}


# The loop.


@dataclass
class Slow:
    """Computes at once, and remembers what; `fails` names metrics that do not work."""

    fails: set[str] = field(default_factory=set)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    async def run(self, function, *args):
        self.asked.append((function.__name__, args))
        if function is work.made:
            return {"cpu": int(time.time())}
        if function is work.learn:
            return work.Learned(True, True, "it is better")
        panel = args[1]
        if panel.metric.value in self.fails:
            raise MemoryError("too large")
        return work.Done(len(panel), (), 0, {})

    def forecast(self) -> list[str]:
        """The metrics that were forecast since this was asked last."""
        found = [str(args[1].metric) for name, args in self.asked if name == "forecast"]
        self.asked = [call for call in self.asked if call[0] != "forecast"]
        return found


class Past:
    """A history in which every VM has the same day again and again."""

    def read_many(self, metric, start, end, step, how="mean", subjects=None):
        times = np.arange(start, end, step)
        return _Matrix(tuple(subjects), times, np.tile(0.3 + 0 * times, (len(subjects), 1)))


@dataclass
class _Matrix:
    subjects: tuple[str, ...]
    times: Any
    values: Any

    def __iter__(self):
        return iter((self.subjects, self.times, self.values))


class Standing:
    """What the loop stands on here."""

    def __init__(self, *records) -> None:
        nic = Nic(mac="02:00:00:00:00:01", subnet="s")
        known = (Tenant(id="t"), Vm(id="a", tenant="t", nics=(nic,)))
        self.now = State.of([*known, *records])
        self.slow = Slow()
        self.store = self
        self.roles: list[Role] = []

    @contextmanager
    def reading(self):
        """A connection to a store that knows roles alone."""
        bodies = [to_json(role).decode() for role in self.roles]
        yield SimpleNamespace(scalars=lambda query: bodies)

    def state(self) -> State:
        return self.now

    async def history(self):
        return Past()


def turn(loop, ground) -> None:
    asyncio.run(loop.turn(ground))


def settings(**changed) -> ForecastSettings:
    return ForecastSettings.model_validate({"metrics": ("cpu", "memory"), **changed})


def test_a_round_is_due_after_a_look_and_then_each_hour(tmp_path):
    ground = Standing()
    loop = Demand(settings(), qos.load(), tmp_path, time.time())
    turn(loop, ground)
    assert ground.slow.forecast() == []
    loop = Demand(settings(), qos.load(), tmp_path, time.time() - 61)
    turn(loop, ground)
    assert ground.slow.forecast() == ["cpu", "memory"]
    # cpu has a model of now, memory none.
    learned = [args[1][0].metric for name, args in ground.slow.asked if name == "learn"]
    assert learned == [Metric.MEMORY]
    turn(loop, ground)
    assert ground.slow.forecast() == []


def test_a_metric_that_fails_keeps_no_other_from_its_turn(tmp_path):
    ground = Standing()
    ground.slow.fails = {"cpu"}
    loop = Demand(settings(), qos.load(), tmp_path, time.time() - 61)
    with pytest.raises(DemandFailed, match="cpu: too large"):
        turn(loop, ground)
    assert ground.slow.forecast() == ["cpu", "memory"]


def sale(factor: float = 2.0) -> CalendarEvent:
    starts = datetime.now(UTC) + timedelta(hours=1)
    told = {"cause": "campaign", "starts": starts, "lasts": "PT1H"}
    return CalendarEvent.model_validate({"id": "sale", "factor": factor, **told})


def test_a_changed_calendar_is_reason_for_a_new_round(tmp_path):
    ground = Standing()
    loop = Demand(settings(), qos.load(), tmp_path, time.time() - 61)
    turn(loop, ground)
    ground.slow.forecast()
    told = sale()
    ground.now.calendar_events["sale"] = told
    turn(loop, ground)
    (_, (order, _)), *_ = [call for call in ground.slow.asked if call[0] == "forecast"]
    assert order.calendar == recorded([told])
    assert ground.slow.forecast() == ["cpu", "memory"]
    turn(loop, ground)
    assert ground.slow.forecast() == []


def test_newcomers_are_told_from_the_role_that_their_group_plays(tmp_path):
    nics = (Nic(mac="02:00:00:00:00:02", subnet="s"),)
    web = [Vm(id=key, tenant="t", nics=nics, groups=("web",)) for key in ("w1", "w2", "new")]
    ground = Standing(*web, Vm(id="b", tenant="u", nics=nics))
    ground.roles = [Role("role-7", ("w1", "w2"), 0.0, 0.0, 1.0), Role("role-8", ("b",), 0, 0, 1)]
    loop = Demand(settings(nic_mbps=800), qos.load(), tmp_path, time.time() - 61)
    turn(loop, ground)
    (_, (order, panel)), *_ = [call for call in ground.slow.asked if call[0] == "forecast"]
    assert order.kin["new"][:2] == ("role-7", "group web")
    assert order.kin["b"][0] == "role-8"
    # Nobody of its tenant plays a role.
    assert not [kind for kind in order.kin["a"] if kind.startswith("role")]
    assert {kinds[-1] for kinds in order.kin.values()} == {"tenant t", "tenant u"}
    assert order.group_of == {"a": "t", "b": "u", "new": "web", "w1": "web", "w2": "web"}
    assert panel.capacity.tolist() == [1.0] * 5


def test_the_last_good_file_of_events_holds(tmp_path):
    path = tmp_path / "calendar.yaml"
    entry = "{name: x, cause: batch, starts: 2030-01-01T00:00:00Z, lasts: PT1H, factor: 2}"
    path.write_text(f"events:\n  - {entry}\n")
    file = CalendarFile(path)
    assert [event.name for event in file.read().events] == ["x"]
    path.write_text("events:\n  - {name: y, factor: 1e9}\n")
    assert [event.name for event in file.read().events] == ["x"]
    with pytest.raises(CalendarError, match=r"calendar\.yaml:2: factor"):
        file.complain()
    path.unlink()
    assert [event.name for event in file.read().events] == ["x"]
    with pytest.raises(CalendarError, match="cannot be read"):
        file.complain()


# REST and the command line.


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """VMs of which the first has a forecast, and the second a past."""
    place = tmp_path_factory.mktemp("brain") / "state"
    room = {"min_free_bytes": 0, "late_s": (DAYS + 1) * 86_400}
    with running(place, history=room) as found:
        define(found, vms=3)
        end = int(time.time()) // STEP * STEP
        times = [end - STEP * n + 60.0 for n in range(DAY_BINS, 0, -1)]
        values = {"cpu": rhythm(1, 1)[0].tolist()}
        told = batch(1, times, values, subjects=["vm1"] * len(times), sent_at=time.time())
        found.call("POST", "/v1/samples", to_msgpack_body(told), media=MSGPACK)
        order = work.Order(place / DIRECTORY)
        past = panel_of(rhythm(DAYS, 1))
        work.forecast(order, past.until(past.bins - DAY_BINS))
        work.forecast(order, past)
        yield found


def test_a_forecast_is_told_with_its_reasons(served):
    with served.client() as pleach:
        told = pleach.forecast("vm0", horizon_h=3)
    by_target = {f.target: f for f in told.forecasts}
    assert {target: len(f.times) for target, f in by_target.items()} == {
        "5min": 12,
        "hours": 3,
        "hour-peaks": 3,
        "day-peak": 1,
    }
    hours = by_target["hours"]
    assert hours.times[0] == told.origin == MONDAY + DAYS * 86_400
    assert (hours.model, hours.capacity, hours.known_s) == ("seasonal-naive", 1.0, DAYS * 86_400)
    levels = np.array([hours.quantiles[f"{level:g}"] for level in QUANTILES])
    assert (np.diff(levels, axis=0) >= 0).all()
    assert (levels >= 0).all()
    assert told.quality == ()  # those that were settled are of another year


def test_what_has_no_forecast_is_told_so(served):
    with served.client() as pleach:
        for vm, metric, says in (
            ("vm1", "cpu", "there is no forecast of cpu of vm1 yet"),
            ("vm0", "disk_read", "there is no forecast of disk_read of vm0 yet"),
            ("nobody", "cpu", "there is no vm nobody"),
        ):
            with pytest.raises(Problem, match=says) as refused:
                pleach.forecast(vm, metric)
            assert refused.value.status == 404
    assert served.call("GET", "/v1/forecasts/vm0?metric=gpu").type == "invalid"
    for hours in ("0", "25", "nan", "-1"):
        assert served.call("GET", f"/v1/forecasts/vm0?horizon={hours}").type == "invalid"


def test_events_are_told_by_rest(served):
    with served.client() as pleach:
        kept = pleach.put(sale())
        assert [*pleach.list(CalendarEvent)] == [kept]
        pleach.delete(CalendarEvent, "sale")
        assert [*pleach.list(CalendarEvent)] == []
    good = {"cause": "campaign", "starts": "2030-01-01T00:00:00Z", "lasts": "PT1H", "factor": 2}
    for wrong in ({"factor": 1e6}, {"factor": -1}, {"factor": 0}, {"lasts": "PT0S"}, {"x": 1}):
        assert served.call("PUT", "/v1/calendar/sale", {**good, **wrong}).type == "invalid"
    assert served.call("GET", "/v1/calendar").body["items"] == []


@pytest.fixture
def pleach(served, monkeypatch):
    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)
    monkeypatch.setenv("PLEACH_STATE_DIR", str(served.settings.state_dir))
    return lambda *words: CliRunner().invoke(app, ["forecast", *words])


def test_the_command_shows_what_the_controller_told(pleach, tmp_path):
    done = pleach("vm0", "--of", "hours", "--horizon", "2")
    assert done.exit_code == 0, done.exception
    assert "vm0 cpu hours, %, from 2026-03-06 00:00" in done.stdout
    assert "2026-03-06 01:00" in done.stdout
    assert "2026-03-06 02:00" not in done.stdout
    assert "model: seasonal-naive" in done.stdout


def test_the_command_makes_what_the_controller_lacks(pleach):
    done = pleach("vm1", "--of", "hours")
    assert done.exit_code == 0, done.exception
    assert "no forecast of cpu of vm1 yet: it is made here" in done.output
    assert "past: 24 h known" in done.stdout


def test_the_command_forecasts_from_a_file(pleach, tmp_path):
    path = tmp_path / "demand.csv"
    rows = [
        f"{vm},{MONDAY + STEP * at},{value}"
        for vm, values in zip(("x", "y"), rhythm(3, 2), strict=True)
        for at, value in enumerate(values)
    ]
    rows[7] = f"x,{MONDAY + STEP * 7},nan"
    path.write_text("\n".join(["vm,ts,cpu", *rows, "x,,0.5"]))
    done = pleach("y", "--file", str(path), "--of", "day-peak")
    assert done.exit_code == 0, done.exception
    assert "y cpu day-peak, %, from 2026-03-05 00:00" in done.stdout
    assert "there is no VM z" in str(pleach("z", "--file", str(path)).exception)
    lacking = pleach("y", "memory", "--file", str(path)).exception
    assert "cannot be read" in str(lacking)
    assert "columns vm, ts (Unix seconds) and memory" in lacking.mend
    for name in ("none.csv", "none.parquet"):
        missing = pleach("y", "--file", str(tmp_path / name)).exception
        assert str(missing) == f"{tmp_path / name}: there is no such file"
        assert missing.mend == "Name a .csv or .parquet file."
    path.write_text("vm,ts,cpu\n")
    assert "no sample" in str(pleach("y", "--file", str(path)).exception)
    path.write_text("vm,ts,cpu\nx,now,high\n")
    assert "numbers" in str(pleach("y", "--file", str(path)).exception)


def test_a_brain_forecasts_by_itself(tmp_path):
    """From samples that came in by REST to a forecast that is asked for by REST."""
    fast = {"METRICS": "cpu", "EVERY_S": "0.2", "ROUND_S": "1"}
    environ = {f"PLEACH_FORECAST__{name}": value for name, value in fast.items()}
    room = {"min_free_bytes": 0, "late_s": 3 * 86_400}
    with running(tmp_path / "state", history=room, environ=environ) as found:
        define(found, vms=2)
        end = int(time.time()) // STEP * STEP
        times = [end - STEP * n + 60.0 for n in range(2 * DAY_BINS, 0, -1)]
        values = {"cpu": rhythm(2, 1)[0].tolist()}
        told = batch(1, times, values, subjects=["vm0"] * len(times), sent_at=time.time())
        found.call("POST", "/v1/samples", to_msgpack_body(told), media=MSGPACK)
        deadline = time.monotonic() + 300
        while (answer := found.call("GET", "/v1/forecasts/vm0")).status == 404:
            assert time.monotonic() < deadline, answer.body
            time.sleep(0.2)
        assert answer.status == 200
        models = {f["target"]: f["model"] for f in answer.body["forecasts"]}
        assert models["hours"] == "seasonal-naive"
        assert answer.body["origin"] % STEP == 0
        # A VM without a past is told from the other one.
        assert found.call("GET", "/v1/forecasts/vm1").body["forecasts"][0]["model"] == "peers"
