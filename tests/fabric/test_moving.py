"""Migrations as a hypervisor tells them by REST, under traffic."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from controller.act.dataplane.pipeline import Owner, TableId, cookie
from controller.client import Problem
from controller.model.nouns import Action
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, Stream
from tests.fabric.world import Tap, fence, udp
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(3, 2)
SETTINGS = {"PLEACH_MIGRATION__DRAIN_S": "0.2"}
RATE = 500
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def guests(world):
    """A server and a client that may begin TCP and UDP towards it, and nothing else."""
    world.tenant("red", Action.DENY)
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    server = world.vm("server", one, "leaf1-h1", groups=["servers"])
    client = world.vm("client", one, "leaf2-h1")
    for protocol in ("tcp", "udp"):
        ends = {"source": {"vms": ["client"]}, "destination": {"groups": ["servers"]}}
        world.rule(f"{protocol}-one-way", "red", protocol=protocol, **ends)
    return {"server": server, "client": client}


def host_of(world, guest):
    """Where the record says that a guest runs."""
    placement = world.client.vm(guest.name).placement
    assert placement is not None
    return placement.host


def start(world, guest, target):
    """Plug the guest in at the target and tell of the migration; its id and port."""
    move, port = f"move-{next(_numbers)}", world.plug(guest, target)
    world.client.start_migration(move, guest.name, host_of(world, guest), target, [port])
    world.applied()
    return move, port


def leave(world, guest, move, old):
    """Wait until the source is drained, then unplug there."""
    world.wait_phase(move, "settling", "finished")
    guest.unplug(old)
    world.applied()


def migrate(world, guest, target):
    """A whole move, activated by what the guest says at the target."""
    old = guest.active
    move, port = start(world, guest, target)
    guest.switch_over(port)
    leave(world, guest, move, old)
    world.client.complete_migration(move, guest.name)
    assert host_of(world, guest) == target
    return move


def of_port(world, guest, port):
    """What an edge has because of one port: rules that name its number."""
    number = world.lab.port_number(port)
    edge = guest.edge_of(port)
    words = (f"in_port={number} ", f"in_port={number},", f"output:{number}")
    found = [line for line in world.flows(edge) if any(w in f"{line} " for w in words)]
    found += [g for g in world.groups(edge) if f"output:{number}," in f"{g},"]
    return found


def whole(flow_results):
    return [(r.lost, r.errors) for r in flow_results]


def test_the_target_is_ready_before_the_vm_is_there(world, guests):
    server, client = guests["server"], guests["client"]
    old = server.active
    before = of_port(world, server, old)
    move, port = start(world, server, "leaf3-h1")
    try:
        assert world.phase(move) == "started"
        assert world.client.vm("server").status == "migrating"
        ready = of_port(world, server, port)
        secured = [line for line in ready if f"table={TableId.PORT_SECURITY}," in line]
        assert len(secured) > 3
        assert of_port(world, server, old) == before
        # Packets for it go to both places; the guest hears the active one only.
        sent = world.lab.vsctl("get", "Interface", port, "statistics:tx_packets")
        with Tap(client) as out, Tap(server) as into:
            out.send(udp(client, server, b"to both"))
            assert into.payload(b"to both")
        wait_until(
            lambda: world.lab.vsctl("get", "Interface", port, "statistics:tx_packets") != sent,
            "a copy at the target",
        )
    finally:
        world.client.fail_migration(move, "server")
        world.wait_phase(move, "failed")
        server.unplug(port)
        world.applied()


def test_moves_lose_nothing_and_connections_survive(world, guests):
    """Both ends move in turn, over all edges and back to those that they came from."""
    server, client = guests["server"], guests["client"]
    with Stream(client, server) as tcp, Flow(client, server, RATE) as flow:
        for guest, target in (
            (server, "leaf3-h1"),
            (server, "leaf1-h1"),
            (client, "leaf3-h2"),
            (server, "leaf3-h1"),
            (client, "leaf2-h1"),
            (server, "leaf2-h2"),
            (server, "leaf1-h1"),
        ):
            migrate(world, guest, target)
        results, stream = flow.stop(), tcp.stop()
    assert stream.survived, stream.failure
    assert whole(results) == [(0, 0), (0, 0)]
    # All that while nobody could begin the other way round.
    with Tap(server) as out, Tap(client) as into, Tap(client) as back:
        out.send(udp(server, client, b"uninvited"))
        back.send(udp(client, server, b"mark"))
        out.payload(b"mark")
        with Tap(server) as honest:
            fence(back, honest)
        assert into.got(b"uninvited") == 0


def test_nothing_is_left_at_the_old_place(world, guests):
    server = guests["server"]
    vm_cookie = f"cookie={cookie(Owner.VM, 'server'):#x}/-1"
    subnet_cookie = f"cookie={cookie(Owner.SUBNET, 'one'):#x}/-1"
    pristine = world.tables("leaf3")
    move = migrate(world, server, "leaf3-h1")
    assert world.flows("leaf3", vm_cookie)
    # Nobody of the tenant is on leaf1 now.
    assert not world.flows("leaf1", vm_cookie)
    assert not world.flows("leaf1", subnet_cookie)
    assert not any("cookie=0x9e0206" in line for line in world.flows("leaf1"))
    assert move
    migrate(world, server, "leaf1-h1")
    assert world.tables("leaf3") == pristine


@pytest.mark.parametrize("word", ["rarp", "garp", "data"])
def test_any_first_packet_activates(world, guests, word):
    server, client = guests["server"], guests["client"]
    old = server.active
    move, port = start(world, server, "leaf3-h1")
    server.switch_over(port, announce=False)
    mac, ip = server.mac, str(server.ipv4)
    rarp = ARP(op=3, hwsrc=mac, hwdst=mac, psrc="0.0.0.0", pdst="0.0.0.0")
    garp = ARP(op=1, hwsrc=mac, psrc=ip, hwdst="00:00:00:00:00:00", pdst=ip)
    frames = {
        "rarp": Ether(src=mac, dst="ff:ff:ff:ff:ff:ff", type=0x8035) / rarp,
        "garp": Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / garp,
        "data": udp(server, client, b"alive"),
    }
    with Tap(server) as out:
        out.send(frames[word])
    leave(world, server, move, old)
    told = world.client.vm("server")
    assert told.placement.host == "leaf3-h1"
    assert told.migration is None or told.migration.activated_by == "packet"
    migrate(world, server, "leaf1-h1")


def test_a_stranger_at_the_target_activates_nothing(world, guests):
    server = guests["server"]
    move, port = start(world, server, "leaf3-h1")
    # The hypervisor there speaks with other addresses before the VM runs.
    edge, number = server.edge_of(port), world.lab.port_number(port)
    rarp = Ether(src="02:00:00:00:77:77", dst="ff:ff:ff:ff:ff:ff", type=0x8035) / ARP(op=3)
    forged = udp(server, guests["client"], b"forged", src="10.0.0.99")
    for frame in (rarp, forged):
        data = bytes(frame / Raw(b"")).hex()
        world.lab.ofctl("packet-out", edge, f"in_port={number},packet={data},actions=table")
    world.client.fail_migration(move, "server")
    world.wait_phase(move, "failed")
    assert world.client.vm("server").placement.host == "leaf1-h1"
    server.unplug(port)
    world.applied()


def test_the_completed_event_activates_a_silent_vm(world, guests):
    server, client = guests["server"], guests["client"]
    old = server.active
    with Flow(client, server, RATE) as flow:
        move, port = start(world, server, "leaf3-h1")
        world.client.complete_migration(move, "server")
        world.applied()
        server.switch_over(port, announce=False)
        leave(world, server, move, old)
        results = flow.stop()
    assert host_of(world, server) == "leaf3-h1"
    # The guest was late, not the fabric: nothing came that was not asked for.
    assert [r.errors for r in results] == [0, 0]
    migrate(world, server, "leaf1-h1")


def test_a_failed_migration_interrupts_nothing(world, guests):
    server, client = guests["server"], guests["client"]

    def fail(reason):
        move, port = start(world, server, "leaf3-h1")
        world.client.fail_migration(move, "server", reason)
        world.wait_phase(move, "failed")
        server.unplug(port)
        world.applied()

    fail("this ends the grace that an earlier move was given")
    before = world.tables()
    with Stream(client, server) as tcp, Flow(client, server, RATE) as flow:
        for reason in ("no memory", "timed out"):
            fail(reason)
        results, stream = flow.stop(), tcp.stop()
    assert stream.survived, stream.failure
    assert [(r.lost, r.duplicates) for r in results] == [(0, 0), (0, 0)]
    assert host_of(world, server) == "leaf1-h1"
    assert world.tables() == before


@pytest.mark.parametrize("mover", ["server", "client"])
def test_a_move_between_two_hosts_of_one_edge(world, guests, mover):
    server, client = guests["server"], guests["client"]
    guest, edge = guests[mover], {"server": "leaf1", "client": "leaf2"}[mover]
    with Stream(client, server) as tcp, Flow(client, server, RATE) as flow:
        migrate(world, guest, f"{edge}-h2")
        migrate(world, guest, f"{edge}-h1")
        results, stream = flow.stop(), tcp.stop()
    assert stream.survived, stream.failure
    assert whole(results) == [(0, 0), (0, 0)]


def test_a_late_start_undoes_nothing(world, guests):
    server = guests["server"]
    old, port = server.active, world.plug(server, "leaf3-h1")
    move = f"move-{next(_numbers)}"
    data = {"migration": move, "vm": "server", "target": "leaf3-h1", "ports": [port]}
    started = world.client.event("vm.migration.started", {**data, "source": "leaf1-h1"})
    started["time"] = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    completed = world.client.complete_migration(move, "server", "leaf3-h1", [port])
    assert completed.outcome == "applied"
    server.switch_over(port)
    world.applied()
    before = world.tables()
    assert world.client.send(started).outcome == "late"
    assert world.client.send(started).outcome in ("late", "replayed")
    world.applied()
    assert world.tables() == before
    assert host_of(world, server) == "leaf3-h1"
    server.unplug(old)
    migrate(world, server, "leaf1-h1")


def test_contradictions_are_told_and_change_nothing(world, guests):
    server = guests["server"]
    before = world.tables()
    for call in (
        lambda: world.client.start_migration("bad", "server", "leaf2-h1", "leaf3-h1", ["x"]),
        lambda: world.client.start_migration("bad", "server", "leaf1-h1", "leaf9-h1", ["x"]),
        lambda: world.client.start_migration("bad", "nobody", "leaf1-h1", "leaf3-h1", ["x"]),
        lambda: world.client.complete_migration("never", "server"),
    ):
        with pytest.raises(Problem) as told:
            call()
        assert told.value.mend
    assert world.client.fail_migration("never", "server").outcome == "ignored"
    world.applied()
    assert world.tables() == before
    assert host_of(world, server) == "leaf1-h1"
