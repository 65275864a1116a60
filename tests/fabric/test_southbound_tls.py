"""Switches that are controlled over TLS, and those that the controller turns away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl

import pytest

from controller.act.dataplane.openflow import wire
from controller.model.nouns import Host, Nic, Vm
from mininet_labs.deployment import Deployment, wait_until
from mininet_labs.lab import Lab
from mininet_labs.sandbox import work_dir
from tests.certificates import Authority
from tests.fabric.world import Tap, World, udp
from tests.fakeswitch import Fakes, FakeSwitch
from topologies.generate import leaf_spine

pytestmark = pytest.mark.fabric

#: VMs of the large table; each is some sixteen rules of its edge.
MANY = 250
HELLO = wire.HEADER.pack(wire.VERSION, wire.HELLO, 8, 1)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "others")


@pytest.fixture(scope="module")
def badge(ours):
    """The switches' certificate."""
    return ours.issue("DNS:switches")


@pytest.fixture(scope="module")
def world(ours, badge):
    own = ours.issue("IP:127.0.0.1")
    tls = {"CERTIFICATE": own.certificate, "KEY": own.key, "CLIENT_CA": ours.file}
    settings = {f"PLEACH_SOUTHBOUND__TLS__{name}": str(path) for name, path in tls.items()}
    settings["PLEACH_SOUTHBOUND__RECONCILE_S"] = "1"
    with Deployment(work_dir() / "tls", settings) as deployment:
        deployment.start()
        with Lab(leaf_spine(2, 1)) as lab:
            here = World(lab, deployment)
            for host in lab.fabric.hosts:
                deployment.client.put(Host(id=host.name, datapath=lab.dpid(host.edge)))
            carry(lab, badge, ours)
            for switch in lab.fabric.switches:
                point(here, switch.name)
            here.whole()
            yield here
            log = deployment.log("southbound")
    assert "Traceback" not in log


def carry(lab, certificate, authority):
    """Give Open vSwitch a certificate and whom to trust; connections that stand are kept."""
    lab.vsctl("set-ssl", str(certificate.key), str(certificate.certificate), str(authority.file))


def point(world, bridge, scheme="ssl"):
    """Point a bridge at the controller."""
    address, port = world.deployment.controller
    world.lab.vsctl(
        *("set-controller", bridge, f"{scheme}:{address}:{port}"),
        *("--", "set", "Controller", bridge, "max_backoff=1000", "connection_mode=out-of-band"),
    )


@pytest.fixture(scope="module")
def guests(world):
    world.tenant("red")
    one = world.subnet("one", "red", "10.0.0.0/16")
    return {"a": world.vm("a", one, "leaf1-h1"), "b": world.vm("b", one, "leaf2-h1")}


@pytest.fixture
def bridge(world):
    """One more bridge, without a controller."""
    settings = ("datapath_type=netdev", "protocols=OpenFlow15", "fail_mode=secure")
    world.lab.vsctl("add-br", "extra", "--", "set", "bridge", "extra", *settings)
    yield "extra"
    dpid = dpid_of(world, "extra")
    world.lab.vsctl("del-br", "extra")
    if dpid in connected(world):
        wait_until(lambda: dpid not in connected(world), "the extra bridge is gone")
        world.client.forget_datapath(dpid)


def dpid_of(world, bridge):
    return world.lab.vsctl("get", "bridge", bridge, "datapath_id").strip().strip('"')


def connected(world):
    return {p.datapath for p in world.client.topology().progress if p.connected}


def served(world, guests):
    """A VM comes, is reached and goes."""
    guest = world.vm("proof", world.subnets["a"], "leaf2-h2")
    with Tap(guests["a"]) as out, Tap(guest) as into:
        out.send(udp(guests["a"], guest, b"served"))
        into.payload(b"served")
    world.drop(guest)


def mark(world):
    return len(world.deployment.log("southbound"))


