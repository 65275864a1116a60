"""What does an agent cost, and does it lose anything while the controller is killed?

`cpu_share`: CPU seconds of `pleach agent` by the seconds that it ran, with 50 running domains of
libvirt's test driver at the default interval, while a brain takes all it tells; the first
seconds, in which it starts, are left out. What QEMU and libvirtd cost is not in it: the test
driver answers within the agent's own process, one call for each domain where libvirtd is asked
once for all.

`samples_lost`, `samples_twice`, `events_lost`: an agent that measures twenty domains each second
and tells of domains that start and stop all the time, while the brain is killed (SIGKILL) again
and again. At the end each tick that the agent wrote down is looked for in the history, each
event in the answers, and where each VM is in the store.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from controller.agent.agent import DIRECTORY, Agent
from controller.agent.outbox import FILE
from controller.api import NewToken, Role
from controller.client import Client
from controller.model.nouns import Host, Subnet, Tenant, Vm
from controller.settings import AgentSettings, load
from mininet_labs.deployment import Deployment, wait_until
from tests.benchmarks.harness import Json, Options, say

#: The bound of the requirement: one hundredth of a core for so many VMs.
VMS = 50
#: VMs of the second part.
CHURNED = 20
HOST = "hv1"
#: Seconds in which the agent starts, and has told of all VMs.
START_S = 8.0


@dataclass(frozen=True, slots=True)
class Size:
    """How long it is watched, and how often the brain is killed."""

    watched_s: float
    kills: int


def run(options: Options) -> Json:
    """Both parts."""
    size = Size(20.0, 2) if options.quick else Size(120.0, 10)
    with tempfile.TemporaryDirectory() as directory:
        cost = _cost(Path(directory) / "cost", size)
    with tempfile.TemporaryDirectory() as directory:
        lost = _lost(Path(directory) / "lost", size)
    return {**cost, **lost}


@contextmanager
def brain(directory: Path, vms: int) -> Iterator[tuple[Deployment, str]]:
    """A brain with a host and VMs, and the token of the host."""
    settings = {"PLEACH_HISTORY__FLUSH_S": "1", "PLEACH_LOG__LEVEL": "warning"}
    with Deployment(directory, settings) as deployment:
        deployment.launch("brain")
        client = deployment.client
        client.put(Tenant(id="t"))
        cidr = {"id": "n", "tenant": "t", "cidr": "10.0.0.0/16"}
        client.put(Subnet.model_validate(cidr))
        client.put(Host(id=HOST, datapath=f"{1:016x}"))
        for n in range(vms):
            nics = [{"mac": mac(n), "subnet": "n"}]
            client.put(Vm.model_validate({"id": f"vm-{n}", "tenant": "t", "nics": nics}))
        made = NewToken(name="agent", role=Role.HYPERVISOR, host=HOST)
        yield deployment, client.create_token(made).secret


def mac(n: int) -> str:
    return f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}"


def domain(n: int) -> str:
    """The XML of a running VM."""
    return (
        f"<domain type='test'><name>vm-{n}</name><memory unit='MiB'>64</memory><vcpu>2</vcpu>"
        f"<os><type>hvm</type></os><devices><interface type='ethernet'><mac address='{mac(n)}'/>"
        f"<target dev='tap{n}'/></interface></devices></domain>"
    )


# What it costs


def _cost(directory: Path, size: Size) -> Json:
    with brain(directory, VMS) as (deployment, token):
        node = directory / "node.xml"
        node.write_text(f"<node>{''.join(map(domain, range(VMS)))}</node>")
        environment = {
            **os.environ,
            "PLEACH_STATE_DIR": str(directory / "agent"),
            "PLEACH_TOKEN": token,
            "PLEACH_AGENT__URL": deployment.url,
            "PLEACH_AGENT__HOST": HOST,
            "PLEACH_AGENT__LIBVIRT": f"test://{node}",
            "PLEACH_LOG__LEVEL": "warning",
        }
        command = [sys.executable, "-m", "controller.cli", "agent"]
        process = subprocess.Popen(command, env=environment)
        try:
            wait_until(
                lambda: sum(1 for _ in deployment.client.list(Vm, host=HOST)) == VMS,
                "every VM is told of",
                120,
            )
            time.sleep(START_S)
            say("watching what the agent costs")
            before, began = cpu_s(process.pid), time.monotonic()
            time.sleep(size.watched_s)
            used, took = cpu_s(process.pid) - before, time.monotonic() - began
            rss = rss_mb(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        status: dict[str, Any] = json.loads(
            (directory / "agent" / DIRECTORY / "status.json").read_text()
        )
    assert len(status["vms"]) == VMS
    return {
        "cpu_share": round(used / took, 5),
        "vms": VMS,
        "interval_s": AgentSettings().interval_s,
        "values_each_time": status["values"],
        "rss_mb": round(rss),
    }


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


# What is lost


def _lost(directory: Path, size: Size) -> Json:
    with brain(directory, CHURNED) as (deployment, token):
        settings = load(
            None,
            {
                "PLEACH_STATE_DIR": str(directory / "agent"),
                "PLEACH_AGENT__LIBVIRT": "test:///default",
                "PLEACH_AGENT__INTERVAL_S": "1",
            },
        )
        agent = Agent(settings, HOST, lambda: Client(deployment.url, token, attempts=1))
        stopping = threading.Event()
        working = threading.Thread(target=agent.run, args=(stopping,))
        began = time.time()
        with closing(agent), closing(libvirt.open("test:///default")) as driver:
            for n in range(CHURNED // 2):  # these stay, and are measured all the time
                driver.createXML(domain(n))
            working.start()
            starts = _churn(driver, deployment, size.kills)
            say("waiting until everything is told")
            wait_until(lambda: agent.outbox.depth().events == 0, "all events are told", 120)
            stopping.set()
            working.join()
            wait_until(lambda: agent.sender.once() == 0, "all samples are told", 120)
            answered = sum(agent.sender.account.events.values())
            made, ticks = _written(directory / "agent" / DIRECTORY / FILE)
            running = {d.name() for d in driver.listAllDomains() if d.name().startswith("vm-")}
            for name in running:
                driver.lookupByName(name).destroy()
        deployment.client.history_status()
        kept = [_kept(deployment.client, f"vm-{n}", began) for n in range(CHURNED // 2)]
        found = {vm.id for vm in deployment.client.list(Vm, host=HOST)}
    times = [at for each in kept for at in each]
    return {
        "samples_lost": sum(max(0, ticks - len(set(each))) for each in kept),
        "samples_twice": len(times) - sum(len(set(each)) for each in kept),
        "events_lost": made - answered + len(found ^ running),
        "kills": size.kills,
        "ticks": ticks,
        "events": made,
        "starts": starts,
        "events_answered": dict(agent.sender.account.events),
    }


def _churn(driver: Any, deployment: Deployment, kills: int) -> int:
    """Start and stop domains while the brain is killed and started again; how many starts."""
    starts = 0
    for kill in range(kills):
        for n in range(CHURNED // 2, CHURNED):
            try:
                driver.lookupByName(f"vm-{n}").destroy()
            except libvirt.libvirtError:
                driver.createXML(domain(n))
                starts += 1
            time.sleep(0.1)  # so that there is something to be in the middle of
            if n == CHURNED * 3 // 4:
                deployment.kill("brain")
        say(f"kill {kill + 1} of {kills}")
        deployment.launch("brain")
    return starts


def _written(file: Path) -> tuple[int, int]:
    """How many events and ticks the agent wrote down in all."""
    with closing(sqlite3.connect(file)) as database:
        rows = dict(database.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    return int(rows["event"]), int(rows["tick"])


def _kept(client: Client, vm: str, began: float) -> list[float]:
    """The times of a VM's samples in the history."""
    found = client.history(vm, ["memory"], began - 60, time.time() + 60)
    return list(found.times)
