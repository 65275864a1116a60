"""A real brain describes VMs, finds who behaves alike and groups them; gaps, constants and too
little are no trouble."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from northbound_server import Running, define, running
from typer.testing import CliRunner

from controller.api import BehaviourInfo, SampleBatch
from controller.cli import app
from controller.client import Problem
from controller.observe.anomalies.regroup import NEW, regroup
from controller.observe.behaviour import album
from controller.observe.behaviour.album import Behaviour, Near
from controller.observe.behaviour.portrait import (
    FEATURES,
    METRICS,
    feature,
    of_json,
    portraits,
    to_json,
    vector,
)
from controller.store import Store

STEP = 300.0
STEPS = 280
WHERE = np.arange(STEPS)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=STEPS)


def wave(period: float, seed: int) -> np.ndarray:
    return 0.5 + 0.2 * np.sin(2 * np.pi * WHERE / period) + 0.02 * noise(seed)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("brain") / "state"
    room = {"min_free_bytes": 0}
    with running(state, history=room) as served:
        define(served, vms=6)
        gaps = wave(36, 3)
        gaps[50:90] = np.nan
        tell(served, "vm0", wave(36, 1))
        tell(served, "vm1", wave(36, 2))
        tell(served, "vm2", gaps)
        tell(served, "vm3", np.full(STEPS, 0.25))
        tell(served, "vm4", wave(36, 4)[-20:])
    environ = {"PLEACH_BEHAVIOUR__EVERY_S": "0.2", "PLEACH_BEHAVIOUR__ROLES_S": "1"}
    with running(state, history=room, environ=environ) as served:
        yield served


def tell(served: Running, vm: str, values: np.ndarray) -> None:
    end = time.time() // STEP * STEP
    times = end - STEP * np.arange(len(values), 0, -1)
    told = tuple(None if np.isnan(value) else float(value) for value in values)
    batch = SampleBatch(
        sender=vm,
        sequence=1,
        subjects=(vm,) * len(times),
        times=tuple(times),
        metrics={"cpu": told},
    )
    with served.client() as client:
        assert client.send_samples(batch).refused == ()


def described(served: Running, vm: str) -> BehaviourInfo:
    deadline = time.monotonic() + 180
    with served.client() as client:
        while (found := client.behaviour(vm)).at is None or found.role is None:
            assert time.monotonic() < deadline, client.loops()
            time.sleep(0.05)
    return found


def test_a_vm_is_described_with_its_rhythm_and_who_is_alike(shared: Running) -> None:
    found = described(shared, "vm0")
    cpu = found.metrics["cpu"]
    assert cpu.rhythms[0].length_s == pytest.approx(36 * STEP, rel=0.05)
    assert cpu.mean == pytest.approx(0.5, abs=0.05)
    assert {near.vm for near in found.near[:2]} == {"vm1", "vm2"}
    assert "vm0" not in {near.vm for near in found.near}
    assert described(shared, "vm3").metrics["cpu"].rhythms == ()


def test_of_what_is_hardly_known_nothing_is_told(shared: Running) -> None:
    described(shared, "vm0")
    with shared.client() as client:
        for vm in ("vm4", "vm5"):  # too short, and nothing
            assert client.behaviour(vm) == BehaviourInfo(
                vm=vm, at=None, role=None, metrics={}, near=()
            )
        with pytest.raises(Problem, match="no vm ghost"):
            client.behaviour("ghost")


def test_who_behaves_alike_has_one_role(shared: Running) -> None:
    for vm in ("vm0", "vm1", "vm2", "vm3"):
        described(shared, vm)
    with shared.client() as client:
        roles = client.roles()
        assert all(role.since <= role.at for role in roles)
        role_of = {vm: role.id for role in roles for vm in role.members}
        assert role_of["vm0"] == role_of["vm1"]
        assert set(role_of) == {"vm0", "vm1", "vm2", "vm3"}


def test_the_command_prints_and_draws(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    described(shared, "vm0")
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)

    def run(*words: str) -> str:
        return CliRunner().invoke(app, words, catch_exceptions=False).stdout

    shown = run("behaviour", "vm0")
    assert " h (" in shown
    assert "█" in shown
    assert "alike: vm" in shown
    assert "█" not in run("behaviour", "vm0", "--no-draw")
    waits = run("behaviour", "vm5")
    assert "nothing is told yet" in waits
    assert "its next turn, as a rule within 30 min" in waits
    assert json.loads(run("behaviour", "vm0", "--json"))["vm"] == "vm0"
    assert "role-" in run("roles")


def test_what_is_kept_is_what_was_found() -> None:
    rows = {"cpu": np.array([wave(36, 1), np.full(STEPS, np.nan)]), "memory": np.ones((2, STEPS))}
    first, second = portraits(rows)
    assert (first.keys(), second.keys()) == ({"cpu", "memory"}, {"memory"})
    again = of_json(json.loads(json.dumps(to_json(first))))
    assert vector(again) == pytest.approx(vector(first), rel=1e-3, abs=1e-4, nan_ok=True)
    assert len(vector(first)) == len(FEATURES) * len(METRICS)
    assert feature(0) == "the length of its period of cpu"
    assert feature(len(FEATURES) * len(METRICS) - 1) == f"variation of {METRICS[-1]}"


def test_the_album_keeps_a_page_a_week(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    (metrics,) = portraits({"cpu": np.array([wave(36, 1)])})
    first = Behaviour("vm0", 2_900, 1.5, metrics, (Near("vm1", 2_899, 0.25),))
    with store.transaction() as transaction:
        album.put(
            transaction, [first, Behaviour("vm0", 2_901, 2.5, {}), Behaviour("vm1", 3, 1.0, {})]
        )
        album.put(transaction, [Behaviour("vm0", 2_901, 3.5, {})])
    with store.reading() as connection:
        assert [
            (one.vm, one.week, one.at) for one in sorted(album.every(connection), key=repr)
        ] == [
            ("vm0", 2_900, 1.5),
            ("vm0", 2_901, 3.5),
            ("vm1", 3, 1.0),
        ]
        latest = album.latest(connection, "vm0")
        assert latest is not None
        assert latest.at == 3.5
        assert album.latest(connection, "ghost") is None
    with store.transaction() as transaction:
        assert album.forget(transaction, 2_900) == 1
    store.close()


def test_roles_are_followed_and_strays_are_told() -> None:
    chance = np.random.default_rng(1)
    vms = [f"vm{n}" for n in range(20)]
    vectors = np.where(np.arange(20)[:, None] < 10, 0.0, 5.0) + 0.1 * chance.normal(size=(20, 30))
    talks = np.where(np.arange(20)[:, None] < 10, [1.0, 0.0], [0.0, 1.0])
    groups, signals = regroup({}, vms, vectors, talks, 1.0)
    assert signals == []
    assert sorted(len(group.members) for group in groups) == [10, 10]
    assert all(group.role.startswith(NEW) and group.stayed == 1.0 for group in groups)
    before = {"role-1": tuple(vms[:10]), "role-2": tuple(vms[10:])}
    vectors[3], talks[3] = 5.0, [0.0, 1.0]
    groups, signals = regroup(before, vms, vectors, talks, 2.0)
    assert [(signal.vm, signal.kind, signal.at) for signal in signals] == [("vm3", "role", 2.0)]
    assert {group.role: group.stayed for group in groups} == {"role-1": 0.9, "role-2": 1.0}
