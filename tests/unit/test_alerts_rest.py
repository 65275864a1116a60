"""Alerts by REST and by command; webhooks that fail, restarts, and an Alertmanager."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from northbound_server import Running, define, other_store, running
from scapy.utils import rdpcap
from typer.testing import CliRunner
from webhook_receiver import Receiver, receiving

from controller.api import LoopInfo, NewToken
from controller.cli import app
from controller.client import Client, Problem
from controller.observe.anomalies import book
from controller.observe.anomalies.alerts import Alert, Kind, Signal
from controller.observe.anomalies.book import Telling
from controller.observe.anomalies.rules import Rules
from controller.store import samples

RULES = Rules()


def signal(vm: str, at: float, score: float = 1.5, kind: Kind = Kind.SCAN, **more: Any) -> Signal:
    return Signal(kind, vm, "", at, score, f"{vm} does {kind}", **more)


def found(served: Running, *signals: Signal, telling: Telling | None = None) -> list[Alert]:
    """As a loop does that found them."""
    telling = telling or book.telling(served.settings.alerts)
    with other_store(served) as store, store.transaction() as transaction:
        return book.enter(transaction, signals, RULES, telling, time.time())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as served:
        define(served, vms=6)
        yield served


@pytest.fixture
def now() -> float:
    return time.time()


def test_an_alert_is_listed_acknowledged_and_closed(shared: Running, now: float) -> None:
    (alert,) = found(shared, signal("vm0", now), signal("vm0", now + 1, 4.0))
    number = int(alert.id)
    with shared.client() as client:
        status = client.alert(number)
        assert (status.alert.count, status.alert.severity) == (2, "critical")
        assert status.alert.state == "open"
        assert status.alert.by is None
        assert client.acknowledge_alert(number, "mine").by == "operator"
        again = client.acknowledge_alert(number)
        assert again == client.alert(number).alert
        closed = client.close_alert(number)
        assert closed.state == "closed"
        assert closed.version > again.version
        with pytest.raises(Problem, match="it can become nothing"):
            client.acknowledge_alert(number)
        with pytest.raises(Problem, match="no alert 999999"):
            client.close_alert(999_999)
    with other_store(shared) as store:
        audits = [entry for entry in store.audit_log() if entry.subject == f"alert {number}"]
    assert [entry.action for entry in audits][::-1][:2] == ["alert.acknowledged"] * 2
    assert audits[-1].detail == {"vm": "vm0", "note": "mine"}
    assert {entry.actor for entry in audits} == {"operator"}
    (second,) = found(shared, signal("vm0", now + 2))
    assert second.id != alert.id


def test_alerts_come_in_pages_and_by_what_is_asked(shared: Running, now: float) -> None:
    vms = ("vm1", "vm2", "vm3")
    found(shared, *(signal(vm, now, kind=kind) for vm in vms for kind in (Kind.SCAN, Kind.ROLE)))
    with shared.client() as client:
        every = [alert.id for alert in client.alerts(limit=1_000).items]
        assert every == sorted(every, reverse=True)
        paged: list[int] = []
        before = None
        while True:
            page = client.alerts(limit=2, before=before)
            paged += [alert.id for alert in page.items]
            if page.next is None:
                break
            before = page.next
        assert paged == every
        some = client.alerts({"vm": "vm2", "kind": "role", "state": "open"}).items
        assert [(alert.vm, alert.kind) for alert in some] == [("vm2", "role")]
        with pytest.raises(Problem):
            client.alerts({"state": "asleep"})


def test_who_waits_is_told_of_a_change(shared: Running, now: float) -> None:
    with shared.client() as client:
        version = client.alerts(limit=1).version
        assert client.alerts(since=version, timeout_s=0).items == ()
        later = threading.Timer(0.3, found, (shared, signal("vm4", now)))
        later.start()
        told = client.alerts(since=version, timeout_s=10)
        later.join()
        assert [alert.vm for alert in told.items] == ["vm4"]
        assert told.version > version
        assert client.alerts(since=told.version, timeout_s=0).items == ()


def test_viewers_look_and_operators_act(shared: Running, now: float) -> None:
    (alert,) = found(shared, signal("vm5", now))
    with shared.client() as client:
        viewer = client.create_token(NewToken(name="looks", role="viewer")).secret
    with shared.client(viewer) as client:
        assert client.alert(int(alert.id)).alert.vm == "vm5"
        with pytest.raises(Problem) as refused:
            client.close_alert(int(alert.id))
        assert refused.value.type == "forbidden"
        with pytest.raises(Problem) as refused:
            client.loops()
        assert refused.value.type == "forbidden"


def test_what_stands_is_told_as_an_alertmanager_takes_it(shared: Running, now: float) -> None:
    (alert,) = found(shared, signal("vm5", now, kind=Kind.EXFILTRATION))
    told = shared.call("GET", "/v1/alertmanager/alerts").body
    mine = next(one for one in told if one["labels"]["alert"] == alert.id)
    assert mine["labels"]["alertname"] == "pleach_exfiltration"
    assert mine["generatorURL"].endswith(f"/v1/alerts/{alert.id}")


def test_the_command_tells_and_moves(
    shared: Running, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alert,) = found(shared, signal("vm3", now, kind=Kind.NEW_PEER, score=2.0))
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        return result.stdout

    assert "vm3 does new_peer" in run("alerts")
    listed = json.loads(run("alerts", "list", "--vm", "vm3", "--kind", "new_peer", "--json"))
    assert [str(one["id"]) for one in listed] == [alert.id]
    shown = run("alerts", "show", alert.id)
    assert "new peer" in shown
    assert "2 times the bound" in shown
    assert f"alert {alert.id} is acknowledged" in run("alerts", "ack", alert.id)
    assert f"alert {alert.id} is closed" in run("alerts", "close", alert.id, "--note", "known")
    assert f"\n{alert.id} " not in run("alerts", "list")
    assert alert.id in run("alerts", "list", "--all")
    assert json.loads(run("alerts", "show", alert.id, "--json"))["alert"]["state"] == "closed"
    assert "alerts" in run("loops")


def test_packets_are_told_as_a_file(
    shared: Running, now: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alert,) = found(shared, signal("vm2", now, kind=Kind.EXFILTRATION))
    number = int(alert.id)
    with shared.client() as client, pytest.raises(Problem, match="no packets are kept"):
        client.packets(number)
    frames = [(1.25, bytes(60)), (2.5, bytes(1_500))]
    with other_store(shared) as store, store.transaction() as transaction:
        samples.put(transaction, number, now, frames)
        samples.put(transaction, 999_999, now, frames)  # forgotten meanwhile
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)
    file = tmp_path / "packets.pcap"
    words = ["alerts", "packets", alert.id, str(file)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    packets = rdpcap(str(file))
    assert [(len(packet), float(packet.time)) for packet in packets] == [(60, 1.25), (256, 2.5)]
    assert [packet.wirelen for packet in packets] == [60, 1_500]
    assert file.read_bytes() == samples.pcap(frames)


def webhooks(receiver: Receiver, **more: str) -> dict[str, str]:
    return {
        "PLEACH_ALERTS__WEBHOOKS": f"{receiver.url}/hook",
        "PLEACH_ALERTS__LONGEST_PAUSE_S": "1",
        **more,
    }


def test_a_webhook_that_fails_at_first_is_told_in_order(tmp_path: Path, now: float) -> None:
    with (
        receiving(503, 404, 500) as receiver,
        running(tmp_path / "state", environ=webhooks(receiver)) as served,
    ):
        define(served)
        (alert,) = found(served, signal("vm0", now))
        found(served, signal("vm0", now + 1))  # nothing that anybody has to know
        found(served, signal("vm0", now + 2, 9.0))
        with served.client() as client:
            client.acknowledge_alert(int(alert.id))
            client.close_alert(int(alert.id))
        told = receiver.wait(4)
        kinds = [(event["type"], event["data"]["severity"]) for event in told]
        assert kinds == [
            ("io.pleach.alert.open", "warning"),
            ("io.pleach.alert.open", "critical"),
            ("io.pleach.alert.acknowledged", "critical"),
            ("io.pleach.alert.closed", "critical"),
        ]
        path, headers, event = receiver.asked[0]
        assert path == "/hook"
        assert headers["content-type"].startswith("application/cloudevents+json")
        assert (event["specversion"], event["subject"]) == ("1.0", "vm0")
        assert len({event["id"] for event in told}) == 4
        assert [event["id"] for _, _, event in receiver.asked[:4]] == [told[0]["id"]] * 4
        deadline = time.monotonic() + 30
        with served.client() as client:
            while client.alert(int(alert.id)).deliveries:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_what_was_found_is_told_after_a_restart(tmp_path: Path, now: float) -> None:
    with receiving(*[503] * 3) as receiver:
        environ = webhooks(receiver)
        with running(tmp_path / "state", environ=environ) as served:
            define(served)
            (alert,) = found(served, signal("vm0", now), signal("vm1", now))[:1]
            receiver.wait_asked(1)
            with served.client() as client:
                status = client.alert(int(alert.id))
                assert all(
                    one.target == environ["PLEACH_ALERTS__WEBHOOKS"] for one in status.deliveries
                )
        with running(tmp_path / "state", environ=environ) as served:
            told = receiver.wait(2)
            assert sorted(event["subject"] for event in told) == ["vm0", "vm1"]
            with served.client() as client:
                assert client.alert(int(alert.id)).alert.state == "open"
        assert len({event["id"] for _, _, event in receiver.asked}) == 2


def test_what_cannot_be_told_is_given_up_and_that_is_told(tmp_path: Path, now: float) -> None:
    with receiving(*[500] * 50) as receiver:
        environ = webhooks(receiver, PLEACH_ALERTS__GIVE_UP_S="0.5")
        with running(tmp_path / "state", environ=environ) as served:
            define(served)
            (alert,) = found(served, signal("vm0", now))
            (strange,) = found(
                served, signal("vm1", now), telling=Telling(targets=("nobody knows",))
            )
            deadline = time.monotonic() + 60
            with served.client() as client:
                while True:
                    (mine,) = client.alert(int(alert.id)).deliveries
                    (other,) = client.alert(int(strange.id)).deliveries
                    if mine.gave_up_at is not None and other.gave_up_at is not None:
                        break
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            assert mine.error == "it answered 500 Internal Server Error"
            assert mine.attempts >= 1
            assert other.target is None
            assert "names this address no more" in str(other.error)


def test_an_alertmanager_is_told_again_and_again(tmp_path: Path, now: float) -> None:
    with receiving(500) as receiver:
        environ = {
            "PLEACH_ALERTS__ALERTMANAGER": receiver.url,
            "PLEACH_ALERTS__RESEND_S": "1",
            "PLEACH_ALERTS__LINK": "https://pleach.example/",
        }
        with running(tmp_path / "state", environ=environ) as served:
            define(served)
            (alert,) = found(served, signal("vm0", now))
            first, second = receiver.wait(2)[:2]
            assert receiver.asked[0][0] == "/api/v2/alerts"
            assert first[0]["generatorURL"] == f"https://pleach.example/v1/alerts/{alert.id}"
            assert second[0]["endsAt"] > first[0]["endsAt"]
            with served.client() as client:
                client.close_alert(int(alert.id))
                loop = {loop.name: loop for loop in client.loops()}["alertmanager"]
            assert loop.failures >= 1
            count = len(receiver.taken)
            closed = receiver.wait(count + 2)[-1]
            assert closed[0]["annotations"]["state"] == "closed"


def test_about_a_vm_that_is_gone_nothing_stands(tmp_path: Path, now: float) -> None:
    environ = {"PLEACH_ALERTS__EVERY_S": "0.1"}
    with running(tmp_path / "state", environ=environ) as served:
        define(served)
        found(served, signal("vm0", now), signal("ghost", now), signal("vm1", now - 1e6))
        deadline = time.monotonic() + 60
        with served.client() as client:
            while len(client.alerts({"state": "closed"}).items) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            states = {alert.vm: alert.state for alert in client.alerts().items}
    assert states == {"vm0": "open", "ghost": "closed", "vm1": "closed"}


def test_how_long_a_loop_took_is_told_without_exponents(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLEACH_URL", shared.url)
    monkeypatch.setenv("PLEACH_TOKEN", shared.token)
    loop = LoopInfo(
        name="idle", every_s=60, turns=1, failures=0, last_at=1.0, last_s=0.0, trouble=""
    )
    took = {9.586e-06: "0.00000959", 0.0: "0", 0.01234: "0.0123", 12.345: "12.3", 3_456.7: "3460"}
    loops = tuple(loop.model_copy(update={"last_s": seconds}) for seconds in took)
    monkeypatch.setattr(Client, "loops", lambda _: loops)
    lines = CliRunner().invoke(app, ["loops"]).stdout.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == list(took.values())
