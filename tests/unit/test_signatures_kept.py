"""Who talked to whom, as it is kept: on both engines, by REST, and by command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import networkx as nx
import pytest
from northbound_server import Running, define, other_store, running
from typer.testing import CliRunner

from controller.cli import app
from controller.client import Problem
from controller.model.nouns import Service
from controller.model.signatures import (
    OTHERS,
    Counter,
    Counts,
    Reading,
    Refused,
    Signature,
    Talked,
)
from controller.observe.anomalies.signatures import judge
from controller.observe.signatures.book import observed_of
from controller.observe.signatures.reading import refused, talked, talks
from controller.settings import SignatureSettings
from controller.store import Store, signatures
from controller.store.signatures import Asked, find

TALK = Talked("vm0", "vm1", "tcp", 80, 100, "red", False, 1, 5, 500, 4, 4_000, 360_001.0, 360_001.0)
TALKS = (
    TALK,
    replace(TALK, hour=102, first_at=367_201.0, last_at=367_300.0, bytes_out=1 << 40),
    replace(TALK, peer="192.0.2.0/24", protocol="udp", port=53, external=True),
    replace(TALK, vm="vm2", tenant="blue", hour=101),
    replace(TALK, vm="vm2", tenant="blue", peer=OTHERS, protocol="any", port=0, external=True),
)
DENIAL = Refused("vm0", "vm2", "tcp", 22, 100, "red", False, 3, 180, 360_001.0, 360_009.0)
READING = Reading(
    "0000000000000001",
    Counter("02:00:00:00:00:01", ip_network("10.0.0.2/32"), 6, 80),
    "vm0",
    True,
    Counts(1, 60, 2, 200, 3, 300),
    360_001.0,
)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = Store.open(url)
    yield opened
    opened.close()


def keep(store: Store) -> None:
    with store.transaction(durable=False) as tx:
        signatures.add(tx, [*TALKS, DENIAL])


def asked(store: Store, limit: int = 100, **what: object) -> list[Talked]:
    with store.reading() as connection:
        return find(connection, Talked, Asked(**what), limit)  # type: ignore[arg-type]


def test_hours_are_added_to_and_added_up(store: Store) -> None:
    keep(store)
    later = replace(TALK, first_at=360_500.0, last_at=360_500.0)
    with store.transaction(durable=False) as tx:
        signatures.add(tx, [later])
    (web,) = asked(store, vm="vm0", port=80)
    assert (web.connections, web.packets_out, web.bytes_out) == (3, 15, 1_000 + (1 << 40))
    assert (web.hour, web.first_at, web.last_at) == (100, 360_001.0, 367_300.0)
    first, second = asked(store, vm="vm0", port=80, hourly=True)
    assert (first.connections, first.last_at) == (2, 360_500.0)
    assert second == TALKS[1]
    assert asked(store, vm="vm0", port=80, since=101) == [TALKS[1]]
    assert asked(store, until=100) == []


def test_what_is_asked_for_is_found_page_by_page(store: Store) -> None:
    keep(store)
    assert [t.peer for t in asked(store, vm="vm2")] == [OTHERS, "vm1"]
    assert [t.vm for t in asked(store, peer="vm1")] == ["vm0", "vm2"]
    assert [t.external for t in asked(store, protocol="udp")] == [True]
    assert len(asked(store, tenant="red")) == 2
    for hourly in (False, True):
        everything = asked(store, hourly=hourly)
        pages = []
        after = None
        while page := asked(store, 2, hourly=hourly, after=after):
            pages += page
            last = page[-1]
            after = (last.vm, last.peer, last.protocol, last.port, *([last.hour] * hourly))
        assert pages == everything
    with store.transaction() as tx:
        assert signatures.forget(tx, 101) == 4
    assert {t.hour for t in asked(store, hourly=True)} == {101, 102}


def test_counters_are_remembered(store: Store) -> None:
    other = replace(READING, counter=READING.counter._replace(peer=None, protocol=0, port=0))
    with store.transaction(durable=False) as tx:
        signatures.remember(tx, [READING, other], [])
        signatures.remember(tx, [replace(READING, counts=Counts(9))], [])
    with store.reading() as connection:
        known = signatures.readings(connection)
    assert set(known) == {other, replace(READING, counts=Counts(9))}
    observed = observed_of(known, SignatureSettings())
    assert observed.signatures == {"vm0": {Signature("vm0", *READING.counter)}}  # type: ignore[arg-type]
    with store.transaction(durable=False) as tx:
        signatures.remember(tx, [], [(r.datapath, r.counter) for r in known])
    with store.reading() as connection:
        assert signatures.readings(connection) == []


def test_the_judge_of_signatures_takes_an_hour(store: Store) -> None:
    keep(store)
    hour = talks(store, 100)
    assert {(t.source, t.destination, t.external) for t in hour} == {
        ("vm0", "vm1", False),
        ("vm0", "192.0.2.0/24", True),
        ("vm2", OTHERS, True),
    }
    habits, _ = judge({}, hour)
    assert set(habits) == {"vm0", "vm2"}
    assert talked(store, 100, 103, "vm2")[-1].hour == 101
    assert refused(store, 100, 101) == [DENIAL]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as here:
        define(here, vms=3)
        with other_store(here) as store:
            keep(store)
            with store.transaction() as tx:
                tx.put(
                    Service(
                        vm="vm1",
                        protocol="tcp",
                        port=80,
                        application="HTTP",
                        category="web server",
                        how="confirmed",
                        category_how="confirmed",
                        confidence=1.0,
                        flows=1,
                        packets=4,
                        concluded_at=1.0,
                        due=2.0,
                    )
                )
        yield here


def test_signatures_and_denials_by_rest(served: Running) -> None:
    with served.client() as client:
        web, dns, *rest = client.signatures()
        assert (dns.peer, web.peer) == ("vm1", "192.0.2.0/24")
        assert [s.vm for s in rest] == ["vm2", "vm2"]
        assert (dns.application, web.application) == ("HTTP", None)
        assert (dns.connections, dns.hour) == (2, 360_000.0)
        (late,) = client.signatures(vm="vm0", since=361_000.0 + 3_600)
        assert late.bytes_out == 1 << 40
        assert len(list(client.signatures(hourly="true"))) == 5
        assert [d.packets for d in client.denials(vm="vm0")] == [3]
        for after in (
            "nonsense",
            '["vm0",1]',
            '["a","b","c",99999999999]',
            '["a\\u0000","b","c",1]',
        ):
            with pytest.raises(Problem) as told:
                client._call("GET", "/v1/signatures", query={"after": after})
            assert told.value.status == 422


def test_signatures_by_command(
    served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)

    def run(*words: str) -> str:
        return CliRunner().invoke(app, words, catch_exceptions=False).stdout

    shown = run("signatures", "--vm", "vm0")
    assert "HTTP" in shown
    assert "1.1 TB" in shown
    assert [s["peer"] for s in json.loads(run("signatures", "--port", "53", "--json"))] == [
        "192.0.2.0/24"
    ]
    assert "vm2" in run("denials")
    assert run("signatures", "--hours", "1").count("\n") == 1
    drawn = tmp_path / "who.graphml"
    assert "wrote 4 signatures" in run("signatures", "--graph", str(drawn))
    graph = nx.read_graphml(drawn, force_multigraph=True)
    assert graph.nodes["vm1"]["kind"] == "vm"
    assert graph.nodes["red 192.0.2.0/24"]["kind"] == "prefix"
    edge = graph.edges["vm0", "vm1", "tcp/80"]
    assert (edge["connections"], edge["application"]) == (2, "HTTP")
    picture = tmp_path / "who.svg"
    run("signatures", "--graph", str(picture))
    assert "<svg" in picture.read_text()
    refused_ = CliRunner().invoke(app, ["signatures", "--graph", str(tmp_path / "who.doc")])
    assert refused_.exit_code != 0


@pytest.mark.parametrize("command", ["signatures", "denials"])
def test_a_vm_that_is_not_there_is_no_empty_list(
    served: Running, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)
    nothing = CliRunner().invoke(app, [command, "--vm", "vm0", "--port", "9"])
    assert (nothing.exit_code, nothing.output.count("\n")) == (0, 1)
    assert "no vm ghost" in str(CliRunner().invoke(app, [command, "--vm", "ghost"]).exception)
