"""The fabric with its store in PostgreSQL, which is restarted, killed and frozen meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from controller.client import Problem
from controller.model.nouns import Nic, Vm
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, Stream
from tests.postgres import PostgresServer
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(2, 2)
SETTINGS = {"PLEACH_MIGRATION__DRAIN_S": "0.2"}
_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def postgres() -> Iterator[PostgresServer]:
    """The server, before anything of Pleach is started."""
    with PostgresServer() as server:
        SETTINGS["PLEACH_STORE__URL"] = server.url(server.create())
        yield server


@pytest.fixture(scope="module")
def guests(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    return world.vm("a", one, "leaf1-h1"), world.vm("b", one, "leaf2-h1")


def start(world, guest, target):
    """Plug the guest in at the target and tell of the migration."""
    move, port = f"move-{next(_numbers)}", world.plug(guest, target)
    source = world.client.vm(guest.name).placement.host
    world.client.start_migration(move, guest.name, source, target, [port])
    world.applied()
    return move, port


def finish(world, guest, move, old, target):
    world.wait_phase(move, "settling", "finished")
    guest.unplug(old)
    world.client.complete_migration(move, guest.name)
    world.applied()
    assert world.client.vm(guest.name).placement.host == target


def usable(world):
    """Wait until both processes have the store again."""

    def answers() -> bool:
        try:
            world.client.topology()
            world.applied()
        except Problem as problem:
            if problem.status != 503:
                raise
            return False
        return True

    wait_until(answers, "the store is used again")


def test_guests_are_placed_and_reach_each_other(world, guests, postgres):
    a, b = guests
    assert a.ping(b.ipv4)
    assert a.ping(b.ipv6)
    rows = postgres.execute(
        "SELECT key FROM placement ORDER BY key", SETTINGS["PLEACH_STORE__URL"].rpartition("/")[2]
    )
    assert rows == [("a",), ("b",)]


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_migration_during_which_the_server_goes_away(world, guests, postgres, how):
    a, b = guests
    old = a.active
    here = world.client.vm("a").placement.host
    target = {"leaf1-h1": "leaf2-h2", "leaf2-h2": "leaf1-h1"}[here]
    with Stream(b, a) as tcp, Flow(b, a, 500) as flow:
        move, port = start(world, a, target)
        if how == "kill":
            postgres.kill()
        else:
            postgres.stop()
        postgres.start()
        usable(world)
        a.switch_over(port)
        finish(world, a, move, old, target)
        results, stream = flow.stop(), tcp.stop()
    assert stream.survived, stream.failure
    assert [(r.lost, r.errors) for r in results] == [(0, 0), (0, 0)]


def test_what_the_fabric_does_by_itself_goes_on_without_the_server(world, guests, postgres):
    a, b = guests
    before = world.tables()
    postgres.stop()
    try:
        for guest in guests:
            guest.forget_neighbours()
        assert a.ping(b.ipv4)
        assert a.ping(b.ipv6)  # neighbours are told by the southbound process
        with pytest.raises(Problem) as refused:
            world.client.put(Vm(id="lost", tenant="red", nics=(Nic(mac=a.mac, subnet="one"),)))
        assert refused.value.status == 503
        assert "goes on by itself" in refused.value.mend
    finally:
        postgres.start()
    usable(world)
    assert world.tables() == before


def test_a_server_that_is_frozen_holds_up_no_switch(world, guests, postgres):
    a, b = guests
    told = world.deployment.log("southbound").count("disconnected")
    world.lab.silent_port("leaf1", "meanwhile")
    with postgres.frozen():
        # The southbound process now waits for an answer, in the middle of writing this port.
        for _ in range(5):
            for guest in guests:
                guest.forget_neighbours()
            assert a.ping(b.ipv6)
    usable(world)
    wait_until(
        lambda: "meanwhile" in {port.name for port in world.client.topology().ports},
        "the port is in the store",
    )
    assert world.deployment.log("southbound").count("disconnected") == told
    world.lab.remove_ports("leaf1", ["meanwhile"])
    world.applied()


def test_both_processes_come_back_to_what_is_in_the_store(world, guests, postgres):
    before = world.tables()
    for process in ("southbound", "brain"):
        world.deployment.kill(process)
    postgres.kill()
    postgres.start()
    for process in ("brain", "southbound"):
        world.deployment.launch(process)
    world.whole()
    assert world.tables() == before
    a, b = guests
    assert a.ping(b.ipv4)
