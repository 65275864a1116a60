"""What answers at the ports of VMs is told from packets that the fabric copies."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.act.dataplane.pipeline import METER_RATES, MeterId, TableId
from controller.agent.tap import Tap
from controller.agent.tasks import Workplace
from controller.api import NewToken, Role
from controller.client import Client
from controller.model.nouns import Host, Service
from controller.observe.applications import policy
from controller.observe.applications.model import features
from controller.observe.applications.training import Sample, train
from controller.settings import AgentSettings, DpiSettings
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.vm import LabVm
from tests.fabric.world import World

pytestmark = pytest.mark.fabric

POLICY = policy.load()
#: What each server says first or answers, and what a client says.
HTTP = (b"", b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
SSH = (b"SSH-2.0-OpenSSH_9.2p1\r\n", b"SSH-2.0-OpenSSH_9.2p1\r\n", b"\0" * 64)
REDIS = (b"", b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")


#: A meter that a test changes is not to be repaired meanwhile.
SETTINGS = {"PLEACH_SOUTHBOUND__RECONCILE_S": "3600"}


def chatter(chance: random.Random, category: str) -> list[tuple[bool, bytes]]:
    """A conversation of a category, in random bytes that nDPI does not know."""
    if category == "messaging":
        return [(n % 2 == 0, chance.randbytes(chance.randint(20, 60))) for n in range(8)]
    return [(True, chance.randbytes(100)), *[(False, chance.randbytes(1_200))] * 7]


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A behavioural classifier, made before the processes start."""
    chance = random.Random(7)

    def sample(category: str, capture: str) -> Sample:
        every_s = 10 ** chance.uniform(-5, -1)
        trace = [
            (n * every_s * chance.uniform(0.5, 1.5), len(data) if client else -len(data))
            for n, (client, data) in enumerate(chatter(chance, category))
        ]
        values = features("tcp", trace)
        assert values is not None
        return Sample(tuple(values), category, capture)

    samples = [
        sample(category, f"{category}-{capture}")
        for category in ("messaging", "file transfer")
        for capture in range(8)
        for _ in range(12)
    ]
    file = tmp_path_factory.mktemp("model") / "model"
    file.write_bytes(train(samples, 1, 0.8, 25).model.to_bytes())
    SETTINGS["PLEACH_DPI__MODEL"] = str(file)


@pytest.fixture(scope="module")
def guests(world: World) -> tuple[LabVm, LabVm]:
    """A client at one edge, and a server at another."""
    world.tenant("red")
    net = world.subnet("net", "red", "10.1.0.0/24")
    hosts = [host.name for host in world.lab.fabric.hosts]
    return world.vm("a", net, hosts[0]), world.vm("b", net, hosts[-1])


def services(world: World) -> dict[str, Service]:
    return world.deployment.store.snapshot().services


@contextmanager
def listening(vm: LabVm, port: int) -> Iterator[socket.socket]:
    with netns.entered(vm.name):
        server = socket.create_server((str(vm.ipv4), port))
    with server:
        yield server


def converse(client: LabVm, server: LabVm, port: int, said: list[tuple[bool, bytes]]) -> None:
    """A connection in which each side says something when the other has heard it."""
    with listening(server, port) as listener:
        with netns.entered(client.name):
            one = socket.create_connection((str(server.ipv4), port), 20)
        two, _ = listener.accept()
        with one, two:
            for from_client, words in said:
                speaker, hearer = (one, two) if from_client else (two, one)
                speaker.sendall(words)
                left = len(words)
                while left:
                    left -= len(hearer.recv(left))


def talk(client: LabVm, server: LabVm, port: int, said: tuple[bytes, bytes, bytes]) -> None:
    """A connection in which a greeting, a request and an answer go over."""
    greeting, request, answer = said
    converse(client, server, port, [(False, greeting), (True, request), (False, answer)])


def talk_until_known(
    world: World, client: LabVm, server: LabVm, port: int, said: tuple[bytes, bytes, bytes]
) -> None:
    """Talk, and again where nothing comes of it: who begins to listen may miss something."""
    key = f"b:tcp:{port}"
    for left in reversed(range(10)):
        talk(client, server, port, said)
        try:
            wait_until(lambda: key in services(world), f"{key} is known", 10.0)
            return
        except TimeoutError:
            if left == 0:
                raise


