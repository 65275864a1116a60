"""Switches that answer wrongly on purpose, slowly, or not for long: the others are served on, what
is kept for them is bounded, and once they are honest they come to have what they are to have.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket

import pytest

from controller.act.dataplane.openflow import wire
from controller.model.nouns import Host, Nic, Vm
from mininet_labs.deployment import wait_until
from tests.fakeswitch import Fakes, FakeSwitch

pytestmark = pytest.mark.fabric

SETTINGS = {"PLEACH_SOUTHBOUND__RECONCILE_S": "1"}
_dpids = itertools.count(0x11E000)
_numbers = itertools.count(1)
#: BUNDLE_FAILED/MSG_FAILED and FLOW_MOD_FAILED/TABLE_FULL.
_MESSAGE_FAILED, _TABLE_FULL = (17, 15), (5, 1)


@pytest.fixture(scope="module")
def fakes(world):
    world.tenant("red")
    world.subnet("one", "red", "10.0.0.0/16", "fd00::/64")
    with Fakes(world.deployment.controller) as fakes:
        yield fakes


@pytest.fixture(scope="module", autouse=True)
def silent(world):
    """Connections that never say who they are, or only half of it, beside all the others."""
    silent = [socket.create_connection(world.deployment.controller, 60) for _ in range(100)]
    for number, one in enumerate(silent):
        one.send(wire.HEADER.pack(6, wire.HELLO, 8, 1)[: number % 8])
    yield silent
    for one in silent:
        one.close()


@pytest.fixture(scope="module")
def honest(world, fakes):
    """A fake that behaves, next to all the others; it gets a VM whenever somebody asks."""
    return Subject(world, fakes, FakeSwitch)


@pytest.fixture(scope="module", autouse=True)
def memory(world, fakes):
    """After all of it the process is not much larger than it was."""
    before = world.deployment.memory_mb("southbound")
    yield
    assert world.deployment.memory_mb("southbound") < before + 250


class Subject:
    """A fake with a host on it, and VMs that come and go there."""

    def __init__(self, world, fakes, kind, *arguments):
        self.world = world
        self.name = f"host{next(_numbers)}"
        self.ports = {n: f"{self.name}-{n}" for n in range(1, 40)}
        self.fake = kind(next(_dpids), self.ports, *arguments)
        fakes.connect(self.fake)
        self.fake.wait(lambda: self.fake.barriers, "a barrier")
        self.dpid = f"{self.fake.dpid:016x}"
        world.client.put(Host(id=self.name, datapath=self.dpid))
        self._free = iter(self.ports.values())
        self.vms = []

    def vm(self):
        """One more VM there; the revision of it."""
        number = next(_numbers)
        name = f"vm{number}"
        mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
        nic = {"mac": mac, "subnet": "one", "ipv4": f"10.0.{number >> 8}.{number & 255}"}
        nic["ipv6"] = f"fd00::{number + 16:x}"
        self.world.client.put(Vm(id=name, tenant="red", nics=(Nic.model_validate(nic),)))
        self.vms.append(name)
        return self.world.client.place(name, self.name, [next(self._free)]).revision

    def wanted(self):
        """How many flow entries, groups and meters it is to have."""
        return len(self.world.client.explain(datapath=self.dpid).items)

    def has(self):
        return len(self.fake.flows)

    def settled(self, revision=0, timeout_s=40.0):
        """Wait until the switch is said to have all, and it has what it is to have."""
        revision = revision or self.world.client.topology().revision

        def done():
            told = {p.datapath: p for p in self.world.client.topology().progress}
            mine = told.get(self.dpid)
            return mine and mine.connected and not mine.pending and mine.revision >= revision

        wait_until(done, f"{self.name} has confirmed", timeout_s)
        wait_until(lambda: self.has() == self.wanted(), f"{self.name} has it all", timeout_s)

    def gone(self):
        for vm in self.vms:
            self.world.client.delete(Vm, vm, force=True)
        self.world.client.delete(Host, self.name)


@pytest.fixture
def subject(world, fakes):
    """Makes a fake of a kind that has what it is to have."""
    made = []

    def make(kind, *arguments):
        subject = Subject(world, fakes, kind, *arguments)
        made.append(subject)
        subject.settled(subject.vm())
        return subject

    yield make
    for one in made:
        fakes.call(one.fake.close)
        one.gone()
    here = {one.dpid for one in made}

    def gone():
        told = world.client.topology().datapaths
        return not any(d.connected for d in told if d.dpid in here)

    wait_until(gone, "they are known to be gone")
    for dpid in here:
        world.client.forget_datapath(dpid)


class Moody(FakeSwitch):
    """Behaves for as long as it is in the mood."""

    honest = True

    def later(self, seconds, function, *arguments):
        """Do something then, if the connection is still the same."""
        transport = self._transport

        def do():
            if self._transport is transport:
                function(*arguments)

        asyncio.get_running_loop().call_later(seconds, do)


class Late(Moody):
    """Answers barriers seconds later, echo requests at once."""

    def barrier(self, xid, body):
        if self.honest:
            super().barrier(xid, body)
        else:
            self.later(2.0, super().barrier, xid, body)


class Errs(Moody):
    """Refuses some messages at random; a bundle with one of them is not committed."""

    def __init__(self, dpid, ports):
        super().__init__(dpid, ports)
        self.random = random.Random(dpid)
        self.spoilt = False

    def bundle_add(self, xid, body):
        if not self.honest and self.random.random() < 0.2:
            self.spoilt = True
            self.refuse(xid, *_TABLE_FULL, body[wire.BUNDLE.size :])
        else:
            super().bundle_add(xid, body)

    def bundle_control(self, xid, body):
        bundle, step, _ = wire.BUNDLE.unpack_from(body)
        if step == 4 and self.spoilt:
            self.spoilt = False
            self._bundles.pop(bundle, None)
            self.refuse(xid, *_MESSAGE_FAILED, wire.message(wire.BUNDLE_CONTROL, xid, body))
        else:
            super().bundle_control(xid, body)


class Halves(Moody):
    """Does the first half of a bundle, and says that it did none of it, or all."""

    def __init__(self, dpid, ports, says):
        super().__init__(dpid, ports)
        self.says = says

    def bundle_control(self, xid, body):
        bundle, step, _ = wire.BUNDLE.unpack_from(body)
        if step == 4 and not self.honest:
            held = self._bundles.get(bundle, [])
            self._bundles[bundle] = held[: len(held) // 2]
            if self.says == "none":
                for inner in self._bundles.pop(bundle):
                    _, kind, _, inner_xid = wire.HEADER.unpack_from(inner)
                    self.message(kind, inner_xid, inner[wire.HEADER_SIZE :])
                self.refuse(xid, *_MESSAGE_FAILED, wire.message(wire.BUNDLE_CONTROL, xid, body))
                return
        super().bundle_control(xid, body)


class Phantoms(Moody):
    """Tells of entries that are not there, and not of some that are; counters say anything."""

    def flow_descs(self):
        found = super().flow_descs()
        if self.honest:
            return found
        phantoms = [
            entry[:4] + bytes([200]) + entry[5:16] + random.randbytes(8) + entry[24:]
            for entry in found
        ]
        return [*found[::2], *phantoms]


class Duplicates(Moody):
    """Sends each part of a description twice, and one of a question that nobody asked."""

    def part(self, xid, kind, body, *, more=False):
        if not self.honest and kind != wire.MP_PORT_DESC:
            super().part(xid ^ 0x5A5A5A5A, kind, body)
            super().part(xid, kind, body, more=True)
        super().part(xid, kind, body, more=more)


class Endless(Moody):
    """Tells of ever more entries that there are not."""

    told = 0

    def part(self, xid, kind, body, *, more=False):
        if self.honest or kind != wire.MP_FLOW_DESC:
            super().part(xid, kind, body, more=more)
            return
        match = bytes.fromhex("0001000c80000004")
        tail = bytes(4) + bytes.fromhex("0000000400000000")
        head = wire.FLOW_DESC.pack(48, 0, 1, 0, 0, 0, 0, 0)
        entries = [head + match + (self.told + n).to_bytes(4, "big") + tail for n in range(1_000)]
        self.told += len(entries)
        super().part(xid, kind, b"".join(entries), more=True)
        self.later(0.001, self.part, xid, kind, body)


class Chatters(Moody):
    """Complains of what nobody did, without a pause."""

    complaints = 0

    def barrier(self, xid, body):
        super().barrier(xid, body)
        if not self.honest and not self.complaints:
            self.chatter()

    def chatter(self):
        for code in range(500):
            self.refuse(0xDEAD, 2, code, bytes(64))
        self.complaints += 500
        if not self.honest and self.complaints < 100_000:
            self.later(0.001, self.chatter)


class Slow(Moody):
    """Reads a little now and then, through a small window."""

    def connection_made(self, transport):
        end = transport.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        super().connection_made(transport)

    def data_received(self, data):
        super().data_received(data)
        if not self.honest and self._transport is not None:
            self._transport.pause_reading()
            self.later(0.05, self._transport.resume_reading)


class Deaf(Moody):
    """Reads nothing any more, and asks for echoes."""

    def data_received(self, data):
        super().data_received(data)
        if not self.honest and self._transport is not None:
            self._transport.pause_reading()
            self.ask()

    def ask(self):
        for xid in range(1_000):
            self.reply(wire.ECHO_REQUEST, xid, bytes(1_000))
        self.later(0.01, self.ask)


LIARS = {
    "late barriers": (Late,),
    "errors at random": (Errs,),
    "half bundles, said not to be done": (Halves, "none"),
    "half bundles, said to be done": (Halves, "all"),
    "phantoms": (Phantoms,),
    "parts twice, and of another question": (Duplicates,),
    "entries without end": (Endless,),
    "complaints without end": (Chatters,),
    "reading slowly": (Slow,),
    "reading nothing": (Deaf,),
}


#: What the log says of some of them.
TOLD = {
    "errors at random": "a switch refuses an entry",
    "entries without end": "more than 100000 entries",
    "complaints without end": "an error that no change explains",
    "reading nothing": "it does not take what it is sent",
}


@pytest.mark.parametrize("name", LIARS)
def test_the_others_are_served_and_it_is_put_right_in_the_end(world, fakes, honest, subject, name):
    """While it lies, a VM comes at it and another one at a switch that is honest."""
    liar = subject(*LIARS[name])
    since = len(world.deployment.log("southbound"))
    liar.fake.honest = False
    revisions = [liar.vm(), honest.vm(), liar.vm(), honest.vm()]
    honest.settled(revisions[-1])
    if name in TOLD:
        wait_until(lambda: TOLD[name] in world.deployment.log("southbound")[since:], TOLD[name])
    honest.settled(honest.vm())
    liar.fake.honest = True
    fakes.call(liar.fake.close)
    fakes.connect(liar.fake)
    liar.settled(revisions[-2])
    log = world.deployment.log("southbound")[since:]
    # Told once each, however often.
    assert log.count("an error that no change explains") <= 20


def test_a_storm_of_reconnects(world, fakes, subject, honest):
    """Four switches that go as soon as they have been told something, fifteen times each."""

    class Stormy(Moody):
        honest = True

        def barrier(self, xid, body):
            super().barrier(xid, body)
            if not self.honest:
                self.close()

    storm = [subject(Stormy) for _ in range(4)]
    for one in storm:
        one.fake.honest = False
    for turn in range(15):
        for one in storm:
            fakes.call(one.fake.close)
            fakes.connect(one.fake)
        if turn % 5 == 0:
            honest.settled(honest.vm())
    for one in storm:
        one.fake.honest = True
        fakes.call(one.fake.close)
        fakes.connect(one.fake)
    for one in storm:
        one.settled()


def test_two_switches_of_one_datapath_id(world, fakes, subject, honest):
    """Each takes the other's place, for as long as both connect again at once."""
    first = subject(FakeSwitch)
    twin = FakeSwitch(first.fake.dpid, first.ports)
    for _ in range(15):
        fakes.connect(twin)
        first.fake.wait(lambda: not first.fake.connected, "the first one is sent away")
        fakes.connect(first.fake)
        twin.wait(lambda: not twin.connected, "the twin is sent away")
    honest.settled(honest.vm())
    first.settled(first.vm())


def test_connections_that_say_nothing(world, silent):
    """They are ended, and nobody waited for them."""
    for one in silent:
        while one.recv(4096):
            pass
    assert world.deployment.log("southbound").count("it did not say who it is") == len(silent)
