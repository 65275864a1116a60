"""Bandwidth that is decided: meters follow what VMs want, packets are of their service's class."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from controller.act.queues import tc
from controller.act.queues.plan import plan
from controller.agent.queues import Queues
from controller.decide.bandwidth import qos
from controller.model.nouns import RateLimit, Service
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from tests.fabric.test_bandwidth import meters
from tests.fabric.world import Tap, udp
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

FABRIC = leaf_spine(2, 1)
SETTINGS = {
    "PLEACH_BANDWIDTH__POLICY": str(Path(__file__).with_name("sharing.yaml")),
    "PLEACH_BANDWIDTH__INTERVAL_S": "0.5",
}


@pytest.fixture(scope="module")
def guests(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24", "fd00:1::/64")
    return {
        "a": world.vm("a", one, "leaf1-h1"),
        "b": world.vm("b", one, "leaf1-h1", groups=["important"]),
        "c": world.vm("c", one, "leaf2-h1"),
        "dump": world.vm("dump", one, "leaf2-h1"),
    }


def rates(world):
    """kbit/s that each VM may send and receive."""
    return {told.vm: (told.out_kbit, told.in_kbit) for told in world.client.bandwidths().items}


def test_idle_vms_share_by_weight_and_elsewhere_only_a_ceiling_is_metered(world, guests):
    wanted = {"a": (5_000, 5_000), "b": (15_000, 15_000), "dump": (5_000, 5_000)}
    # A quarter of the uplink, the rest of it, and a ceiling; nothing of the fourth.
    wait_until(lambda: rates(world) == wanted, f"rates are {wanted}")
    world.applied()
    assert sorted(rate for rate, _ in meters(world, "leaf1").values()) == [5_000] * 2 + [15_000] * 2
    told = world.client.bandwidth("a")
    assert told.out_reason.startswith("its share of uplink of host leaf1-h1, out, 20 Mbit/s")
    assert "the ceiling of its priority" in world.client.bandwidth("dump").in_reason


def test_a_burst_that_nobody_foresaw_gets_what_others_leave(world, guests):
    a, c = guests["a"], guests["c"]
    wait_until(lambda: rates(world).get("a", (0, 0))[0] == 5_000, "a is idle")
    with Tap(a) as out:
        deadline = time.monotonic() + 20

        def bursting() -> bool:
            out.send(*(udp(a, c, bytes(1_200)) for _ in range(100)))
            return rates(world)["a"][0] > 15_000 or time.monotonic() > deadline

        wait_until(bursting, "a has most of the uplink")
    # Of b, which is idle, nothing is kept that it does not use; a is at its limit.
    assert rates(world)["a"][0] > 15_000
    wait_until(lambda: rates(world)["a"][0] == 5_000, "a is as it was")


def test_an_operators_limit_leaves_the_rest_to_others(world, guests):
    world.client.limit(RateLimit(vm="b", out_kbit=2_000))
    wait_until(lambda: rates(world)["a"][0] == 18_000, "a has what b may not use")
    assert rates(world)["b"][0] == 2_000
    world.client.unlimit("b")
    wait_until(lambda: rates(world)["a"][0] == 5_000, "all is as it was")


def service(vm, protocol, port, category):
    return Service(
        vm=vm, protocol=protocol, port=port, application="SSH", how="confirmed",
        category=category, category_how="confirmed", confidence=1.0, concluded_at=0.0,
        flows=9, packets=99, due=0.0,
    )  # fmt: skip


def tcp(source, target, sport, dport, data):
    network = IP(src=str(source.ipv4), dst=str(target.ipv4), tos=46 << 2)
    segment = TCP(sport=sport, dport=dport, flags="S")
    return Ether(src=source.mac, dst=target.mac) / network / segment / Raw(data)


def test_packets_have_the_class_of_their_service_both_ways(world, guests):
    a, c, dump = guests["a"], guests["c"], guests["dump"]
    with world.deployment.store.transaction() as tx:
        tx.put(service("c", "tcp", 22, "remote administration"))
        tx.put(service("c", "tcp", 9999, "unheard of"))
    wait_until(lambda: "c" in world.deployment.store.snapshot().markings, "a marking of c")
    world.applied()
    with Tap(a) as left, Tap(c) as right, Tap(dump) as third:
        left.send(tcp(a, c, 4000, 22, b"a request"))
        assert right.payload(b"a request")[IP].tos >> 2 == 18
        right.send(tcp(c, a, 22, 4000, b"its answer"))
        assert left.payload(b"its answer")[IP].tos >> 2 == 18
        left.send(tcp(a, c, 4001, 9999, b"nothing known"))
        assert right.payload(b"nothing known")[IP].tos == 0
        # A VM of which the policy says so is of its class in all that it sends elsewhere.
        third.send(udp(dump, a, b"a dump"))
        assert left.payload(b"a dump")[IP].tos >> 2 == 10
        third.send(tcp(dump, c, 4002, 22, b"a login"))
        assert right.payload(b"a login")[IP].tos >> 2 == 18
    told = world.client.bandwidth("c").marking
    assert [(s.port, s.mark.name, s.mark.traffic) for s in told.services] == [
        (22, "interactive", 5)
    ]


def test_the_label_carries_the_class(world, guests):
    a, c = guests["a"], guests["c"]
    packet = (
        f"in_port={world.lab.port_number(a.active)},tcp,dl_src={a.mac},dl_dst={c.mac},"
        f"nw_src={a.ipv4},nw_dst={c.ipv4},nw_ttl=64,tcp_src=4000,tcp_dst=22"
    )
    traced = world.lab.appctl("ofproto/trace", "leaf1", packet, "--ct-next", "trk,est")
    assert "push_mpls(label=" in traced
    assert ",tc=5," in traced.split("push_mpls(label=")[1].split(")")[0], traced


def pleach(*words):
    done = subprocess.run(
        [sys.executable, "-m", "controller.cli", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def packets(port):
    """Packets that each queue of a port has sent."""
    return {queue.minor - 16: queue.packets for queue in tc.show(port)}


def test_each_class_has_a_queue_on_fabric_and_vm_ports(world, guests):
    a, c, dump = guests["a"], guests["c"], guests["dump"]
    policy = ("--policy", SETTINGS["PLEACH_BANDWIDTH__POLICY"])
    ports = [c.active, dump.active, *world.lab.cable_ports("leaf2")]
    told = pleach("queues", "apply", "leaf2", "--mbps", "100", *policy)
    assert sorted(told.removesuffix(" changed").split(", ")) == sorted(ports)
    assert pleach("queues", "apply", "leaf2", "--mbps", "100", *policy) == "nothing changed"
    try:
        with Tap(a) as left, Tap(c) as right, Tap(dump) as third:
            before = {port: packets(port) for port in ports}
            left.send(*(tcp(a, c, 4000, 22, b"to the service") for _ in range(10)))
            right.send(*(tcp(c, a, 22, 4000, b"and back") for _ in range(20)))
            third.send(*(udp(dump, a, b"bulk %d" % n) for n in range(30)))
            left.payloads(b"and back", b"bulk 29")
            right.payload(b"to the service")

            def sent(port):
                return {q: n - before[port][q] for q, n in packets(port).items()}

            uplink = world.lab.cable_ports("leaf2")[0]
            wait_until(lambda: sent(c.active)[5] >= 10, "IP packets in the queue of their DSCP")
            wait_until(lambda: sent(uplink)[5] >= 20, "labelled ones in that of the label")
            wait_until(lambda: sent(uplink)[2] >= 30, "bulk beside it")
        rates = {queue.minor - 16: (queue.rate * 8, queue.ceil * 8) for queue in tc.show(uplink)}
        assert rates[5] == (50_000_000, 100_000_000)
        assert rates[2] == (20_000_000, 100_000_000)
        pleach("queues", "apply", "leaf2", "--mbps", "10", "--port", uplink, *policy)
        assert {queue.rate * 8 for queue in tc.show(uplink)} == {5e6, 3e6, 2e6}
    finally:
        assert pleach("queues", "clear", "leaf2").endswith(" cleared")
    assert not tc.show(uplink)
    assert pleach("queues", "clear", "leaf2") == "nothing cleared"


def test_queues_of_others_are_left_alone(world, guests):
    port = guests["c"].active
    netns.batch("tc", [f"qdisc add dev {port} root tbf rate 1mbit burst 10kb limit 10kb"])
    try:
        with pytest.raises(subprocess.CalledProcessError) as refused:
            pleach("queues", "apply", "leaf2", "--mbps", "10", "--port", port)
        assert "it has a tbf that is not ours" in refused.value.stderr
        assert pleach("queues", "clear", "leaf2", "--port", port) == "nothing cleared"
    finally:
        netns.batch("tc", [f"qdisc del dev {port} root"])


def test_the_agent_keeps_queues_and_takes_them_off(world, guests, caplog):
    uplink = world.lab.cable_ports("leaf1")[0]
    taken, free = guests["a"].active, guests["b"].active
    policy = qos.load()
    netns.batch("tc", [f"qdisc add dev {taken} root tbf rate 1mbit burst 10kb limit 10kb"])
    try:
        task = Queues(lambda: (taken, free, uplink), plan(policy.classes, policy.default, 1e7), 1.0)
        assert task.look() == [free, uplink]
        netns.batch("tc", [f"qdisc del dev {free} root"])
        assert task.look() == [free]
        assert task.look() == []
        assert sum("tbf that is not ours" in r.getMessage() for r in caplog.records) == 1
        assert Queues(lambda: (taken, free, uplink), None, 1.0).look() == [free, uplink]
        assert not tc.show(uplink)
    finally:
        netns.batch("tc", [f"qdisc del dev {taken} root"])
