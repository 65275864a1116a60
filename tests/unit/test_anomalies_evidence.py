"""What an investigation tells, from what was gathered, and how much of it is kept."""

from __future__ import annotations

import json

import numpy as np

from controller.history.series import Series
from controller.observe.anomalies import alerts, evidence
from controller.observe.anomalies.alerts import Kind, Signal
from controller.observe.anomalies.evidence import MOST, Bundle

ALERT = alerts.take({}, Signal(Kind.OWN_PATTERN, "web-1", "cpu", 90_000.0, 2.0, "cpu rose"), "7")
NAN = float("nan")


def grid(first: float, *values: float) -> Series:
    return Series(first + 300.0 * np.arange(len(values)), np.array(values))


def test_metrics_are_told_by_how_far_they_went() -> None:
    around = {
        "cpu": grid(89_100, 0.2, 0.9, 0.2, NAN),
        "memory": grid(89_100, 1e9, 1e9, 1e9, 1e9),
        "net_rx": grid(89_100, 1e6, 9e9, 1e6, 1e6),
        "connections": grid(89_100, NAN, NAN, NAN, NAN),
        "disk_read": grid(89_100, 5.0, 5.0, 5.0, 5.0),
    }
    usual = {
        "cpu": grid(0, 0.2, 0.25, 0.15),
        "memory": grid(0, 1e9, 1e9, 1e9),
        "net_rx": grid(0, 1e6, 1.1e6, 0.9e6),
        "connections": grid(0, NAN),
        "disk_read": grid(0, NAN),
    }
    metrics = evidence.series_of(around, usual)
    assert metrics["values"]["cpu"] == [0.2, 0.9, 0.2, None]
    assert set(metrics["values"]) == {"cpu", "memory", "net_rx", "disk_read"}
    assert metrics["usual"]["disk_read"] is None
    told = evidence.words(ALERT, Bundle(metrics=metrics))
    assert told[0].startswith("net_rx came to 9e+09 bytes/s")
    assert told[1].startswith("cpu came to 0.9 share")
    assert "memory" not in str(told)
    assert evidence.series_of({"cpu": grid(0, NAN)}, {}) == {}


def test_what_was_gathered_is_told_and_bounded() -> None:
    move = {"id": "m1", "source": "h1", "target": "h2", "started_at": 89_880.0}
    other = {"id": 3, "vm": "web-2", "kind": "scan", "why": "tried much", "near": "of its role"}
    change = {
        "action": "host.delete",
        "subject": "host h3",
        "actor": "ann",
        "at": 89_000.0,
    }
    talk = {"peer": "db-1", "protocol": "tcp", "port": 5432, "bytes_out": 5e6, "bytes_in": 1e3}
    denial = {"vm": "web-1", "peer": "db-2", "protocol": "tcp", "port": 22, "packets": 9}
    service = {
        "application": "TLS",
        "protocol": "tcp",
        "port": 443,
        "how": "confirmed",
        "risks": ["old"],
    }
    bundle = Bundle(
        placement={"host": "h2"},
        migrations=[move],
        services=[service] * 70,
        talks=[{**talk, "new": True}, talk],
        denials=[denial],
        role={"id": "role-4", "count": 12},
        alerts=[other],
        changes=[change],
        packets={"count": 64},
        missing=("metrics are missing: the disk is gone",),
    )
    held = evidence.as_json(ALERT, bundle, 1e5, complete=True)
    assert held["words"] == (
        "runs on h2",
        "migration m1 from h1 to h2, 2 min before the first signal",
        "plays role-4, as 11 others do",
        "of web-2 (of its role): alert 3, scan: tried much",
        "changed within the hour before: host.delete of host h3 by ann at 00:43:20 UTC",
        "denied: 9 packets from web-1 to db-2 tcp/22",
        "talked with: db-1 tcp/5432 (5e+06 bytes out, 1000 in, for the first time); "
        "db-1 tcp/5432 (5e+06 bytes out, 1000 in)",
        "answers: " + "; ".join(["TLS at tcp/443 (confirmed, risky: old)"] * 5) + "; and 65 more",
        "64 of its packets are kept (pleach alerts packets)",
        "metrics are missing: the disk is gone",
    )
    assert len(held["services"]) == MOST
    assert (held["gathered_at"], held["complete"]) == (1e5, True)
    json.dumps(held)
    silent = Bundle(packets={"count": 0})
    assert "it sent and received nothing" in str(evidence.words(ALERT, silent))
