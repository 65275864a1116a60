"""Opening an alert has some packets of its VM copied from the fabric, and no more than that."""

from __future__ import annotations

import io
import socket
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import rdpcap

from controller.act.dataplane.pipeline import Owner, cookie
from controller.client import Problem
from controller.loops.investigations import PACKETS
from controller.model.nouns import Capture
from controller.observe.anomalies import book
from controller.observe.anomalies.alerts import Kind, Signal
from controller.observe.anomalies.rules import Rules
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.vm import LabVm
from tests.fabric.world import World

pytestmark = pytest.mark.fabric

SETTINGS = {"PLEACH_ALERTS__EVERY_S": "0.2"}


@pytest.fixture(scope="module")
def guests(world: World) -> tuple[LabVm, LabVm]:
    world.tenant("red")
    net = world.subnet("net", "red", "10.1.0.0/24")
    hosts = [host.name for host in world.lab.fabric.hosts]
    return world.vm("a", net, hosts[0]), world.vm("b", net, hosts[-1])


def alerted(world: World, vm: str) -> int:
    """An alert about a VM, as a loop opens one."""
    signal = Signal(Kind.SCAN, vm, "", time.time(), 2.0, "for a test")
    with world.deployment.store.transaction() as tx:
        (alert,) = book.enter(tx, [signal], Rules(), book.Telling(), time.time())
    return int(alert.id)


def copying(world: World, vm: LabVm) -> bool:
    """Whether packets of a VM are copied at its edge."""
    mark = f"cookie=0x{cookie(Owner.CAPTURE, vm.name):x},"
    edge = vm.edge_of(vm.active or "")
    return any(mark in line for line in world.lab.ofctl("dump-flows", edge).splitlines())


def test_packets_of_a_vm_are_kept_with_its_alert(world: World, guests: tuple[LabVm, LabVm]) -> None:
    one, other = guests
    number = alerted(world, "a")
    wait_until(lambda: copying(world, one), "packets are copied")
    with netns.entered(one.name):
        sends = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.entered(other.name):
        answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sends, answers:
        sends.bind((str(one.ipv4), 5000))
        answers.bind((str(other.ipv4), 5001))
        sends.settimeout(20)
        answers.settimeout(20)
        words = bytes(400)
        for _ in range(2 * PACKETS):  # each goes on, copied or not
            sends.sendto(words, (str(other.ipv4), 5001))
            assert answers.recv(1_000) == words
            answers.sendto(b"yes", (str(one.ipv4), 5000))
            assert sends.recv(1_000) == b"yes"

    def kept() -> bytes | None:
        try:
            return world.client.packets(number)
        except Problem:
            return None

    wait_until(lambda: kept() is not None, "packets are kept")
    found = rdpcap(io.BytesIO(kept() or b""))
    assert len(found) == PACKETS
    assert {len(packet) for packet in found if packet[IP].src == str(one.ipv4)} == {256}
    assert all(one.mac in (packet.src, packet.dst) for packet in found)
    ways = {(packet[UDP].sport, packet[UDP].dport) for packet in found if UDP in packet}
    assert {(5000, 5001), (5001, 5000)} <= ways
    wait_until(lambda: not copying(world, one), "nothing is copied any more")
    assert world.deployment.store.snapshot().captures == {}
    words_told = f"{PACKETS} of its packets are kept (pleach alerts packets)"
    wait_until(lambda: words_told in world.client.investigation(number).words, "it is told")


def test_copying_ends_when_its_time_is_over(world: World, guests: tuple[LabVm, LabVm]) -> None:
    one, other = guests
    number = alerted(world, "b")
    wait_until(lambda: copying(world, other), "packets are copied")
    assert not copying(world, one)
    rules = world.client.explain(vm="b").items
    assert any("copied for an alert" in rule.reason for rule in rules)
    with world.deployment.store.transaction() as tx:
        held = tx.get(Capture, "b")
        assert held is not None
        assert held.alert == number
        tx.put(held.model_copy(update={"until": time.time()}))
    wait_until(lambda: not copying(world, other), "the time is over")
    assert len(rdpcap(io.BytesIO(world.client.packets(number)))) < PACKETS
