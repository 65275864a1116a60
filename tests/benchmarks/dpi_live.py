"""Real servers and clients on the fabric: is it told what answers, from how few packets, and what
does it cost to watch?

Ports are not the usual ones (but for DNS), so that nothing is guessed by them. What watching costs
once a service is known is measured by iPerf3 with the tap tables and without, by turns: as
throughput, and in processor time of the switch a bit, which others on the machine disturb less.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

from controller.act.dataplane.pipeline import TableId
from controller.model.nouns import Service
from mininet_labs.deployment import wait_until
from mininet_labs.sandbox import work_dir
from mininet_labs.servers import APPLICATIONS, Application, start, use
from mininet_labs.vm import LabVm
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from topologies.generate import leaf_spine

#: How often a client may come back before its server has to be known, and how long that takes (s).
ATTEMPTS, KNOWN_S = 3, 10.0
#: Seconds of one measurement of throughput, and of its intervals.
ROUND_S, INTERVAL_S = 4, 0.25
TAP = "PLEACH_DPI__TAP"


def run(options: Options) -> Json:
    """Use each server once, look at what is known of it, and measure what watching costs."""
    rounds = 3 if options.quick else 10
    with bench(leaf_spine(2, 2, 1), tenants=1) as running:
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
    """Throughput with the tap tables and without, by turns, first the one then the other."""
    bits: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for tapping in (number % 2 == 0, number % 2 != 0):
            switch_taps(running, on=tapping)
            before = switch_cpu_s()
            best, sent = measure(client, server, iperf)
            bits[tapping].append(best)
            cpu[tapping].append((switch_cpu_s() - before) / sent)
        say(
            f"round {number + 1}: {bits[True][-1] / 1e6:.0f} Mbit/s tapped,",
            f"{bits[False][-1] / 1e6:.0f} not",
        )
    rate = {tapping: statistics.median(found) for tapping, found in bits.items()}
    work = {tapping: statistics.median(found) for tapping, found in cpu.items()}
    return {
        "throughput_cost": round(1 - rate[True] / rate[False], 4),
        "cpu_cost_per_bit": round(work[True] / work[False] - 1, 4),
        "rounds": rounds,
        "mbit_s_tapped": round(rate[True] / 1e6, 1),
        "mbit_s_untapped": round(rate[False] / 1e6, 1),
    }


def switch_taps(running: Bench, *, on: bool) -> None:
    """Have the southbound process run with the tap tables filled or empty."""
    deployment = running.deployment
    deployment.environment[TAP] = str(on).lower()
    deployment.kill("southbound")
    deployment.launch("southbound")
    running.lab.wait_connected()
    edge = running.lab.edges[1]

    def switched() -> bool:
        flows = running.lab.ofctl("dump-flows", edge, f"table={TableId.TAP_IN}")
        return ("clone" in flows) is on

    wait_until(switched, "the tables are as they are to be")
    running.client.vm("vm0", wait=True)


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
