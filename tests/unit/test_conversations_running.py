"""Signatures that a real brain has hour by hour: a scan is told once, over restarts too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from northbound_server import Running, define, other_store, running

from controller.api import AlertInfo
from controller.loops.anomalies import DIRECTORY
from controller.model.signatures import Refused, Talked
from controller.observe.anomalies import habits
from controller.observe.anomalies.detector import StaleError
from controller.observe.anomalies.signatures import Talk
from controller.store import signatures

SOON = {"PLEACH_ALERTS__EVERY_S": "0.05"}


def talked(vm: str, peer: str, hour: int, port: int = 443, size: int = 1_000) -> Talked:
    at = hour * 3_600.0
    external = "/" in peer
    return Talked(vm, peer, "tcp", port, hour, "acme", external, 1, 9, size, 9, size, at, at + 9)


def refused(vm: str, peer: str, hour: int, port: int) -> Refused:
    at = hour * 3_600.0
    return Refused(vm, peer, "tcp", port, hour, "acme", False, 1, 60, at, at)


def count(served: Running, *hours: Talked | Refused) -> None:
    with other_store(served) as store, store.transaction() as transaction:
        signatures.add(transaction, hours)


def wait(served: Running, alerts: int, turns: int = 1) -> list[AlertInfo]:
    """All alerts, once there are so many and the loop has taken so many turns."""
    deadline = time.monotonic() + 180
    with served.client() as client:
        while True:
            loop = {loop.name: loop for loop in client.loops()}["conversations"]
            found = client.alerts().items
            if len(found) >= alerts and loop.turns >= turns and not loop.trouble:
                return list(found)
            assert time.monotonic() < deadline, loop
            time.sleep(0.05)


def test_what_is_out_of_the_ordinary_is_told_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    hour = int(time.time() // 3_600)
    with running(state, environ=SOON) as served:
        define(served, vms=4)
        past = [talked("vm0", "vm1", h) for h in range(hour - 48, hour)]
        past += [talked("vm2", "198.51.100.0/24", h) for h in range(hour - 48, hour)]
        count(served, *past)
        assert wait(served, 0, 2) == []
        # It tries many doors, most of which are shut; another sends much to the outside.
        doors = [refused("vm0", "vm3", hour, port) for port in range(1, 60)]
        much = talked("vm2", "198.51.100.0/24", hour, size=10**9)
        count(served, talked("vm0", "vm1", hour), *doors, much)
    with running(state, environ=SOON) as served:
        found = wait(served, 2)
        assert {(one.vm, one.kind) for one in found} == {("vm0", "scan"), ("vm2", "exfiltration")}
        deadline = time.monotonic() + 180
        with served.client() as client:
            number = next(one.id for one in found if one.kind == "scan")
            while (looked := client.investigation(number)).gathered_at is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            client.close_alert(number)
        assert "denied: 1 packets from vm0 to vm3 tcp/1;" in str(looked.words)
        assert "talked with: vm1 tcp/443" in str(looked.words)
    (state / DIRECTORY / "habits.msgpack").write_bytes(b"damaged")
    with running(state, environ=SOON) as served:
        again = wait(served, 2, 2)
    assert {(one.id, one.count) for one in again} == {(one.id, one.count) for one in found}
    assert (state / DIRECTORY / "habits.msgpack").stat().st_size > 100


def test_habits_are_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "habits.msgpack"
    stands = habits.learned(file)
    assert stands.hour is None
    vms = ["vm0"]

    def hour(number: int, *ports: int) -> list[Talk]:
        return [Talk("vm0", "vm1", "tcp", port, 10.0, number * 3_600.0) for port in ports]

    for number in range(30):
        assert habits.learn(file, stands.token, number, hour(number, 443), vms) == ()
    habits.save(file, stands.token)
    (new,) = habits.look(file, stands.token, hour(30, 443, 22))
    assert new.about == ("vm1 tcp/22",)
    habits._OPENED.clear()
    again = habits.learned(file)
    assert again.hour == 29
    assert habits.look(file, again.token, hour(30, 443, 22)) == (new,)
    with pytest.raises(StaleError):
        habits.look(file, stands.token, [])
    habits.learn(file, again.token, 30, [], [])
    assert habits.look(file, again.token, hour(31, 1)) == ()  # a VM that is gone is forgotten
