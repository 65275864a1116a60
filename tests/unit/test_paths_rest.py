"""Paths and tunnels by REST, client and command line: granted, refused with what is free,
released, ended; why traffic goes as it goes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from northbound_server import Running, running
from typer.testing import CliRunner

from controller.api import NewReservation
from controller.cli import app
from controller.client import Client, Problem
from controller.model.addresses import format_dpid
from controller.model.nouns import LinkSpeed, Record, Reservation, Route, RouteClass, Tunnel, Way
from controller.store import Store
from controller.store.decisions import Decided, DecidedLink, Decision, keep
from tests.unit.label_machine import fabric

ONE, TWO, THREE, FOUR = map(format_dpid, (1, 2, 3, 4))
LINK = f"{ONE}:10"
MIB = 10**6


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("paths") / "state"
    # Who looks once a minute does not take away the routes that are put here.
    with running(directory, environ={"PLEACH_PATHS__LOOK_S": "60"}) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[Client]:
    with served.client() as made:
        yield made


@pytest.fixture(scope="module")
def square(served: Running) -> None:
    """1 to 4 directly, by 2 and by 3, and routes from 1 to 4."""
    ways = (
        Way(nodes=(ONE, FOUR), tree=48, buckets=(0, 1, 2)),
        Way(nodes=(ONE, TWO, FOUR), tree=49, buckets=(3,)),
    )
    route = Route(ingress=ONE, egress=FOUR, ways=ways)
    cables = [(1, 2), (2, 4), (1, 3), (3, 4), (1, 4)]
    records: list[Record] = [*fabric(cables, [1, 4], routes=[route]).records()]
    links = (DecidedLink(ONE, FOUR, 1e9, 3e8, 5e8), DecidedLink(ONE, THREE, 1e9, 0.0, 0.0))
    with served.server.brain.store.transaction() as tx:
        for record in records:
            tx.put(record)
        for number in range(3):
            made = Decision(
                1e9 + number, f"reason {number}", 0.3, 0.5, 0.29, 2, 36, 1, 0.1, ("note",), links
            )
            keep(tx, made, {route.key: Decided(3e8, 5e8, (f"because {number}",))})


def refused(call: object, *args: object, **named: object) -> Problem:
    assert callable(call)
    with pytest.raises(Problem) as told:
        call(*args, **named)
    return told.value


def test_a_tunnel_grants_what_it_has_and_says_what_is_free(client: Client) -> None:
    client.put(Tunnel(id="wan", link=LINK, capacity=1_000 * MIB, reservable=0.9))
    first = client.reserve("wan", NewReservation(id="a", rate=600 * MIB, purpose="mig-1"))
    assert first.expires_at > time.time()
    told = refused(client.reserve, "wan", NewReservation(id="b", rate=400 * MIB))
    assert (told.status, told.type) == (409, "conflict")
    assert "300 Mbit/s (300000000 bit/s) are free" in told.detail
    assert "Ask for 300 Mbit/s (300000000 bit/s) or less" in told.mend
    # The other direction is another matter, and the same id takes the place of what it had.
    client.reserve("wan", NewReservation(id="b", rate=900 * MIB, forward=False))
    client.reserve("wan", NewReservation(id="a", rate=850 * MIB))
    left = client.tunnel_bandwidth("wan")
    assert (left.forward.reserved, left.forward.free) == (850 * MIB, 50 * MIB)
    assert left.backward.free == 0
    never = refused(client.reserve, "wan", NewReservation(id="c", rate=950 * MIB))
    assert "never fits: 90% of 1,000 Mbit/s (1000000000 bit/s)" in never.mend
    client.release("a")
    assert client.tunnel_bandwidth("wan").forward.free == 900 * MIB
    assert refused(client.release, "a").status == 404
    assert {r.id for r in client.list(Reservation)} == {"b"}
    assert refused(client.delete, Tunnel, "wan").type == "in-use"
    shrunk = Tunnel(id="wan", link=LINK, capacity=500 * MIB)
    assert "900000000 bit/s of tunnel wan are reserved" in refused(client.put, shrunk).detail
    twin = Tunnel(id="twin", link=LINK, capacity=500 * MIB)
    assert "wan leaves by" in refused(client.put, twin).detail
    client.release("b")
    client.delete(Tunnel, "wan")


def test_what_was_reserved_for_a_moment_is_free_after_it(client: Client) -> None:
    client.put(Tunnel(id="short", link=f"{ONE}:99", capacity=1_000, reservable=1.0))
    client.reserve("short", NewReservation(id="s", rate=1_000, lifetime_s=0.2))
    wait = refused(client.reserve, "short", NewReservation(rate=1))
    assert "when others end" in wait.mend
    deadline = time.monotonic() + 10
    while client.tunnel_bandwidth("short").forward.free == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.reserve("short", NewReservation(id="t", rate=1_000, lifetime_s=60))
    client.release("t")


def test_a_reservation_of_no_tunnel_is_refused(client: Client) -> None:
    assert refused(client.reserve, "none", NewReservation(rate=1)).status == 404
    with pytest.raises(ValueError, match="greater than 0"):
        NewReservation(rate=0)


def test_speeds_of_links_are_kept_with_or_without_the_link(client: Client) -> None:
    client.put(LinkSpeed(id=f"{ONE}:77", speed=10**9))
    assert [told.speed for told in client.list(LinkSpeed)] == [10**9]
    client.delete(LinkSpeed, f"{ONE}:77")


def test_paths_are_told_with_shares_loads_and_reasons(client: Client, square: None) -> None:
    told = client.paths(ONE, FOUR, history=1)
    bulk, interactive = told.routes
    assert (bulk.traffic_class, bulk.chosen) == (RouteClass.BULK, True)
    assert {way.nodes: way.share for way in bulk.ways} == {
        (ONE, FOUR): 0.75,
        (ONE, TWO, FOUR): 0.25,
    }
    assert bulk.reasons == ("because 2",)
    assert [(e.decision, e.reasons) for e in bulk.earlier] == [(2, ("because 1",))]
    assert not interactive.chosen
    assert [link.target for link in told.links] == [FOUR]
    assert told.decision is not None
    assert told.decision.trigger == "reason 2"
    back = client.paths("h4", "h1")
    assert {way.nodes for way in back.routes[0].ways} == {(FOUR, ONE)}
    assert "planned trees" in back.routes[0].reasons[0]


@pytest.mark.parametrize(("ends", "status"), [(("h1", ONE), 422), (("nobody", ONE), 404)])
def test_ends_that_have_no_paths_are_refused(
    client: Client, square: None, ends: tuple[str, str], status: int
) -> None:
    assert refused(client.paths, *ends).status == status


def test_decisions_are_listed_newest_first_page_by_page(client: Client, square: None) -> None:
    first = client.path_decisions(limit=2)
    assert [d.id for d in first.items] == [3, 2]
    assert [d.id for d in client.path_decisions(limit=2, before=first.next).items] == [1]


def test_the_command_line_tells_the_same(
    served: Running, square: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)
    runner = CliRunner()

    def pleach(*words: str) -> str:
        done = runner.invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.output

    told = pleach("paths", "h1", "h4", "--history", "2")
    assert "75.0%" in told
    assert "because 0" in told
    assert "30.0%" in told
    assert "reason 1" in pleach("paths")
    made = pleach("tunnel", "add", "cli", f"{ONE}:98", "1000")
    assert [line.split()[-2:] for line in made.splitlines()] == [
        ["tunnel", "cli"],
        ["by", f"{ONE}:98"],
        ["1,000.000", "Mbit/s"],
        ["reservable", "90.0%"],
    ]
    granted = pleach("tunnel", "reserve", "cli", "100", "--purpose", "mig-9", "--id", "x")
    assert "rate         100.000 Mbit/s" in granted
    assert "direction    out" in granted
    assert re.search(r"until {8}\d{4}-\d\d-\d\d \d\d:\d\d", granted)
    assert "for          mig-9" in granted
    again = ("tunnel", "reserve", "cli", "100", "--id", "x", "--json")
    assert json.loads(pleach(*again))["rate"] == 100 * MIB
    assert "800.000" in pleach("tunnel", "list")
    assert "100.000 Mbit/s  out" in pleach("tunnel", "reservations")
    pleach("tunnel", "release", "x")
    pleach("tunnel", "delete", "cli")


def test_old_decisions_go_and_their_details_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.store.decisions.KEPT", 5)
    monkeypatch.setattr("controller.store.decisions.KEPT_WHOLE", 2)
    from controller.store.decisions import decided, decisions

    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    for number in range(8):
        made = Decision(float(number), "schedule", 0.1, 0.2, None, 2, 3, 0, 0.0, (), ())
        with store.transaction() as tx:
            keep(tx, made, {"a:b:bulk": Decided(1.0, 2.0, (str(number),))})
    assert [d.id for d in decisions(store)] == [8, 7, 6, 5, 4]
    assert [said.reasons for _, said in decided(store, "a:b:bulk")] == [("7",), ("6",)]
    assert decided(store, "b:a:bulk") == []
    store.close()


def test_who_has_too_many_edges_is_told_that_shortest_paths_are_hashed(tmp_path: Path) -> None:
    many = {"PLEACH_PATHS__LOOK_S": "0.1", "PLEACH_PATHS__MAX_EDGES": "2"}
    with running(tmp_path / "state", environ=many) as found, found.client() as client:
        assert client.path_decisions().unchosen == ""
        with found.server.brain.store.transaction() as tx:
            for record in fabric([(1, 2), (2, 3)], [1, 2, 3]).records():
                tx.put(record)
        why = client.path_decisions().unchosen
        assert why.startswith("paths are not chosen for the traffic, since 3 edges are more")
        told = client.paths(ONE, THREE)
        assert {route.reasons for route in told.routes} == {(why,)}
        assert [way.nodes for way in told.routes[0].ways] == [(ONE, TWO, THREE)]


def test_a_pair_that_is_cut_apart_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path / "state", environ={"PLEACH_PATHS__LOOK_S": "60"}) as found:
        store = found.server.brain.store
        for down, words in (((), None), ((1,), None), ((0, 1), "no way between them works now")):
            with store.transaction() as tx:
                for record in fabric([(1, 2), (1, 2), (2, 3)], [1, 3], down=down).records():
                    tx.put(record)
            with found.client() as client:
                reasons = client.paths(ONE, THREE).routes[0].reasons
            assert reasons[0].startswith(words or "no paths were chosen for it")
            assert words is None or reasons[0].endswith(f"mend one of {ONE}->{TWO}")
