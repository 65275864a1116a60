"""Switches that are too old, broken or hostile: the others are served on, and the log tells."""

from __future__ import annotations

import itertools
import random

import pytest

from controller.act.dataplane.openflow import wire
from controller.client import Problem
from controller.model.nouns import Host, Nic, Vm
from mininet_labs.deployment import wait_until
from tests.certificates import Authority
from tests.fabric.world import Tap, udp
from tests.fakeswitch import Fakes, FakeSwitch

pytestmark = pytest.mark.fabric

#: The framework tells of bytes that it cannot parse with a traceback of its own.
MALFORMED = True
_numbers = itertools.count(1)
_dpids = itertools.count(0xBAD000)


@pytest.fixture(scope="module")
def guests(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/24")
    return {"a": world.vm("a", one, "leaf1-h1"), "b": world.vm("b", one, "leaf2-h1")}


@pytest.fixture(scope="module")
def fakes(world):
    with Fakes(world.deployment.controller) as fakes:
        yield fakes


@pytest.fixture(autouse=True)
def forget(world, guests, fakes):
    """Every fake is forgotten after its test, and the fabric is whole without."""
    yield
    fakes.disconnect()
    real = {world.lab.dpid(s.name) for s in world.lab.fabric.switches}

    def gone():
        known = {p.datapath for p in world.client.topology().progress if p.connected}
        return known <= real

    wait_until(gone, "no fake is connected")
    for dpid in {d.dpid for d in world.client.topology().datapaths} - real:
        world.client.forget_datapath(dpid)
    served(world, guests)


def served(world, guests):
    """A VM comes, is reached and goes: at the real switches all is in order."""
    name = f"proof-{next(_numbers)}"
    guest = world.define(name, world.subnets["a"])
    world.place(guest, "leaf2-h2")
    real = [world.lab.dpid(edge) for edge in world.lab.edges]
    revision = world.client.topology().revision

    def confirmed():
        told = {p.datapath: p for p in world.client.topology().progress}
        return all(told[d].connected and told[d].revision >= revision for d in real)

    wait_until(confirmed, "the real switches have confirmed")
    with Tap(guests["a"]) as out, Tap(guest) as into:
        out.send(udp(guests["a"], guest, b"served"))
        into.payload(b"served")
    world.client.delete(Vm, name, force=True)
    world.lab.remove_vm(name)


def expect(world, *words, since=0):
    """Wait for a line of the log with all of `words`."""

    def found():
        log = world.deployment.log("southbound")[since:]
        return any(all(word in line for word in words) for line in log.splitlines())

    wait_until(found, f"a line of the log with {words}", 30)


def mark(world):
    return len(world.deployment.log("southbound"))


def greeted(fakes, fake):
    """Connect a fake and wait until it has been told something."""
    fakes.connect(fake)
    fake.wait(lambda: fake.barriers, "a barrier")
    return fake


def test_a_fake_that_behaves_is_served(world, fakes, guests):
    """What the others are compared with, and that it keeps what it is told over a reconnect."""
    fake = greeted(fakes, FakeSwitch(next(_dpids), {1: "tap1", 2: "tap2"}))
    dpid = f"{fake.dpid:016x}"
    world.client.put(Host(id="fake", datapath=dpid))
    world.client.put(Vm(id="f", tenant="red", nics=(_nic(),)))
    told = world.client.place("f", "fake", ["tap1"])
    assert world.client.vm("f", wait=True, revision=told.revision).applied
    assert len(fake.flows) == len(world.client.explain(datapath=dpid).items)
    assert fake.groups
    assert fake.meters
    assert fake.heard.count(wire.BUNDLE_ADD) >= len(fake.flows)
    kept, added = dict(fake.flows), fake.heard.count(wire.BUNDLE_ADD)
    since = mark(world)
    fakes.call(fake.close)
    fakes.connect(fake)
    expect(world, "a switch was compared", dpid, "differences=0", since=since)
    assert (fake.flows, fake.heard.count(wire.BUNDLE_ADD)) == (kept, added)
    _forget_vm(world)


def _nic():
    number = next(_numbers) + 100
    return Nic(mac=f"02:00:00:00:ff:{number:02x}", subnet="one", ipv4=f"10.0.0.{number}")


def _forget_vm(world):
    world.client.delete(Vm, "f", force=True)
    world.client.delete(Host, "fake")


def test_openflow_1_0_only(world, guests):
    since = mark(world)
    address, port = world.lab.controller
    world.lab.vsctl("add-br", "old", "--", "set", "bridge", "old", "datapath_type=netdev",
                    "protocols=OpenFlow10", "fail_mode=secure",
                    "--", "set-controller", "old", f"tcp:{address}:{port}")  # fmt: skip
    try:
        expect(world, "does not speak OpenFlow 1.5", "protocols=OpenFlow15", since=since)
        served(world, guests)
        world.lab.vsctl("set", "bridge", "old", "protocols=OpenFlow10,OpenFlow15")
        dpid = world.lab.vsctl("get", "bridge", "old", "datapath_id").strip().strip('"')
        expect(world, "a switch is connected", dpid, since=since)
    finally:
        world.lab.vsctl("del-br", "old")


def test_a_switch_that_speaks_tls(world, guests, tmp_path):
    """Each time that it comes it is told in a line, and by nothing else."""
    since = mark(world)
    address, port = world.lab.controller
    authority = Authority(tmp_path, "ours")
    badge = authority.issue("DNS:switches")
    world.lab.vsctl("set-ssl", str(badge.key), str(badge.certificate), str(authority.file))
    world.lab.vsctl("add-br", "secret", "--", "set", "bridge", "secret", "datapath_type=netdev",
                    "protocols=OpenFlow15", "fail_mode=secure",
                    "--", "set-controller", "secret", f"ssl:{address}:{port}")  # fmt: skip
    try:
        expect(world, "turned away", "it speaks TLS", "by tcp:", "127.0.0.1", since=since)
        served(world, guests)
    finally:
        world.lab.vsctl("del-br", "secret")
        world.lab.vsctl("del-ssl")
    assert "Traceback" not in world.deployment.log("southbound")[since:]


# --- Bytes that are no OpenFlow


class Sends(FakeSwitch):
    """Sends these bytes at once, or once it has been asked for all that it has."""

    def __init__(self, data, early=False):
        super().__init__(next(_dpids), {1: "tap1"})
        self.data, self.early = data, early

    def greet(self):
        if self.early:
            self.send(self.data)
        else:
            super().greet()

    def barrier(self, xid, body):
        self.send(self.data)
        super().barrier(xid, body)


_RANDOM = random.Random(1).randbytes(70_000)


def _packet_in(length=None, body=b"\xff" * 40):
    length = length or 8 + len(body)
    return wire.HEADER.pack(wire.VERSION, wire.PACKET_IN, length, 0) + body


BYTES = {
    "garbage instead of a hello": (_RANDOM, True),
    "text instead of a hello": (b"GET / HTTP/1.1\r\nHost: pleach\r\n\r\n" * 3_000, True),
    "garbage": (_RANDOM, False),
    "a hello without an end": (wire.HEADER.pack(5, wire.HELLO, 12, 1) + bytes(4), True),
    "another version": (wire.HEADER.pack(9, wire.ECHO_REQUEST, 8, 1), False),
    "a type that there is not": (wire.HEADER.pack(6, 99, 8, 1), False),
    "a length of nothing": (wire.HEADER.pack(6, wire.ECHO_REQUEST, 0, 1) * 3, False),
    "a packet-in of garbage": (_packet_in(), False),
    "a packet-in cut short": (_packet_in(10, b"\0\0"), False),
    "a port status cut short": (wire.HEADER.pack(6, wire.PORT_STATUS, 12, 1) + bytes(4), False),
    "an error cut short": (wire.HEADER.pack(6, wire.ERROR, 9, 1) + b"\0", False),
    "an error about nothing": (wire.HEADER.pack(6, wire.ERROR, 12, 1) + bytes(4), False),
    "a description nobody asked for": (
        wire.HEADER.pack(6, wire.MULTIPART_REPLY, 16, 1) + wire.MULTIPART.pack(1, 0),
        False,
    ),
    "a hello again": (wire.HEADER.pack(6, wire.HELLO, 8, 1), False),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_openflow(world, fakes, guests, name):
    fake = fakes.connect(Sends(*BYTES[name]))
    if fake.early:
        fake.wait(lambda: fake.lost, "the end of the connection")
    else:
        fake.wait(lambda: fake.barriers or fake.lost, "a barrier")
    served(world, guests)
    fakes.call(fake.close)


class Lies(FakeSwitch):
    """Its descriptions are malformed."""

    def __init__(self, kind, body):
        super().__init__(next(_dpids))
        self.kind, self.body = kind, body

    def part(self, xid, kind, body, *, more=False):
        super().part(xid, kind, self.body if kind == self.kind else body, more=more)


LIES = {
    "a flow entry longer than the message": (
        wire.MP_FLOW_DESC,
        b"\x23\x28" + bytes(70),
    ),
    "a flow entry of no length": (wire.MP_FLOW_DESC, bytes(64)),
    "a group of garbage": (wire.MP_GROUP_DESC, b"\x00\x20" + b"\xff" * 30),
    "a meter of half a band": (wire.MP_METER_DESC, b"\x00"),
}


@pytest.mark.parametrize("name", LIES)
def test_descriptions_that_are_malformed(world, fakes, guests, name):
    since = mark(world)
    fake = fakes.connect(Lies(*LIES[name]))
    dpid = f"{fake.dpid:016x}"
    expect(world, "closing a switch's connection", "malformed message", dpid, since=since)
    fake.wait(lambda: fake.lost, "the end of the connection")


NAMES = {
    "dpid 0": (0, {1: "tap1"}),
    "a port number 0": (None, {0: "tap0", 1: "tap1"}),
    "a port without a name": (None, {1: "", 2: "tap2"}),
    "a port name with a blank": (None, {1: "two words", 2: "tap2"}),
    "a port name with a line feed": (None, {1: "a\nb", 2: "tap2"}),
    "two ports of one name": (None, {1: "tap1", 2: "tap1"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be(world, fakes, guests, name):
    dpid, ports = NAMES[name]
    since = mark(world)
    fake = FakeSwitch(next(_dpids) if dpid is None else dpid, ports)
    fakes.connect(fake)
    fake.wait(lambda: fake.barriers or fake.lost, "a barrier, or the end")
    if dpid == 0:
        fake.wait(lambda: fake.lost, "the end of the connection")
        expect(world, "a switch has no datapath id", since=since)
    elif ports.keys() & {0} or set(ports.values()) & {"", "two words", "a\nb"}:
        expect(world, "a port is left out", f"{fake.dpid:016x}", since=since)
    served(world, guests)
    fakes.call(fake.close)


# --- Words in order, deeds not


def test_the_dpid_of_a_switch_that_is_connected(world, fakes, guests):
    """It can take the real one's place, as one that reconnects must; when it goes, nothing of
    the real one's is lost."""
    since = mark(world)
    before = world.tables("leaf1")
    thief = FakeSwitch(int(world.lab.dpid("leaf1"), 16), {1: "leaf1-1"})
    fakes.connect(thief)
    expect(world, "connected again", world.lab.dpid("leaf1"), since=since)
    assert guests["a"].ping(guests["b"].ipv4, count=2)
    fakes.call(thief.close)
    world.whole()
    assert world.tables("leaf1") == before


class Refuses(FakeSwitch):
    """Answers every entry by an error."""

    def bundle_add(self, xid, body):
        inner = body[wire.BUNDLE.size :]
        self.refuse(xid, 5, 1, inner)

    def flow_mod(self, xid, body):
        self.refuse(xid, 5, 1, wire.message(wire.FLOW_MOD, xid, body))

    def group_mod(self, xid, body):
        self.refuse(xid, 6, 3, wire.message(wire.GROUP_MOD, xid, body))


def test_errors_to_every_entry(world, fakes, guests):
    since = mark(world)
    fake = greeted(fakes, Refuses(next(_dpids), {1: "tap1"}))
    dpid = f"{fake.dpid:016x}"
    world.client.put(Host(id="fake", datapath=dpid))
    world.client.put(Vm(id="f", tenant="red", nics=(_nic(),)))
    told = world.client.place("f", "fake", ["tap1"])
    expect(world, "a switch refuses an entry", "FLOW_MOD_FAILED/TABLE_FULL", dpid, since=since)
    with pytest.raises(Problem) as problem:
        world.client.vm("f", wait=True, revision=told.revision)
    assert dpid in problem.value.detail
    assert "TABLE_FULL" in problem.value.detail
    served(world, guests)
    # It is told once each, and not over and over.
    log = world.deployment.log("southbound")[since:]
    lines = [line.split(" ", 1)[1] for line in log.splitlines() if "refuses an entry" in line]
    assert len(lines) == len(set(lines))
    fakes.call(fake.close)
    _forget_vm(world)


class Quits(FakeSwitch):
    """Goes in the middle of its first bundle, and behaves from then on."""

    quits = 1

    def bundle_add(self, xid, body):
        super().bundle_add(xid, body)
        if self.quits and len(self._bundles[int.from_bytes(body[:4], "big")]) > 3:
            self.quits -= 1
            self.close()


def test_going_in_the_middle_of_a_bundle(world, fakes, guests):
    fake = greeted(fakes, Quits(next(_dpids), {1: "tap1"}))
    dpid = f"{fake.dpid:016x}"
    world.client.put(Host(id="fake", datapath=dpid))
    world.client.put(Vm(id="f", tenant="red", nics=(_nic(),)))
    told = world.client.place("f", "fake", ["tap1"])
    fake.wait(lambda: fake.lost == 1, "the end of the connection")
    assert len(fake.flows) < len(world.client.explain(datapath=dpid).items)
    served(world, guests)
    fakes.connect(fake)
    assert world.client.vm("f", wait=True, revision=told.revision).applied
    assert len(fake.flows) == len(world.client.explain(datapath=dpid).items)
    fakes.call(fake.close)
    _forget_vm(world)


class Mute(FakeSwitch):
    """Never answers a barrier."""

    def barrier(self, xid, body):
        self.barriers += 1


class Forgetful(FakeSwitch):
    """Never describes its entries."""

    def part(self, xid, kind, body, *, more=False):
        if kind == wire.MP_PORT_DESC:
            super().part(xid, kind, body, more=more)


class Endless(FakeSwitch):
    """Describes its entries without an end."""

    def part(self, xid, kind, body, *, more=False):
        super().part(xid, kind, body, more=kind != wire.MP_PORT_DESC)


def test_switches_that_do_not_answer(world, fakes, guests):
    """All at once, while a VM moves at the others."""
    since = mark(world)
    kinds = (Mute, Forgetful, Endless)
    silent = [fakes.connect(kind(next(_dpids), {1: "tap1"})) for kind in kinds]
    world.client.put(Host(id="fake", datapath=f"{silent[0].dpid:016x}"))
    silent[0].wait(lambda: silent[0].barriers, "a barrier")
    a, old = guests["a"], guests["a"].active
    port = world.plug(a, "leaf2-h1")
    world.client.start_migration("silent", "a", "leaf1-h1", "leaf2-h1", [port])

    def both_places():
        return any(f"in_port={world.lab.port_number(port)}" in x for x in world.flows("leaf2"))

    wait_until(both_places, "the target is ready")
    a.switch_over(port)
    wait_until(lambda: world.phase("silent") == "settling", "the source is drained", 12)
    a.unplug(old)
    assert a.ping(guests["b"].ipv4, count=2)
    for fake in silent:
        expect(world, "did not answer in time", f"{fake.dpid:016x}", since=since)
        fake.wait(lambda fake=fake: fake.lost, "the end of the connection")
    world.client.delete(Host, "fake")


def test_a_forgotten_switch_is_gone(world, fakes, guests):
    fake = greeted(fakes, FakeSwitch(next(_dpids)))
    dpid = f"{fake.dpid:016x}"
    fakes.call(fake.close)

    def gone():
        return all(d.dpid != dpid or not d.connected for d in world.client.topology().datapaths)

    wait_until(gone, "it is known to be gone")
    world.client.forget_datapath(dpid)
    assert dpid not in {d.dpid for d in world.client.topology().datapaths}
