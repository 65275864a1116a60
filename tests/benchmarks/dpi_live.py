"""Real servers and clients on the fabric: is it told what answers, from how few packets, and what
does it cost to watch?

Ports are not the usual ones (but for DNS), so that nothing is guessed by them. What watching costs
once a service is known is measured by iPerf3 with the tap tables and without, by turns: as
throughput, and in processor time of the switch a bit, which others on the machine disturb less.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from pathlib import Path

from controller.act.dataplane.openflow import encode
from controller.act.dataplane.openflow.encode import Command
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.pipeline import Owner, TableId, owner_of
from controller.model.nouns import Service
from mininet_labs.sandbox import work_dir
from mininet_labs.servers import APPLICATIONS, Application, start, use
from mininet_labs.vm import LabVm
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from tests.fabric.direct import Session
from topologies.generate import leaf_spine

#: How often a client may come back before its server has to be known, and how long that takes (s).
ATTEMPTS, KNOWN_S = 3, 10.0
#: Seconds of one measurement of throughput, and of its intervals.
ROUND_S, INTERVAL_S = 2, 0.1
#: The controller is not to repair what is measured.
SETTINGS = {"PLEACH_SOUTHBOUND__RECONCILE_S": "3600"}


def run(options: Options) -> Json:
    """Use each server once, look at what is known of it, and measure what watching costs."""
    rounds = 8 if options.quick else 30
    with bench(leaf_spine(2, 2, 1), tenants=1, settings=SETTINGS) as running:
        client, servers = prepare(running)
        known: dict[str, Service] = {}
        copied: dict[str, int] = {}
        for application, server in servers.items():
            before = copies(running)
            found = identify(running, application, client, server)
            if found is not None:
                known[application.name] = found
            copied[application.name] = copies(running) - before
            say(application.name, "->", told(found), f"{copied[application.name]} packets copied")
        running.client.vm("vm0", wait=True)
        before = copies(running)
        for application, server in servers.items():
            use(client, server, application)
        again = copies(running) - before
        iperf = next(a for a in servers if a.named == "iPerf3")
        cost = throughput(running, iperf, client, servers[iperf], rounds)
    right = [a for a in servers if a.name in known and is_right(a, known[a.name])]
    times = [s.response_s for s in known.values() if s.response_s is not None]
    return {
        "applications": len(servers),
        "identified": len(right),
        "confirmed": sum(s.how == "confirmed" for s in known.values()),
        "packets_to_identify_max": max((s.packets for s in known.values()), default=None),
        "packets_copied_max": max(copied.values()),
        "packets_copied_once_identified": again,
        "response_ms_median": round(statistics.median(times) * 1000, 2) if times else None,
        **cost,
    }


def prepare(running: Bench) -> tuple[LabVm, dict[Application, LabVm]]:
    """A client at one edge, and each server in a VM of its own at the other."""
    numbers = [0, *range(1, 2 * len(APPLICATIONS), 2)]
    running.define(numbers)
    for number in numbers:
        running.guest(number)
        running.place(number)
    servers = {}
    for application, number in zip(APPLICATIONS, numbers[1:], strict=True):
        say("starting", application.name)
        servers[application] = running.guests[number]
        start(running.guests[number], application, work_dir() / "servers" / str(number))
    return running.guests[0], servers


def identify(
    running: Bench, application: Application, client: LabVm, server: LabVm
) -> Service | None:
    """What is known of a server after a client has come; None where that is nothing."""
    key = f"{server.name}:{application.protocol}:{application.port}"
    for _ in range(ATTEMPTS):
        use(client, server, application)
        until = time.monotonic() + KNOWN_S
        while time.monotonic() < until:
            found = {s.key: s for s in running.client.list(Service, vm=server.name)}
            if key in found:
                return found[key]
            time.sleep(0.05)
    return None


def told(service: Service | None) -> str:
    """What is known, in words."""
    if service is None:
        return "nothing"
    return f"{service.application} ({service.how}) from {service.packets} packets"


def is_right(application: Application, service: Service) -> bool:
    """Whether that is what runs there."""
    return service.application.partition(".")[0] == application.named


def copies(running: Bench) -> int:
    """Packets of which the tap tables of all edges have made a copy."""
    running.lab.appctl("revalidator/wait")
    lines = [
        line
        for edge in running.lab.edges
        for table in (TableId.TAP_IN, TableId.TAP_OUT)
        for line in running.lab.ofctl("dump-flows", edge, f"table={table}").splitlines()
        if "clone" in line
    ]
    return sum(int(line.partition("n_packets=")[2].partition(",")[0]) for line in lines)


def throughput(
    running: Bench, iperf: Application, client: LabVm, server: LabVm, rounds: int
) -> Json:
    """Throughput with the tap tables filled and without, by turns, first the one then the other.
    They are filled and emptied past the controller, which does not look at them meanwhile."""
    bits: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    with contextlib.ExitStack() as stack:
        switches = [stack.enter_context(contextlib.closing(direct(e))) for e in running.lab.edges]
        taps = [taps_of(switch) for switch in switches]
        for number in range(rounds):
            for tapping in (number % 2 == 0, number % 2 != 0):
                for switch, flows in zip(switches, taps, strict=True):
                    fill(switch, flows if tapping else [], flows)
                before = switch_cpu_s()
                best, sent = measure(client, server, iperf)
                bits[tapping].append(best)
                cpu[tapping].append((switch_cpu_s() - before) / sent)
            say(
                f"round {number + 1}: {bits[True][-1] / 1e6:.0f} Mbit/s tapped,",
                f"{bits[False][-1] / 1e6:.0f} not",
            )
    # Each against its neighbour: what else the machine does changes slowly.
    rates = [on / off for on, off in zip(bits[True], bits[False], strict=True)]
    work = [on / off for on, off in zip(cpu[True], cpu[False], strict=True)]
    return {
        "throughput_cost": round(1 - statistics.median(rates), 4),
        "cpu_cost_per_bit": round(statistics.median(work) - 1, 4),
        "rounds": rounds,
        "tap_rules": sum(map(len, taps)),
        "mbit_s_tapped": round(statistics.median(bits[True]) / 1e6, 1),
        "mbit_s_untapped": round(statistics.median(bits[False]) / 1e6, 1),
    }


def direct(edge: str) -> Session:
    """A connection to a switch beside the controller's."""
    return Session(Path(os.environ["OVS_RUNDIR"], f"{edge}.mgmt"))