def forget_cached(world: World) -> None:
    """Have the switches decide anew about every packet. For a moment after their tables have
    changed they go by what they cached before, all the longer the more that is."""
    world.lab.appctl("revalidator/purge")


def copied(world: World, edge: str) -> int:
    """Packets of which the tables of an edge have made a copy."""
    world.lab.appctl("revalidator/wait")  # until then some are counted in its cache alone
    lines = [
        line
        for table in (TableId.TAP_IN, TableId.TAP_OUT)
        for line in world.lab.ofctl("dump-flows", edge, f"table={table}").splitlines()
    ]
    return sum(
        int(line.partition("n_packets=")[2].partition(",")[0]) for line in lines if "clone" in line
    )


def test_services_are_identified_and_then_let_be(world: World, guests: tuple[LabVm, LabVm]) -> None:
    client, server = guests
    edge = server.edge_of(server.active or "")
    for port, said, application in (
        (8123, HTTP, "HTTP"),
        (2222, SSH, "SSH"),
        (7000, REDIS, "RESP"),
    ):
        talk(client, server, port, said)
        key = f"b:tcp:{port}"
        wait_until(lambda: key in services(world), f"{key} is known")  # noqa: B023 - called here
        known = services(world)[key]
        assert (known.application, known.how) == (application, "confirmed")
        assert known.packets <= 12
        assert known.handshake_s is not None
        world.applied()
    forget_cached(world)
    before = copied(world, edge)
    for port, said in ((8123, HTTP), (2222, SSH), (7000, REDIS)):
        talk(client, server, port, said)
    assert copied(world, edge) == before
    # The client offers nothing, and nothing was asked of it.
    assert {service.vm for service in services(world).values()} == {"b"}


def test_of_a_long_connection_little_is_copied(world: World, guests: tuple[LabVm, LabVm]) -> None:
    client, server = guests
    edge = server.edge_of(server.active or "")
    before = copied(world, edge)
    with listening(server, 4000) as listener:
        with netns.entered(client.name):
            one = socket.create_connection((str(server.ipv4), 4000), 20)
        two, _ = listener.accept()
        with one, two:
            for _ in range(100):  # one at a time, for a switch counts a burst late
                one.sendall(b"\x17what nobody knows\x03")
                assert two.recv(100)
    assert 3 <= copied(world, edge) - before <= 16


def test_of_datagrams_that_nobody_answers_little_is_copied(
    world: World, guests: tuple[LabVm, LabVm]
) -> None:
    client, server = guests
    edge = server.edge_of(server.active or "")
    before = copied(world, edge)
    with netns.entered(server.name):
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.entered(client.name):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with silent, one:
        silent.bind((str(server.ipv4), 514))
        silent.settimeout(20)
        for number in range(100):
            one.sendto(b"%d" % number, (str(server.ipv4), 514))
            assert silent.recv(100) == b"%d" % number
    assert 3 <= copied(world, edge) - before <= 16
    assert "b:udp:514" not in services(world)


def bound(world: World, edge: str, rate: int) -> None:
    """Have the meter of copies let so many packets a second up."""
    number = int(MeterId.TAP)
    limits = f"meter={number},pktps,burst,band=type=drop,rate={rate},burst_size={rate}"
    world.lab.ofctl("mod-meter", edge, limits)


def test_packets_go_on_though_there_are_too_many_to_be_copied(
    world: World, guests: tuple[LabVm, LabVm]
) -> None:
    client, server = guests
    edge = server.edge_of(server.active or "")
    with netns.entered(server.name):
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound(world, edge, 1)
    try:
        with silent:
            silent.bind((str(server.ipv4), 515))
            silent.settimeout(20)
            for number in range(200):
                with netns.entered(client.name):
                    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                with one:
                    one.sendto(b"%d" % number, (str(server.ipv4), 515))
                    assert silent.recv(100) == b"%d" % number
        told = world.lab.ofctl("meter-stats", edge, f"meter={int(MeterId.TAP)}")
    finally:
        bound(world, edge, METER_RATES[MeterId.TAP])
    dropped = int(told.partition("0: packet_count:")[2].split()[0])
    assert dropped > 100


