"""Who talks to whom, as real switches count it: who began, what came back, what was denied; and
that neither restarts nor moves lose or double anything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from controller.act.dataplane.pipeline import MeterId
from controller.api import SignatureInfo
from controller.model.addresses import GATEWAY_MAC
from controller.model.nouns import Action
from controller.model.signatures import OTHERS
from mininet_labs.deployment import wait_until
from mininet_labs.vm import LabVm
from tests.fabric.world import Tap, World, end, udp
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric
FABRIC = leaf_spine(2, 1, 2)
SETTINGS = {
    "PLEACH_SIGNATURES__POLL_S": "0.4",
    "PLEACH_SIGNATURES__MOST_PER_VM": "12",
    "PLEACH_MIGRATION__DRAIN_S": "0.2",
    "PLEACH_MIGRATION__GRACE_S": "0.5",
}
CONNECTIONS, REQUEST, ANSWER = 8, b"r" * 700, b"a" * 5_000


@pytest.fixture(scope="module")
def guests(world: World) -> dict[str, LabVm]:
    world.tenant("red")
    net = world.subnet("net", "red", "10.0.0.0/24", "2001:db8::/64")
    return {
        name: world.vm(name, net, host)
        for name, host in (
            ("client", "leaf1-h1"),
            ("server", "leaf2-h1"),
            ("beside", "leaf1-h2"),
            ("noisy", "leaf1-h1"),
        )
    }


def serving(listening: socket.socket, count: int) -> threading.Thread:
    """Answer so many connections, each after its whole request."""

    def serve() -> None:
        opened = []
        for _ in range(count):
            one, _ = listening.accept()
            got = 0
            while got < len(REQUEST):
                got += len(one.recv(10_000))
            one.sendall(ANSWER)
            opened.append(one)
        for one in opened:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def exchange(client: LabVm, server: LabVm, port: int, version: int = 4, count: int = 1) -> None:
    """Connections that all begin before any of them is answered."""
    with end(server, socket.SOCK_STREAM, port, version) as listening:
        listening.listen(count)
        address = str(server.ipv4 if version == 4 else server.ipv6)
        opened = []
        thread = None
        try:
            for _ in range(count):
                one = end(client, socket.SOCK_STREAM, 0, version)
                opened.append((one, one.__enter__()))
            for _, raw in opened:
                raw.setblocking(False)
                raw.connect_ex((address, port))
            thread = serving(listening, count)
            for _, raw in opened:
                raw.settimeout(15)
                raw.sendall(REQUEST)
                got = 0
                while got < len(ANSWER):
                    got += len(raw.recv(65_536))
        finally:
            for one, _ in opened:
                one.__exit__(None, None, None)
            if thread is not None:
                thread.join()


def known(world: World, **what: str | float) -> list[SignatureInfo]:
    return list(world.client.signatures(**what))


def counted(
    world: World, test: Callable[[SignatureInfo], object], **what: str | float
) -> SignatureInfo:
    """The one signature of which this holds, once it does."""

    def found() -> list[SignatureInfo]:
        return [s for s in known(world, **what) if test(s)]

    wait_until(found, f"a signature of {what} is counted; known: {known(world, **what)}")
    (one,) = found()
    return one


def packet_ins(world: World) -> int:
    told = [
        world.lab.ofctl("meter-stats", edge, f"meter={MeterId.SIGNATURES.value}")
        for edge in world.lab.edges
    ]
    return sum(int(t.partition("packet_in_count:")[2].split()[0]) for t in told)


@pytest.mark.parametrize(
    ("target", "version", "port"), [("server", 4, 80), ("server", 6, 80), ("beside", 4, 81)]
)
def test_connections_that_begin_together_are_one_signature(
    world: World, guests: dict[str, LabVm], target: str, version: int, port: int
) -> None:
    before = packet_ins(world)
    told = len(known(world, vm="client", peer=target))
    had = sum(s.connections for s in known(world, vm="client", peer=target, port=port))
    exchange(guests["client"], guests[target], port, version, CONNECTIONS)
    one = counted(
        world,
        lambda s: s.connections == had + CONNECTIONS and s.bytes_in > CONNECTIONS * len(ANSWER),
        vm="client",
        peer=target,
        port=port,
    )
    assert one.bytes_out > CONNECTIONS * len(REQUEST)
    assert (one.protocol, one.external, one.tenant) == ("tcp", False, "red")
    assert packet_ins(world) == before + 1
    assert len(known(world, vm="client", peer=target)) in (told, told + 1)
    # Who answered has begun nothing.
    assert known(world, vm=target) == []


def test_pings_and_sctp_and_what_lies_outside(world: World, guests: dict[str, LabVm]) -> None:
    client, server = guests["client"], guests["server"]
    assert client.ping(server.ipv4)
    assert not client.ping("198.51.100.7")
    with Tap(client) as out, Tap(server) as there:
        ether = Ether(src=client.mac, dst=server.mac)
        head = IP(src=str(client.ipv4), dst=str(server.ipv4))
        out.send(ether / head / SCTP(sport=7, dport=9) / SCTPChunkInit(init_tag=1))
        there.until(lambda frame: SCTP in frame and frame[SCTP].dport == 9, "the SCTP packet")
        outside = IP(src=str(client.ipv4), dst="203.0.113.5") / UDP(sport=1, dport=53)
        out.send(Ether(src=client.mac, dst=GATEWAY_MAC) / outside / Raw(b"x" * 10))
    ping = counted(world, lambda s: s.bytes_in, vm="client", peer="server", protocol="icmp")
    assert (ping.connections, ping.packets_out, ping.packets_in) == (1, 1, 1)
    sctp = counted(world, lambda _: True, vm="client", protocol="sctp")
    assert (sctp.peer, sctp.port, sctp.packets_out) == ("server", 9, 1)
    dns = counted(world, lambda _: True, vm="client", port=53)
    assert (dns.peer, dns.external, dns.bytes_out) == ("203.0.113.0/24", True, 14 + 20 + 8 + 10)
    assert [s.peer for s in known(world, vm="client", protocol="icmp")] == [
        "198.51.100.0/24",
        "server",
    ]


def test_a_restart_neither_loses_nor_doubles_what_was_counted(
    world: World, guests: dict[str, LabVm]
) -> None:
    exchange(guests["client"], guests["server"], 82, count=3)
    counted(world, lambda s: s.bytes_in > 3 * len(ANSWER), vm="client", port=82)
    world.deployment.kill("southbound")
    exchange(guests["client"], guests["server"], 82, count=2)
    exchange(guests["client"], guests["server"], 83, count=2)
    world.deployment.launch("southbound")
    world.whole()
    more = counted(world, lambda s: s.connections == 5, vm="client", port=82)
    assert more.bytes_in > 5 * len(ANSWER)
    # The first packet of what began meanwhile went up to nobody.
    new = counted(world, lambda s: s.connections == 2, vm="client", port=83)
    assert new.bytes_in > 2 * len(ANSWER)


def test_counters_follow_a_vm_that_moves(world: World, guests: dict[str, LabVm]) -> None:
    client = guests["client"]
    exchange(client, guests["server"], 84, count=2)
    counted(world, lambda s: s.connections == 2 and s.bytes_in, vm="client", port=84)
    before = packet_ins(world)
    old, new = client.active, world.plug(client, "leaf2-h2")
    assert old is not None
    world.client.start_migration("m1", "client", "leaf1-h1", "leaf2-h2", [new])
    world.applied()
    client.switch_over(new)
    world.wait_phase("m1", "activated", "settling", "finished")
    exchange(client, guests["server"], 84, count=3)
    world.client.complete_migration("m1", "client")
    world.wait_phase("m1", "finished")
    client.unplug(old)
    one = counted(world, lambda s: s.connections == 5, vm="client", port=84)
    assert one.bytes_in > 5 * len(ANSWER)
    assert packet_ins(world) == before
    assert known(world, vm="server") == []


@pytest.fixture
def closed(world: World) -> Iterator[None]:
    world.tenant("red", Action.DENY)
    world.applied()
    yield
    world.tenant("red")
    world.applied()


def test_what_is_denied_goes_up_once_and_is_counted(
    world: World, guests: dict[str, LabVm], closed: None
) -> None:
    noisy, server = guests["noisy"], guests["server"]
    with Tap(noisy) as out:
        for _ in range(20):
            out.send(udp(noisy, server, b"x" * 30))

    def denied() -> list[int]:
        found = world.client.denials(vm="noisy", peer="server", protocol="udp", port=4001)
        return [d.packets for d in found]

    wait_until(lambda: denied() == [20], f"20 packets were denied, not {denied()}")
    assert known(world, vm="noisy", port=4001) == []


def test_a_vm_that_scans_is_told_and_counted_as_one(world: World, guests: dict[str, LabVm]) -> None:
    noisy, server = guests["noisy"], guests["server"]
    with Tap(noisy) as out:
        for port in range(3_000, 3_100):
            frame = udp(noisy, server, b"scan")
            frame[UDP].dport = port
            out.send(frame)
    others = counted(world, lambda s: s.packets_out > 40, vm="noisy", peer=OTHERS)
    assert (others.protocol, others.port) == ("any", 0)
    assert len(known(world, vm="noisy")) <= 13
    assert "it may be scanning" in world.deployment.log("southbound")
    # Others are still told apart.
    exchange(guests["beside"], server, 85)
    counted(world, lambda s: s.connections == 1, vm="beside", port=85)
