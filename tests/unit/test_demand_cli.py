"""`pleach forecast` against a real server and its history."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from demand_data import rhythm
from history_world import batch
from northbound_server import define, running
from typer.testing import CliRunner

from controller.api import MSGPACK
from controller.cli import app
from controller.history.samples import to_msgpack_body
from controller.predict.demand.series import DAY_BINS, STEP

DAYS = 4


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Four VMs, of which the first two have four days of past."""
    place = tmp_path_factory.mktemp("brain") / "state"
    room = {"min_free_bytes": 0, "late_s": (DAYS + 1) * 86_400}
    with running(place, history=room) as found:
        define(found, vms=4)
        end = int(time.time()) // STEP * STEP
        times = [end - STEP * n + 60.0 for n in range(DAYS * DAY_BINS, 0, -1)]
        for row, values in enumerate(rhythm(DAYS, 2)):
            names = [f"vm{row}"] * len(times)
            told = batch(row, times, {"cpu": values.tolist()}, subjects=names, sent_at=time.time())
            answer = found.call("POST", "/v1/samples", to_msgpack_body(told), media=MSGPACK)
            assert answer.body["accepted"] == len(times), answer.body
        yield found


@pytest.fixture
def pleach(served, monkeypatch):
    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)
    monkeypatch.setenv("PLEACH_STATE_DIR", str(served.settings.state_dir))
    return lambda *words: CliRunner().invoke(app, ["forecast", *words])


def test_a_forecast_is_printed_and_drawn(pleach, tmp_path):
    picture = tmp_path / "vm0.png"
    done = pleach("vm0", "--of", "day-peak", "--plot", str(picture))
    assert done.exit_code == 0, done.exception
    assert "vm0 cpu day-peak, %" in done.stdout
    assert "model: seasonal-naive" in done.stdout
    assert "past: 96 h known" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_forecast_is_told_as_json(pleach):
    (told,) = json.loads(pleach("vm1", "cpu", "--of", "day-peak", "--json").stdout)
    levels = [told["quantiles"][level][0] for level in ("0.5", "0.9", "0.95", "0.99")]
    assert levels == sorted(levels)
    assert 0 < levels[0] < 2
    assert (told["vm"], told["metric"], told["step"]) == ("vm1", "cpu", 86_400)


def test_a_vm_without_a_past_is_told_from_others(pleach):
    done = pleach("vm3", "--of", "hours", "--json")
    assert done.exit_code == 0, done.exc_info
    (told,) = json.loads(done.stdout)
    assert told["model"] == "peers"
    assert np.ptp(told["quantiles"]["0.5"]) > 0.05
    assert told["known_s"] == 0


def test_a_calendar_changes_the_forecast_and_is_named(pleach, tmp_path):
    path = tmp_path / "calendar.yaml"
    start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3_600))
    entry = f"{{name: sale, cause: campaign, starts: {start}, lasts: PT5H, factor: 90}}"
    path.write_text(f"events:\n  - {entry}\n")
    (told,) = json.loads(pleach("vm3", "--of", "hours", "--json", "--calendar", str(path)).stdout)
    assert any("sale" in note for note in told["notes"])
    assert any(told["above_capacity"])
    assert not all(told["above_capacity"])


def test_too_little_to_learn_from_is_told(pleach):
    done = pleach("--learn")
    assert done.exit_code == 0, done.exception
    assert "cpu: nothing new" in done.stdout


def test_what_cannot_be_told_is_refused_with_what_can(pleach, tmp_path):
    assert "cpu, memory" in pleach("vm0", "gpu").exception.mend
    assert "hour-peaks" in pleach("vm0", "--of", "years").exception.mend
    assert "no VM is named" in str(pleach().exception)
    missing = Path(tmp_path / "none.yaml")
    assert "cannot be read" in str(pleach("vm0", "--calendar", str(missing)).exception)
    wrong = pleach("vm0", "--of", "day-peak", "--plot", str(tmp_path / "x.gif"))
    assert ".png or .svg" in wrong.exception.mend


@pytest.mark.parametrize("more", [(), ("--here",)])
def test_a_vm_that_is_not_there_is_refused_before_anything_is_made(pleach, monkeypatch, more):
    monkeypatch.setattr("controller.commands.forecast._forecaster", None)
    done = pleach("ghost", *more)
    assert "there is no vm ghost" in str(done.exception)
    assert done.output == ""


def test_where_no_vm_has_any_sample_nothing_is_made_up(pleach):
    told = pleach("vm0", "disk_read").exception
    assert str(told) == "there is no sample of disk_read of vm0, nor of any VM like it"
    assert "pleach history vm0 disk_read" in told.mend