def expect(world, *words, since):
    """Wait for a line of the log with all of `words`."""

    def found():
        log = world.deployment.log("southbound")[since:]
        return any(all(word in line for word in words) for line in log.splitlines())

    wait_until(found, f"a line of the log with {words}")


def test_switches_are_programmed_over_tls(world, guests):
    world.lab.wait_connected()
    assert world.lab.vsctl("--columns=target", "list", "Controller").count('"ssl:') == 3
    assert guests["a"].ping(guests["b"].ipv4, count=2)
    served(world, guests)


def test_southbound_is_killed_and_started_again(world, guests):
    before = world.tables("leaf1", "leaf2")
    world.deployment.kill("southbound")
    assert guests["a"].ping(guests["b"].ipv4, count=2)
    world.deployment.launch("southbound")
    world.whole()
    assert world.tables("leaf1", "leaf2") == before
    served(world, guests)


# --- Who is turned away


def test_a_certificate_of_another_authority(world, guests, bridge, ours, others, badge):
    since = mark(world)
    carry(world.lab, others.issue("DNS:switches"), ours)
    try:
        point(world, bridge)
        expect(world, "turned away", "southbound.tls.client_ca", "127.0.0.1", since=since)
        served(world, guests)
        assert dpid_of(world, bridge) not in connected(world)
    finally:
        carry(world.lab, badge, ours)
    wait_until(lambda: dpid_of(world, bridge) in connected(world), "it is let in with ours")


def test_a_switch_that_does_not_trust_the_controller(world, guests, bridge, ours, others, badge):
    since = mark(world)
    carry(world.lab, badge, others)
    try:
        point(world, bridge)
        expect(world, "turned away", "does not trust", "ovs-vsctl set-ssl", since=since)
        served(world, guests)
    finally:
        carry(world.lab, badge, ours)
    wait_until(lambda: dpid_of(world, bridge) in connected(world), "it is let in with ours")


def test_a_switch_without_tls(world, guests, bridge):
    since = mark(world)
    point(world, bridge, "tcp")
    expect(world, "turned away", "ssl:", since=since)
    served(world, guests)
    assert dpid_of(world, bridge) not in connected(world)
    point(world, bridge)
    wait_until(lambda: dpid_of(world, bridge) in connected(world), "it is let in with TLS")


@contextlib.contextmanager
def dialled(world):
    """A TCP connection to the controller."""
    with socket.create_connection(world.deployment.controller, timeout=30) as connection:
        yield connection


def context(ours, certificate=None):
    made = ssl.create_default_context(cafile=ours.file)
    if certificate is not None:
        made.load_cert_chain(*certificate)
    return made


class SecureFakes(Fakes):
    """Fakes that connect over TLS."""

    def __init__(self, controller, tls):
        super().__init__(controller)
        self.tls = tls

    def connect(self, fake):
        address, port = self.controller
        connecting = self._loop.create_connection(lambda: fake, address, port, ssl=self.tls)
        asyncio.run_coroutine_threadsafe(connecting, self._loop).result(timeout=10)
        self._fakes.append(fake)
        return fake