def test_a_service_is_looked_at_again(world: World, guests: tuple[LabVm, LabVm]) -> None:
    client, server = guests
    talk(client, server, 8127, HTTP)
    wait_until(lambda: "b:tcp:8127" in services(world), "the service is known")
    first = services(world)["b:tcp:8127"]
    with world.deployment.store.transaction() as tx:
        tx.put(first.model_copy(update={"due": 0.0}))
    wait_until(lambda: services(world)["b:tcp:8127"].tapped, "it is due")
    world.applied()
    forget_cached(world)
    talk(client, server, 8127, REDIS)
    wait_until(lambda: not services(world)["b:tcp:8127"].tapped, "it is known anew")
    assert services(world)["b:tcp:8127"].application == "RESP"


def test_what_nobody_knows_is_told_by_its_behaviour(
    world: World, guests: tuple[LabVm, LabVm]
) -> None:
    client, server = guests
    chance = random.Random(8)
    for _ in range(POLICY.verifying.attempts):
        converse(client, server, 7_500, chatter(chance, "messaging"))
    wait_until(lambda: "b:tcp:7500" in services(world), "it is known")
    known = services(world)["b:tcp:7500"]
    assert (known.how, known.category_how) == ("behavioural", "behavioural")
    assert known.category == "messaging"
    assert known.confidence >= POLICY.behaviour.answer_from


def test_a_scan_finds_no_services(world: World, guests: tuple[LabVm, LabVm]) -> None:
    client, server = guests
    known = set(services(world))
    with netns.entered(client.name):
        for port in range(9_000, 9_200):
            with socket.socket() as probe:
                assert probe.connect_ex((str(server.ipv4), port)) != 0
    # A later service is known after all that came before it was looked at.
    talk(client, server, 8124, HTTP)
    wait_until(lambda: "b:tcp:8124" in services(world), "the last one is known")
    assert set(services(world)) == known | {"b:tcp:8124"}


def test_an_agent_behind_the_dpi_port(world: World, guests: tuple[LabVm, LabVm]) -> None:
    client, server = guests
    edge, host = server.edge_of(server.active or ""), world.lab.fabric.hosts[-1].name
    netns.call("ip", "link", "add", "dpi0", "type", "veth", "peer", "name", "dpi0-agent")
    token = world.client.create_token(NewToken(name="agent", role=Role.HYPERVISOR, host=host))
    work = Workplace(
        AgentSettings(),
        host,
        None,  # type: ignore[arg-type]  # what is told by others
        lambda: Client(world.deployment.url, token.secret),
    )
    stopping = threading.Event()
    agent = threading.Thread(target=Tap(work, DpiSettings(), "dpi0-agent").run, args=(stopping,))
    try:
        for name in ("dpi0", "dpi0-agent"):
            netns.call("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
            netns.call("ip", "link", "set", name, "up")
        world.lab.vsctl("add-port", edge, "dpi0")
        world.client.put(Host(id=host, datapath=world.lab.dpid(edge), dpi_port="dpi0"))
        number = world.lab.port_number("dpi0")
        wait_until(
            lambda: f"output:{number}" in str(world.flows(edge, f"table={TableId.TAP_IN}")),
            "copies go to the DPI port",
        )
        forget_cached(world)
        agent.start()
        _until_listened_to("dpi0-agent")
        talk_until_known(world, client, server, 8125, HTTP)
        known = services(world)["b:tcp:8125"]
        assert (known.application, known.how) == ("HTTP", "confirmed")
        assert known.response_s is not None
        log = world.deployment.log("southbound")
        assert "service=tcp/8125" not in log
        # Without the port they go up again.
        world.lab.vsctl("del-port", edge, "dpi0")
        wait_until(
            lambda: "CONTROLLER" in str(world.flows(edge, f"table={TableId.TAP_IN}")),
            "copies go to the controller",
        )
        forget_cached(world)
        talk_until_known(world, client, server, 8126, HTTP)
        wait_until(
            lambda: "service=tcp/8126" in world.deployment.log("southbound"),
            "the southbound process says so",
        )
    finally:
        stopping.set()
        if agent.ident is not None:
            agent.join(20)
        netns.call("ip", "link", "del", "dpi0")


def _until_listened_to(interface: str) -> None:
    number = str(socket.if_nametoindex(interface))

    def listened_to() -> bool:
        _, *sockets = Path("/proc/net/packet").read_text().splitlines()
        # The switch has a socket of its own at the other end only.
        return any(line.split()[4] == number for line in sockets)

    wait_until(listened_to, f"somebody listens to {interface}", 60.0)
