"""A real brain judges samples, tells a webhook, and is restarted in between: what is found is
told, once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from northbound_server import Running, define, other_store, running
from webhook_receiver import Receiver, receiving

from controller.api import AlertInfo, Investigation, SampleBatch
from controller.loops.anomalies import DIRECTORY, MARK
from controller.observe.anomalies import book

HOUR = 3_600.0
STEP = 300.0
RULES = """
own_pattern:
  false_per_week: 1000
  metrics:
    cpu: {least: 0.01}
    memory: {least: 1000000}
    net_rx: {least: 100}
limits:
  - {metric: memory, above: 3.0e+9, for_s: 900, severity: critical, vms: [vm2]}
"""
ROOM = {"min_free_bytes": 0}


def settings(directory: Path, receiver: Receiver, **more: str) -> Mapping[str, str]:
    rules = directory / "alerts.yaml"
    rules.write_text(RULES)
    return {
        "PLEACH_ALERTS__RULES": str(rules),
        "PLEACH_ALERTS__WEBHOOKS": receiver.url,
        "PLEACH_ALERTS__EVERY_S": "0.2",
        "PLEACH_ALERTS__LONGEST_PAUSE_S": "1",
        **more,
    }


def tell(served: Running, vm: str, times: np.ndarray, **metrics: np.ndarray) -> None:
    batch = SampleBatch(
        sender=f"to {vm}",
        sequence=1,
        subjects=(vm,) * len(times),
        times=tuple(times.tolist()),
        metrics={
            name: tuple(None if np.isnan(value) else float(value) for value in values)
            for name, values in metrics.items()
        },
    )
    with served.client() as client:
        assert client.send_samples(batch).refused == ()


def fill(served: Running, now: float) -> None:
    """A day of four VMs: one that spikes in the last hour, one that is constant and has gaps, one
    that is beyond a limit, one whose counter begins anew."""
    times = now - 23.5 * HOUR + STEP * np.arange(int(23.5 * HOUR / STEP))
    chance = np.random.default_rng(1)
    calm = 0.3 + 0.01 * chance.normal(size=times.size)
    spiking = calm.copy()
    spiking[-6:-3] = 0.95
    tell(served, "vm0", times, cpu=spiking, memory=np.full(times.size, 2e9))
    gaps = np.full(times.size, 0.5)
    gaps[100:160] = np.nan
    tell(served, "vm1", times, cpu=gaps, memory=np.full(times.size, 0.0))
    large = np.full(times.size, 2e9)
    large[-5:] = 4e9
    tell(served, "vm2", times, cpu=calm, memory=large)
    counter = 3e5 * np.arange(times.size) + 1e9
    counter[-4:] -= counter[-4]
    tell(served, "vm3", times, net_rx_total=counter)


def alerts(served: Running, count: int) -> list[AlertInfo]:
    deadline = time.monotonic() + 180
    with served.client() as client:
        while len(found := client.alerts().items) < count:
            assert time.monotonic() < deadline, client.loops()
            time.sleep(0.05)
    return list(found)


def evidence(served: Running, number: int) -> Investigation:
    deadline = time.monotonic() + 180
    with served.client() as client:
        while (found := client.investigation(number)).gathered_at is None:
            assert time.monotonic() < deadline, client.loops()
            time.sleep(0.05)
    return found


def judged(served: Running, turns: int) -> None:
    """Return once the loop has taken so many turns, none of which failed at last."""
    deadline = time.monotonic() + 180
    with served.client() as client:
        while True:
            loop = {loop.name: loop for loop in client.loops()}["anomalies"]
            if loop.turns >= turns and not loop.trouble:
                return
            assert time.monotonic() < deadline, loop
            time.sleep(0.05)


def test_what_is_found_is_told_once_over_restarts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with receiving(*[503] * 100) as receiver:
        # It learns from all but the last hour.
        learning = settings(
            tmp_path, receiver, PLEACH_ALERTS__SETTLE_S="3600", PLEACH_ALERTS__CHECKPOINT_S="1"
        )
        now = time.time() // STEP * STEP
        with running(state, history=ROOM, environ=learning) as served:
            define(served, vms=4)
            fill(served, now)
            with served.client() as client:
                client.place("vm0", "h1", ["p0"])
            with other_store(served) as store, store.transaction() as transaction:
                transaction.audit(now - 2_500, "ann", "host.drain", "host h2", {})
        with running(state, history=ROOM, environ=learning) as served:
            judged(served, 2)
            with served.client() as client:
                assert client.alerts().items == ()
            with other_store(served) as store, store.transaction() as transaction:
                book.set_mark(transaction, MARK, now - HOUR)  # as if it had been looking
        assert list((state / DIRECTORY).glob("bank-*.npz"))

        looking = settings(tmp_path, receiver, PLEACH_ALERTS__SETTLE_S="0")
        with running(state, history=ROOM, environ=looking) as served:
            found = alerts(served, 3)
            receiver.wait_asked(1)
            spike = next(one for one in found if one.metric == "cpu" and one.vm == "vm0")
            looked_into = evidence(served, spike.id)
        kinds = {(one.vm, one.kind, one.metric, one.severity) for one in found}
        assert ("vm0", "own_pattern", "cpu", "critical") in kinds
        assert ("vm2", "limit", "memory", "critical") in kinds
        assert {one.vm for one in found} == {"vm0", "vm2"}
        assert all(now - HOUR < one.first_at <= now for one in found)
        assert receiver.taken == []
        assert looked_into.words[0].startswith("cpu came to 0.95 share, where 0.29")
        assert "runs on h1" in looked_into.words
        assert "host.drain of host h2 by ann" in str(looked_into.words)
        assert max(filter(None, looked_into.evidence["metrics"]["values"]["cpu"])) == 0.95
        assert not looked_into.complete  # what comes after it belongs to it too

        # The checkpoint is older than what was found: that is found again, and not told again.
        receiver.answers.clear()
        with running(state, history=ROOM, environ=looking) as served:
            judged(served, 2)
            receiver.wait(len(found))
            assert alerts(served, len(found)) == found
        assert len({event["id"] for event in receiver.taken}) == len(receiver.taken) == len(found)
        assert {event["subject"] for event in receiver.taken} == {"vm0", "vm2"}