def taps_of(switch: Session) -> list[Flow]:
    """All entries by which packets are copied, or known services let by."""
    return [
        flow
        for flow in switch.flows()
        if isinstance(flow, Flow) and owner_of(flow.cookie) is Owner.TAP and flow.priority > 1
    ]


def fill(switch: Session, wanted: list[Flow], known: list[Flow]) -> None:
    """Give a switch what is `wanted` of the entries that are `known`."""
    gone = [encode.flow_mod(switch.xid(), Command.DELETE_STRICT, flow) for flow in known]
    come = [encode.flow_mod(switch.xid(), Command.ADD, flow) for flow in wanted]
    refused = switch.do(*gone, *come)
    if refused:
        raise RuntimeError(f"a switch refuses entries: {refused}")


def measure(client: LabVm, server: LabVm, iperf: Application) -> tuple[float, float]:
    """Throughput of TCP, in bit/s, and the bits sent. Of its intervals the best quarter counts:
    what others take from the machine makes them slower, never faster."""
    command = ["iperf3", "-J", "-c", str(server.ipv4), "-p", str(iperf.port)]
    command += ["-t", str(ROUND_S), "-i", str(INTERVAL_S)]
    done = json.loads(client.run(*command, timeout_s=ROUND_S + 30).stdout)
    rates = [interval["sum"]["bits_per_second"] for interval in done["intervals"]]
    best = statistics.quantiles(rates, n=4)[-1]
    return best, 8.0 * done["end"]["sum_received"]["bytes"]


def switch_cpu_s() -> float:
    """Processor time that the switches' daemon has used, in seconds."""
    pid = Path(os.environ["OVS_RUNDIR"], "ovs-vswitchd.pid").read_text().strip()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