@contextlib.contextmanager
def secured(world, ours, badge):
    """A TLS connection to the controller, with its hello read."""
    with (
        dialled(world) as plain,
        context(ours, badge).wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        assert read(connection, 8)[1] == wire.HELLO
        yield connection


def read(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the connection has ended"
        data += piece
    return data


def ended(connection):
    """Return once the other side has ended a connection."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while connection.recv(65_536):
            pass


def test_no_certificate(world, guests, ours):
    since = mark(world)
    with dialled(world) as plain, contextlib.suppress(ssl.SSLError, ConnectionError):
        ended(context(ours).wrap_socket(plain, server_hostname="127.0.0.1"))
    expect(world, "turned away", "no certificate", "ovs-vsctl set-ssl", since=since)
    served(world, guests)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_version_that_is_too_old(world, ours, badge):
    since = mark(world)
    old = context(ours, badge)
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with dialled(world) as plain, pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    expect(world, "turned away", "TLS 1.2", since=since)


def test_who_says_nothing_is_not_waited_for(world, guests):
    since = mark(world)
    with dialled(world) as silent:
        served(world, guests)
        ended(silent)
    expect(world, "turned away", "no TLS handshake within", since=since)


# --- What comes in


def test_messages_in_pieces(world, guests, ours, badge):
    """A record of its own for each byte, and then many messages in one."""
    asked = wire.HEADER.pack(wire.VERSION, wire.ECHO_REQUEST, 13, 7) + b"hello"
    with secured(world, ours, badge) as connection:
        for data in (HELLO, asked):
            for at in range(len(data)):
                connection.sendall(data[at : at + 1])
        connection.sendall(asked * 3_000)
        # A features request comes first, and then each echo's reply.
        size = 8 + len(asked) * 3_001
        heard = read(connection, size)
    assert heard[1] == wire.FEATURES_REQUEST
    assert heard[8:].count(b"hello") == 3_001
    served(world, guests)


BROKEN = {"no record": b"\xff" * 100, "a record of no key": b"\x17\x03\x03\x00\x20" + bytes(32)}


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_no_tls_after_a_handshake(world, guests, ours, badge, name):
    """The session cannot go on; it ends, and the log tells why."""
    since = mark(world)
    with secured(world, ours, badge) as connection:
        connection.sendall(HELLO)
        read(connection, 8)
        os.write(connection.fileno(), BROKEN[name])
        ended(connection)
    expect(world, "connection is broken", "TLS", since=since)
    served(world, guests)


def test_a_connection_that_the_controller_ends(world, guests, ours, badge):
    """Nothing that comes in on it afterwards is mistaken for OpenFlow."""
    since = mark(world)
    with SecureFakes(world.deployment.controller, context(ours, badge)) as fakes:
        first, second = FakeSwitch(0xFA4E, {1: "tap1"}), FakeSwitch(0xFA4E, {1: "tap1"})
        fakes.connect(first)
        first.wait(lambda: first.barriers, "a barrier")
        fakes.connect(second)
        first.wait(lambda: first.lost, "the end of the connection")
        expect(world, "connected again", "fa4e", since=since)
        second.wait(lambda: second.barriers, "a barrier")
        served(world, guests)
    wait_until(lambda: f"{0xFA4E:016x}" not in connected(world), "the fake is gone")
    world.client.forget_datapath(f"{0xFA4E:016x}")


# --- Large tables


def test_a_table_of_thousands_of_rules(world, guests):
    """Written VM by VM, written at once to a switch that has lost them, and read again."""
    ports = [f"many{n}" for n in range(MANY)]
    world.lab.silent_ports("leaf1", ports)
    for n, port in enumerate(ports):
        address = f"10.0.{1 + n // 200}.{1 + n % 200}"
        nic = Nic(mac=f"02:00:00:01:{n // 256:02x}:{n % 256:02x}", subnet="one", ipv4=address)
        world.client.put(Vm(id=port, tenant="red", nics=(nic,)))
        world.client.place(port, "leaf1-h1", [port])
    world.applied()
    before = world.tables("leaf1")
    assert len(before) > 3_000, len(before)
    world.deployment.kill("southbound")
    world.lab.ofctl("del-flows", "leaf1")
    world.deployment.launch("southbound")
    wait_until(lambda: world.tables("leaf1") == before, "all are there again")
    world.deployment.kill("southbound")
    since = mark(world)
    world.deployment.launch("southbound")
    world.whole()
    expect(world, "was compared", world.lab.dpid("leaf1"), "differences=0", since=since)
    assert world.tables("leaf1") == before
    assert guests["a"].ping(guests["b"].ipv4, count=2)
    for port in ports:
        world.client.delete(Vm, port, force=True)
    world.applied()
    world.lab.remove_ports("leaf1", ports)
    assert len(world.tables("leaf1")) < 1_000
