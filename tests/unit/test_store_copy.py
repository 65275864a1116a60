"""A store copied from one engine to the other and back is the same, and nothing is lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Databases
from sqlalchemy import Connection, create_engine, insert, select, update
from typer.testing import CliRunner

from controller.cli import app
from controller.model.nouns import (
    AccessRule,
    Bandwidth,
    CalendarEvent,
    Capture,
    Datapath,
    Host,
    Link,
    LinkSpeed,
    Mark,
    Marking,
    Migration,
    Nic,
    Phase,
    Placement,
    Port,
    RateLimit,
    Reservation,
    Route,
    RouteClass,
    Service,
    Subnet,
    Tenant,
    Tunnel,
    Vm,
    Way,
)
from controller.model.signatures import Counter, Counts, Reading, Refused, Talked
from controller.store import (
    EventReceipt,
    Progress,
    Store,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    Token,
    Transaction,
    copy_store,
    copying,
    samples,
    schema,
    signatures,
)
from controller.store.decisions import Decision, keep
from controller.store.traffic import Row, write_rows
from controller.store.usage import Metered, Usage, write_usage
from tests.postgres import PostgresServer


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pleach.db"


@pytest.fixture
def server_url(postgres: PostgresServer, databases: Databases) -> Iterator[str]:
    name = databases.take()
    yield postgres.url(name)
    databases.give_back(name)


def fill(url: str) -> None:
    """Something in every table, with numbers and revisions that were used and freed."""
    store = Store.open(url, feed_keep=10)
    with store.transaction() as tx:
        tx.put(Tenant(id="gone"))
        tx.put(Tenant(id="t", name="Ünïcode \x00 'quoted'"))
        tx.delete(Tenant, "gone")
        tx.put(Subnet.model_validate({"id": "s", "tenant": "t", "cidr": "10.0.0.0/16"}))
        tx.put(Host(id="h", datapath=f"{1:016x}"))
        dpid = tx.put(Datapath(dpid=f"{1:016x}", connected=True)).dpid
        tx.put(Port(datapath=dpid, number=2**32 - 257, name="p"))
        tx.put(Link(datapath=dpid, port=1, to_datapath=dpid, to_port=2))
        tx.put(AccessRule(id="r", tenant="t"))
        tx.put(LinkSpeed(id=f"{dpid}:1", speed=10**9))
        sale = {"cause": "campaign", "starts": "2030-01-31T08:00:00.5Z", "lasts": "PT1H"}
        tx.put(CalendarEvent.model_validate({"id": "sale", "factor": 2.5, **sale}))
        tx.put(Tunnel(id="wan", link=f"{dpid}:1", capacity=10**9))
        tx.put(Reservation(id="move", tunnel="wan", rate=10**8, expires_at=5.5))
        other = f"{2:016x}"
        way = Way(nodes=(dpid, other), tree=48, buckets=(0,))
        tx.put(Route(ingress=dpid, egress=other, ways=(way,)))
        write_rows(tx, [Row(dpid, 60.0, {other: {RouteClass.BULK: 0.5}})], 60.0)
        keep(tx, Decision(60.0, "schedule", 0.1, 0.2, None, 2, 1, 1, 0.5, (), ()), {})
        for n in range(30):
            nic = Nic(mac=f"02:00:00:00:00:{n:02x}", subnet="s")
            tx.put(Vm(id=f"v{n}", tenant="t", nics=(nic,)))
        tx.put(Placement(vm="v0", host="h", ports=("p",)))
        tx.put(RateLimit(vm="v0", out_kbit=1_000))
        tx.put(Bandwidth(vm="v0", out_kbit=500, out_reason="the limit"))
        tx.put(Capture(vm="v0", alert=1, packets=64, until=2.5))
        tx.put(Marking(vm="v0", default=Mark(name="bulk", dscp=10)))
        tx.put(
            Migration(
                id="m",
                vm="v1",
                source="h",
                source_ports=("q",),
                target="h",
                ports=("q",),
                phase=Phase.STARTED,
                started_at=1.0,
            )
        )
        tx.put(
            Service(
                vm="v0",
                protocol="tcp",
                port=80,
                application="HTTP",
                how="confirmed",
                category="web server",
                category_how="confirmed",
                confidence=1.0,
                concluded_at=1.5,
                flows=1,
                packets=4,
                due=2.5,
            )
        )
        tx.remember(EventReceipt("/s", "1", "f" * 64, "applied", 3, 1_700_000_000.123_456_7))
        tx.note_event("vm/v0", 0.1 + 0.2)
        tx.put_token(Token("ann", "operator", None, "d" * 64, 1.5, None))
        for n in range(3):
            tx.audit(float(n), "ann", "put", f"vm/{n}", {"why": ["ü", None]})
        fill_rooms(tx)
    store.compact()
    store.set_progress([Progress(f"{1:016x}", 5, 1.25, True, 0, "no route")])
    write_usage(store, [Usage(f"{1:016x}", 1.25, (Metered("v0", True, 1e6, 0.5),))])
    store.close()


def fill_rooms(tx: Transaction) -> None:
    """What is kept beside the nouns."""
    number = tx.next_number("alert")
    at = {"first_at": 1.5, "last_at": 2.5, "changed_at": 2.5}
    names = {"kind": "scan", "vm": "v0", "metric": "", "state": "open", "severity": "critical"}
    told = {"count": 1, "score": 1.25, "why": "ü", "by": ""}
    tx.write(insert(schema.alert).values(id=number, version=7, standing="k", **names, **at, **told))
    tx.write(
        insert(schema.alert_delivery).values(
            target="t", version=7, alert=number, body="{}", made_at=1.5, attempts=0, due_at=2.5
        )
    )
    tx.write(insert(schema.investigation).values(alert=number, due_at=None, body="{}"))
    hour = {"vm": "v0", "peer": "v1", "protocol": "tcp", "port": 80, "hour": 500_000}
    when = {"tenant": "t", "external": False, "first_at": 1.5, "last_at": 2.5}
    counts = dict.fromkeys(("connections", "packets_out", "bytes_out"), 2)
    sent = Talked(**hour, **when, **counts, packets_in=1, bytes_in=2**40)
    signatures.add(tx, [sent, Refused(**hour, **when, packets=1, bytes=60)])
    counter = Counter("02:00:00:00:00:00", None, 6, 80)
    reading = Reading(f"{1:016x}", counter, "v0", True, Counts(begun=2), 2.5)
    signatures.remember(tx, [reading], [])
    samples.put(tx, number, 1.5, [(1.25, bytes(60))])
    tx.write(insert(schema.mark).values(name="anomalies", at=3.5))
    tx.write(insert(schema.behaviour).values(vm="v0", week=2_900, at=3.5, body="{}"))
    tx.write(insert(schema.role).values(key="1", body="{}"))


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in schema.metadata.sorted_tables
        }
    engine.dispose()
    rows["counter"] = [row for row in rows["counter"] if not str(row[0]).startswith("writer.")]
    return {name: sorted(found, key=repr) for name, found in rows.items()}


def test_there_and_back_all_is_the_same(file_url: str, server_url: str, tmp_path: Path) -> None:
    fill(file_url)
    back = f"sqlite:///{tmp_path}/back.db"
    there = copy_store(file_url, server_url)
    again = copy_store(server_url, back)
    assert there == again
    assert there.rows["vm"] == 30
    assert contents(file_url) == contents(server_url) == contents(back)
    assert all(contents(file_url).values())
    for url in (server_url, back):
        store = Store.open(url)
        store.check()
        assert store.revision == there.revision
        with store.transaction() as tx:  # numbers, revisions and ids go on
            assert tx.put(Tenant(id="new")).number == 3
            assert tx.revision == there.revision + 1
            tx.audit(9.0, "ann", "put", "tenant/new", {})
        assert [entry.id for entry in store.audit_log(2)] == [4, 3]
        store.close()


def test_a_copy_loses_nothing_unless_told_to(file_url: str, server_url: str) -> None:
    fill(file_url)
    store = Store.open(server_url)
    with store.transaction() as tx:
        tx.put_token(Token("bob", "viewer", None, "e" * 64, 1.0))
    with pytest.raises(StoreError, match=r"not empty \(table token\)") as told:
        copy_store(file_url, server_url)
    assert told.value.place == server_url
    with pytest.raises(StoreError, match="not empty") as told:
        copy_store(server_url, file_url)
    assert told.value.place == file_url.removeprefix("sqlite:///")
    assert store.token("e" * 64) is not None
    assert store.snapshot().tenants == {}
    bell = store.bell("consumer")
    copy_store(file_url, server_url, replace=True)
    assert bell.wait(30)
    assert store.token("e" * 64) is None
    assert list(store.snapshot().tenants) == ["t"]
    store.close()


def test_a_source_that_is_not_there_is_not_made(
    file_url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="there is no such file"):
        copy_store(f"sqlite:///{tmp_path}/absent.db", file_url)
    with pytest.raises(StoreUnavailable, match="holds no store of this version"):
        copy_store(postgres.url("postgres"), file_url)
    assert list(tmp_path.glob("*.db*")) == []


def test_a_copy_that_differs_is_not_kept(
    file_url: str, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(file_url)
    before = contents(server_url)
    compare = copying._compare

    def compared(source: Connection, target: Connection, table: object) -> None:
        if table is schema.token:
            target.execute(update(schema.token).values(role="viewer"))
        compare(source, target, schema.token if table is schema.token else schema.counter)

    monkeypatch.setattr(copying, "_compare", compared)
    with pytest.raises(StoreCorrupt, match=r"table token differs at \{.name.: .ann.\}"):
        copy_store(file_url, server_url)
    assert contents(server_url) == before

    def added(source: Connection, target: Connection, table: object) -> None:
        if table is schema.tenant:
            target.execute(insert(schema.tenant).values(key="u", number=9, body="{}"))
            compare(source, target, schema.tenant)

    monkeypatch.setattr(copying, "_compare", added)
    with pytest.raises(StoreCorrupt, match=r"table tenant differs at \{.key.: .u.\}"):
        copy_store(file_url, server_url)
    assert contents(server_url) == before


def test_rows_that_postgresql_cannot_hold_are_told(file_url: str, server_url: str) -> None:
    Store.open(file_url).close()
    with sqlite3.connect(file_url.removeprefix("sqlite:///")) as database:
        database.execute("INSERT INTO event VALUES ('/s', ?, 'f', 'applied', 1, 1.0)", ["a\0b"])
    database.close()
    with pytest.raises(StoreError, match="NUL"):
        copy_store(file_url, server_url)


def test_the_commands(file_url: str, server_url: str, tmp_path: Path) -> None:
    fill(file_url)
    run = CliRunner().invoke
    done = run(app, ["store", "copy", file_url, server_url.replace("pleach@", "pleach:s3cret@")])
    assert done.exit_code == 0, done.output
    assert "the same as the source at revision" in done.output
    assert "s3cret" not in done.output
    environment = {"PLEACH_STORE__URL": server_url.replace("pleach@", "pleach:s3cret@")}
    checked = run(app, ["store", "check"], env=environment)
    assert "sound, at revision" in checked.output
    shown = run(app, ["settings", "show"], env=environment)
    assert "postgresql://pleach:***@" in shown.output
    file = tmp_path / "backup.db"
    assert run(app, ["store", "backup", str(file)], env=environment).exit_code == 0
    assert contents(f"sqlite:///{file}") == contents(file_url)
    for output in (checked.output, shown.output):
        assert "s3cret" not in output
    as_json = run(app, ["store", "copy", f"sqlite:///{file}", server_url, "--replace", "--json"])
    assert '"revision"' in as_json.output
