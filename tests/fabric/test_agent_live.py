"""Agents beside real libvirtds with real guests: what these use, a libvirtd that is killed, and a
guest that moves live from one to the other.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from controller.agent.agent import Agent
from controller.api import NewToken, Role
from controller.client import Client
from controller.model.nouns import Host, Migration, Subnet, Tenant, Vm
from controller.settings import load
from mininet_labs import deployment, netns
from mininet_labs.deployment import wait_until
from mininet_labs.sandbox import work_dir
from tests.libvirtd import Libvirtd

pytestmark = pytest.mark.fabric
VM, MAC = "web-1", "52:54:00:00:00:01"
HOSTS = {"hv1": f"{1:016x}", "hv2": f"{2:016x}"}
TAPS = {"hv1": "tap-a", "hv2": "tap-b"}
WAIT_S = 60


@pytest.fixture(scope="module")
def brain() -> Iterator[deployment.Deployment]:
    """A brain that knows of the VM and the hosts."""
    named = {"PLEACH_HISTORY__FLUSH_S": "0.2"}
    with deployment.Deployment(work_dir() / "live", named) as found:
        found.launch("brain")
        client = found.client
        client.put(Tenant(id="acme"))
        cidr = {"id": "web", "tenant": "acme", "cidr": "10.1.0.0/24"}
        client.put(Subnet.model_validate(cidr))
        for host, dpid in HOSTS.items():
            client.put(Host(id=host, datapath=dpid))
        nics = [{"mac": MAC, "subnet": "web"}]
        client.put(Vm.model_validate({"id": VM, "tenant": "acme", "nics": nics}))
        yield found


@pytest.fixture
def taps() -> Iterator[None]:
    """A tap at each host, which QEMU may use."""
    for tap in TAPS.values():
        netns.call("ip", "tuntap", "add", "dev", tap, "mode", "tap", "user", "nobody")
        netns.call("ip", "link", "set", tap, "up")
    yield
    for tap in TAPS.values():
        netns.call("ip", "link", "del", tap)


@contextmanager
def agent(brain: deployment.Deployment, host: str, server: Libvirtd) -> Iterator[Agent]:
    """An agent at work at `host`."""
    made = NewToken(name=f"agent-{host}", role=Role.HYPERVISOR, host=host)
    token = brain.client.create_token(made).secret
    settings = load(
        None,
        {
            "PLEACH_STATE_DIR": str(work_dir() / f"live-{host}"),
            "PLEACH_AGENT__LIBVIRT": server.uri,
            "PLEACH_AGENT__INTERVAL_S": "1",
        },
    )
    with closing(Agent(settings, host, lambda: Client(brain.url, token, attempts=1))) as working:
        stopping = threading.Event()
        thread = threading.Thread(target=working.run, args=(stopping,))
        thread.start()
        try:
            yield working
        finally:
            stopping.set()
            thread.join(30)


def placed(brain: deployment.Deployment) -> tuple[str, tuple[str, ...]] | None:
    found = brain.client.vm(VM).placement
    return None if found is None else (found.host, found.ports)


def values(brain: deployment.Deployment, metric: str) -> list[float]:
    now = time.time()
    found = brain.client.history(VM, [metric], now - 300, now + 10).metrics[metric]
    return [value for value in found if value is not None]


def test_a_guest_is_told_of_wherever_it_runs(brain: deployment.Deployment, taps: None) -> None:
    with (
        Libvirtd() as first,
        Libvirtd() as second,
        agent(brain, "hv1", first) as here,
        agent(brain, "hv2", second) as there,
    ):
        first.guest(VM, MAC, TAPS["hv1"])
        wait_until(lambda: placed(brain) == ("hv1", ("tap-a",)), "it is placed", WAIT_S)
        # What it uses, as QEMU tells it.
        wait_until(lambda: len(values(brain, "cpu")) > 1, "its use is told", WAIT_S)
        assert 0 < max(values(brain, "cpu")) <= 1.5
        assert min(values(brain, "memory")) > 1e7
        assert values(brain, "memory_size")[0] == 32 << 20
        assert values(brain, "disk_read")
        assert values(brain, "net_rx") == [0.0] * len(values(brain, "net_rx"))  # no driver

        # A libvirtd that dies takes no guest along, and none off the records.
        first.end(signal.SIGKILL)
        wait_until(lambda: "libvirt" in here.watcher.sight.troubles, "it is missed", WAIT_S)
        assert placed(brain) == ("hv1", ("tap-a",))
        first.start()
        wait_until(lambda: not here.watcher.sight.troubles, "it is there again", WAIT_S)

        first.migrate(VM, second, TAPS["hv2"])
        wait_until(lambda: placed(brain) == ("hv2", ("tap-b",)), "it has moved", WAIT_S)
        (move,) = brain.client.list(Migration, vm=VM)
        assert (move.source, move.target, move.ports) == ("hv1", "hv2", ("tap-b",))
        assert move.activated_by == "event"
        wait_until(lambda: here.outbox.told() == {}, "it is gone there", WAIT_S)
        told = len(values(brain, "cpu_cores"))
        wait_until(lambda: len(values(brain, "cpu_cores")) > told + 1, "by the other", WAIT_S)
        assert max(values(brain, "cpu_cores")) <= 2
        refused = [each.sender.account.samples_refused for each in (here, there)]
        assert refused == [{}, {}]
        assert here.outbox.refusals() == there.outbox.refusals() == []

        with closing(second.connect()) as connection:
            connection.lookupByName(VM).destroy()
        wait_until(lambda: placed(brain) is None, "it has ended", WAIT_S)
