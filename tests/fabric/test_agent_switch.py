"""An agent beside the switch of a host, without libvirt: the ports tell which VMs are there."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from controller.agent.agent import Agent
from controller.api import NewToken, Role
from controller.client import Client
from controller.settings import load
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.sandbox import work_dir
from mininet_labs.vm import LabVm
from tests.fabric.world import World

pytestmark = pytest.mark.fabric
SETTINGS = {"PLEACH_HISTORY__FLUSH_S": "0.2"}


@contextmanager
def agent(world: World, host: str, **chosen: str) -> Iterator[Agent]:
    """An agent at work at `host`, with a token of its own."""
    name = f"agent-{host}-{time.time_ns()}"
    made = NewToken(name=name, role=Role.HYPERVISOR, host=host)
    token = world.client.create_token(made).secret
    named = {f"PLEACH_AGENT__{key.upper()}": value for key, value in chosen.items()}
    settings = load(
        None,
        {
            "PLEACH_STATE_DIR": str(work_dir() / name),
            "PLEACH_AGENT__LIBVIRT": "",
            "PLEACH_AGENT__BRIDGE": world.edge(host),
            "PLEACH_AGENT__INTERVAL_S": "1",
            **named,
        },
    )
    url = world.deployment.url
    with closing(Agent(settings, host, lambda: Client(url, token, attempts=1))) as made_agent:
        stopping = threading.Event()
        thread = threading.Thread(target=made_agent.run, args=(stopping,))
        thread.start()
        try:
            yield made_agent
        finally:
            stopping.set()
            thread.join(30)


def plug(world: World, guest: LabVm, host: str, **ids: str) -> str:
    """Plug a guest in and name it to its switch, as a hypervisor does."""
    port = world.plug(guest, host)
    words = [f"external_ids:{name.replace('_', '-')}={value}" for name, value in ids.items()]
    world.lab.vsctl("set", "Interface", port, *words)
    return port


@contextmanager
def connected(guest: LabVm, peer: LabVm) -> Iterator[socket.socket]:
    """The guest's end of a TCP connection to the peer."""
    with netns.entered(peer.name):
        listening = socket.create_server(("", 5_001))
    with netns.entered(guest.name):
        calling = socket.socket()
    with closing(listening), closing(calling):
        calling.settimeout(20)
        calling.connect((str(peer.ipv4), 5_001))
        yield calling


def placed(world: World, vm: str) -> tuple[str, tuple[str, ...]] | None:
    found = world.client.vm(vm).placement
    return None if found is None else (found.host, found.ports)


def values(world: World, subject: str, metric: str) -> list[float]:
    now = time.time()
    found = world.client.history(subject, [metric], now - 300, now + 10).metrics[metric]
    return [value for value in found if value is not None]


def test_ports_place_vms_and_what_they_do_is_told(world: World) -> None:
    world.tenant("acme")
    subnet = world.subnet("web", "acme", "10.1.0.0/24")
    hosts = [host.name for host in world.lab.fabric.hosts]
    here, there = hosts[0], hosts[-1]
    guest, peer = world.define("web-1", subnet), world.define("db-1", subnet)
    port = plug(world, guest, here, iface_id="web-1", vm_pid=str(os.getpid()), vm_cpus="2")
    with agent(world, here) as first:
        wait_until(lambda: placed(world, "web-1") == (here, (port,)), "the agent places the VM")
        world.place(peer, there)
        world.applied()
        # One connection, which stands while it is counted, and some bytes over it.
        wait_until(lambda: values(world, "web-1", "net_tx"), "its port is counted")
        with connected(guest, peer) as calling:
            calling.sendall(bytes(100_000))
            wait_until(lambda: sum(values(world, "web-1", "net_tx")) > 0, "bytes are told")
            wait_until(
                lambda: max(values(world, "web-1", "connections"), default=0) >= 1,
                "the connection is counted",
            )
            wait_until(lambda: values(world, "web-1", "cpu"), "the process of the VM is told")
        assert max(values(world, "web-1", "net_tx")) < 1e6
        assert values(world, "web-1", "memory")[0] > 1e6
        assert values(world, here, "host_cores") == pytest.approx(
            [float(os.cpu_count() or 0)] * len(values(world, here, "host_cores"))
        )
        assert first.watcher.sight.troubles == {}
        guest.unplug(port)
        wait_until(lambda: placed(world, "web-1") is None, "the agent removes the VM")
    world.drop(guest, peer)


def test_a_mac_names_the_vm_and_a_switch_that_is_away_removes_nobody(world: World) -> None:
    subnet = world.subnet("mac", world.tenant("macs").id, "10.2.0.0/24")
    here = world.lab.fabric.hosts[0].name
    guest = world.define("by-mac", subnet)
    port = plug(world, guest, here, attached_mac=guest.mac.upper(), iface_id="something")
    with agent(world, here, identify="mac") as first:
        wait_until(lambda: placed(world, "by-mac") == (here, (port,)), "its MAC places the VM")
        assert first.outbox.told().keys() == {"by-mac"}
    with agent(world, here, identify="mac", bridge="nowhere") as second:
        wait_until(lambda: second.watcher.sight.troubles, "it is told")
        cause, mend = second.watcher.sight.troubles["switch"]
        assert "there is no such bridge" in cause
        assert "agent.bridge" in mend
        assert second.outbox.events(9) == []
    assert placed(world, "by-mac") == (here, (port,))
    world.drop(guest)


def test_ports_that_name_no_vm_are_told_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    subnet = world.subnet("bare", world.tenant("bare").id, "10.3.0.0/24")
    here = world.lab.fabric.hosts[0].name
    guest = world.define("bare", subnet)
    port = plug(world, guest, here, vm_id="of-another-kind")
    with agent(world, here) as first:
        wait_until(lambda: first.status()["hints"], "it is told")
        told = first.status()["hints"]["VMs"]
        assert f"no port of bridge {world.edge(here)}" in told["cause"]
        assert "external_ids iface-id" in told["cause"]
        assert "external_ids:iface-id=" in told["mend"]
        world.lab.vsctl("set", "Interface", port, "external_ids:more=1")
        world.lab.vsctl("set", "Interface", port, "external_ids:iface-id=bare")
        wait_until(lambda: placed(world, "bare") == (here, (port,)), "the agent places the VM")
        assert first.status()["hints"] == {}
        guest.unplug(port)
        wait_until(lambda: placed(world, "bare") is None, "the agent removes the VM")
        # How a port names its VM is known by now: there is none, as may be.
        assert first.status()["hints"] == {}
    assert [r.getMessage() for r in caplog.records].count("no VM is found") == 1
    world.drop(guest)
