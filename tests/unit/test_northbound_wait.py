from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from northbound_server import (
    CORE,
    EDGES,
    Running,
    confirm,
    connect,
    define,
    other_store,
    running,
    wipe,
)

from controller.api import CLOUDEVENT, CLOUDEVENTS
from controller.client import Problem
from controller.model.nouns import Datapath, Host
from controller.store import Store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as found:
        yield found


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    define(shared)
    yield shared
    wipe(shared)


@pytest.fixture
def south(served: Running) -> Iterator[Store]:
    """The store as the southbound process sees it."""
    with other_store(served) as store:
        yield store


def refused(served: Running, **how: float | int) -> Problem:
    with served.client() as client, pytest.raises(Problem) as problem:
        client.vm("vm0", wait=True, timeout_s=0.05, **how)
    return problem.value


def test_a_vm_is_applied_once_every_switch_confirmed(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        told = client.place("vm0", "h1", ["p"])
        assert told.warnings == ()
        confirm(south, told.revision - 1)
        assert client.vm("vm0").status == "placed"
        late = refused(served, revision=told.revision)
        assert (late.type, late.status) == ("timeout", 504)
        assert f"{told.revision - 1} of {told.revision}" in late.detail
        confirm(south, told.revision)
        status = client.vm("vm0", wait=True, revision=told.revision)
        assert (status.status, status.applied, status.confirmed_at) == ("applied", True, 1e9)


def test_who_waits_is_woken_by_the_switches_progress(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client, ThreadPoolExecutor(1) as pool:
        told = client.place("vm0", "h1", ["p"])
        confirm(south, told.revision - 1)
        waiting = pool.submit(client.vm, "vm0", wait=True, revision=told.revision)
        confirm(south, told.revision)
        assert waiting.result(timeout=20).applied


def test_the_answer_to_an_event_waits_for_the_switches(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client, ThreadPoolExecutor(1) as pool:
        before = south.revision
        waiting = pool.submit(client.place, "vm0", "h1", ["p"], wait=True)
        while south.revision == before:
            assert not waiting.done()
        confirm(south, south.revision)
        told = waiting.result(timeout=20)
    assert (told.outcome, told.revision, told.confirmed_at) == ("applied", south.revision, 1e9)


def test_an_event_that_is_not_confirmed_in_time_stands(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        confirm(south, south.revision)
        client.topology()  # from here on the server has heard of switch and port
        event = client.event("vm.placed", {"vm": "vm0", "host": "h1", "ports": ["p"]})
        with pytest.raises(Problem) as late:
            client.send(event, wait=True, timeout_s=0.05)
        assert (late.value.type, late.value.status) == ("timeout", 504)
        assert f"the event was taken (applied, revision {south.revision})" in late.value.detail
        confirm(south, south.revision)
        again = client.send(event, wait=True)
    assert (again.outcome, again.confirmed_at) == ("replayed", 1e9)


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ({"wait": "soon"}, 'wait is "soon"'),
        ({"wait": "applied", "timeout": "long"}, 'timeout is "long"'),
        ({"wait": "applied", "timeout": "-1"}, 'timeout is "-1"'),
        ({"wait": "applied", "timeout": "nan"}, 'timeout is "nan"'),
        ({"wait": "applied"}, "host.up"),
    ],
)
def test_a_wait_that_makes_no_sense_is_refused_before_anything_is_written(
    served: Running, south: Store, query: dict[str, str], cause: str
) -> None:
    before = south.revision
    with served.client() as client:
        event = client.event("host.up", {"host": "h1"})
        with pytest.raises(Problem) as problem:
            client._call("POST", "/v1/events", query=query, body=event, media=CLOUDEVENT)
        assert (problem.value.type, problem.value.status) == ("invalid", 422)
        assert cause in problem.value.detail
        with pytest.raises(Problem, match="a batch"):
            client._call(
                "POST", "/v1/events", query={"wait": "applied"}, body=[event], media=CLOUDEVENTS
            )
    assert south.revision == before


def test_an_unconnected_edge_is_named(served: Running, south: Store) -> None:
    with served.client() as client:
        client.topology()  # from here on the server has heard of the host, and can warn
        told = client.place("vm0", "h1", ["p"])
    assert EDGES["h1"] in told.warnings[0]
    assert "not connected" in told.warnings[0]
    problem = refused(served)
    assert (problem.type, problem.status) == ("not-applied", 409)
    assert f"datapath {EDGES['h1']} of host h1 is not connected" in problem.detail


def test_a_missing_port_is_named_until_it_appears(served: Running, south: Store) -> None:
    connect(south)
    with served.client() as client:
        told = client.place("vm0", "h1", ["vnet7"])
        assert "port vnet7 is not on datapath" in told.warnings[0]
        confirm(south, told.revision)
        problem = refused(served)
        assert problem.type == "not-applied"
        assert f"port vnet7 of host h1 is not on datapath {EDGES['h1']}" in problem.detail
        connect(south, (EDGES["h1"], "vnet7"))
        confirm(south, south.revision)
        assert client.vm("vm0", wait=True).applied


def test_a_switchs_error_is_told(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        told = client.place("vm0", "h1", ["p"])
    confirm(south, told.revision, **{f"d{EDGES['h1']}": {"error": "table 4 is full"}})
    problem = refused(served)
    assert problem.type == "not-applied"
    assert "table 4 is full" in problem.detail


def test_another_switch_that_is_away_does_not_hold_up(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        told = client.place("vm0", "h1", ["p"])
        confirm(south, told.revision, **{f"d{CORE}": {"connected": False, "revision": 1}})
        status = client.vm("vm0", wait=True, revision=told.revision)
    assert status.unreachable == (CORE,)


def test_both_ends_of_a_migration_are_waited_for(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        client.place("vm0", "h1", ["p"])
        told = client.start_migration("m", "vm0", "h1", "h2", ["q"])
        confirm(south, told.revision)
        assert "port q of host h2" in refused(served).detail
        connect(south, (EDGES["h2"], "q"))
        confirm(south, south.revision)
        status = client.vm("vm0", wait=True)
        assert (status.status, status.applied) == ("migrating", True)


def test_a_removed_vm_is_waited_for_too(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        client.place("vm0", "h1", ["p"])
        told = client.remove("vm0", "h1")
        confirm(south, told.revision - 1)
        assert refused(served, revision=told.revision).type == "timeout"
        confirm(south, told.revision)
        status = client.vm("vm0", wait=True, revision=told.revision)
        assert (status.status, status.placement) == ("defined", None)


def test_a_revision_from_the_future_and_an_unknown_vm(served: Running) -> None:
    assert served.call("GET", "/v1/vms/vm0?wait=applied&revision=999999").type == "invalid"
    assert served.call("GET", "/v1/vms/ghost?wait=applied").type == "not-found"
    assert served.call("GET", "/v1/vms/vm0?wait=for-ever").type == "invalid"


def test_the_topology_shows_what_was_discovered(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    confirm(south, 3)
    with served.client() as client:
        found = client.topology()
    assert {d.dpid for d in found.datapaths} == {*EDGES.values(), CORE}
    assert [p.name for p in found.ports] == ["p"]
    assert {told.datapath: told.revision for told in found.progress}[CORE] == 3
    assert served.call("GET", "/v1/ready").body["connected"] == 4


def test_a_switch_is_forgotten_only_when_nothing_needs_it(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    path = f"/v1/datapaths/{EDGES['h1']}"
    assert "is connected" in served.call("DELETE", path).body["detail"]
    with south.transaction() as transaction:
        transaction.put(Datapath(dpid=EDGES["h1"], connected=False))
    assert "host h1" in served.call("DELETE", path).body["detail"]
    with served.client() as client:
        client.delete(Host, "h1")
        client.forget_datapath(EDGES["h1"])
        found = client.topology()
        assert EDGES["h1"] not in {d.dpid for d in found.datapaths}
        assert found.ports == ()
    assert served.call("DELETE", path).type == "not-found"
    assert served.call("DELETE", "/v1/datapaths/nonsense").type == "invalid"


def test_changes_are_followed(served: Running, south: Store) -> None:
    with served.client() as client, ThreadPoolExecutor(1) as pool:
        newest = client.topology().revision
        assert client.changes(newest, timeout_s=0).changes == ()
        waiting = pool.submit(client.changes, newest)
        with south.transaction() as transaction:
            transaction.put(Datapath(dpid=CORE))
        found = waiting.result(timeout=20)
        assert [(c.kind, c.key) for c in found.changes] == [("datapath", CORE)]
        assert found.revision == newest + 1
        everything = client.changes(0)
        assert everything.changes[-1].revision == found.revision


def test_a_feed_that_was_compacted_says_so(tmp_path: Path) -> None:
    with running(tmp_path / "state") as served:
        define(served)
        assert served.call("GET", "/v1/changes?after=999999").type == "compacted"


def test_explanations(served: Running, south: Store) -> None:
    connect(south, (EDGES["h1"], "p"))
    with served.client() as client:
        client.place("vm0", "h1", ["p"])
        rules = client.explain(vm="vm0")
        assert rules.total == len(rules.items) > 0
        assert {rule.owner for rule in rules.items} == {"vm vm0"}
        one = client.explain(cookie=rules.items[0].cookie, datapath=rules.items[0].datapath)
        assert {rule.cookie for rule in one.items} == {rules.items[0].cookie}
        with pytest.raises(Problem, match="no vm ghost"):
            client.explain(vm="ghost")
    assert served.call("GET", "/v1/explain").type == "invalid"
    assert served.call("GET", "/v1/explain?cookie=zz").type == "invalid"


def test_waiting_ends_when_the_server_stops(tmp_path: Path) -> None:
    with running(tmp_path / "state") as served:
        define(served)
        with other_store(served) as south:
            connect(south)
            confirm(south, 0)
            found: list[int] = []

            def wait() -> None:
                found.append(served.call("GET", "/v1/vms/vm0?wait=applied").status)

            thread = threading.Thread(target=wait)
            thread.start()
            while served.server.brain.waiters == 0:
                assert thread.is_alive()
                served.call("GET", "/v1/ready")
            served.server.stop()
            thread.join(20)
        assert found == [503]
