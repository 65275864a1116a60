"""Paths chosen for the traffic, on real switches. Two edges are joined by a slow cable and, over
two core switches, by two longer ways with bandwidths of their own.

What links can carry differs again and again under 1,000 packets a second each way: how many
packets are lost by the new weights, and how many are overtaken? Then a cable that the packets
use is cut: how many are lost? Lastly many connections compete, with each link held to its
bandwidth: how much do they carry on chosen paths, and on the shortest ones alone, spread by a
hash?
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from controller.client import Client
from controller.model.nouns import LinkSpeed, RouteClass
from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.lab import Lab
from mininet_labs.traffic import Flow, FlowResult
from tests.benchmarks.failover import AFTER_S, crossed, favour_switches
from tests.benchmarks.harness import Bench, Json, Options, bench, percentile, say
from topologies.model import Cable, Fabric, Hypervisor, Role, Switch

RATE = 1_000
MBIT = 1_000_000
#: The cables, and what they carry in the last part.
SPEEDS = {
    ("one", "other"): 8 * MBIT,
    ("one", "wide"): 12 * MBIT,
    ("wide", "other"): 12 * MBIT,
    ("one", "thin"): 4 * MBIT,
    ("thin", "other"): 4 * MBIT,
}
FABRIC = Fabric(
    "three-ways",
    (
        Switch("one", 1, Role.EDGE),
        Switch("other", 2, Role.EDGE),
        Switch("wide", 3, Role.CORE),
        Switch("thin", 4, Role.CORE),
    ),
    tuple(Cable(a, b) for a, b in SPEEDS),
    (Hypervisor("h-one", "one"), Hypervisor("h-other", "other")),
)
SETTINGS = {
    "PLEACH_PATHS__MEASURE_S": "1",
    "PLEACH_PATHS__LOOK_S": "0.1",
    "PLEACH_PATHS__EVERY_S": "4",
    "PLEACH_SOUTHBOUND__LLDP_S": "1",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "1000",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "3600",
}
CONNECTIONS = 32
#: Longest that a decision is waited for, in seconds.
PATIENCE_S = 60.0


def run(options: Options) -> Json:
    """Measure all three."""
    favour_switches()
    result: Json = {}
    with ready(chosen=True) as running:
        result |= reoptimised(running, 4 if options.quick else 20)
        result |= cut(running, 2 if options.quick else 6)
    seconds = 6 if options.quick else 15
    for chosen, name in ((False, "hashed"), (True, "chosen")):
        with ready(chosen=chosen) as running:
            rates = competing(running, seconds, chosen=chosen)
        say(name, f"{sum(rates):.2f} Mbit/s, least {min(rates):.3f}")
        result[f"throughput_{name}_mbps"] = round(sum(rates), 2)
        result[f"least_flow_{name}_mbps"] = round(min(rates), 4)
        result[f"median_flow_{name}_mbps"] = round(percentile(rates, 0.5), 4)
    result["capacity_mbps"] = (8 + 12 + 4) * 1.0
    gain = float(str(result["throughput_chosen_mbps"])) / float(
        str(result["throughput_hashed_mbps"])
    )
    return {**result, "throughput_gain": round(gain, 3)}


@contextmanager
def ready(*, chosen: bool) -> Iterator[Bench]:
    """The fabric with a guest at each edge."""
    settings = {**SETTINGS, "PLEACH_PATHS__ENABLED": str(chosen).lower()}
    with bench(FABRIC, tenants=1, settings=settings) as running:
        running.define([0, 1])
        for vm in (0, 1):
            running.guest(vm)
            running.place(vm)
        yield running


# --- New weights under traffic


def reoptimised(running: Bench, rounds: int) -> Json:
    """Say again and again that other links carry more, under traffic."""
    results: list[FlowResult] = []
    decisions = 0
    with Flow(running.guests[0], running.guests[1], RATE) as flow:
        wait_chosen(running.client)
        for number in range(rounds):
            before = newest(running.client)
            tell(running, {"wide": 3_000, "thin": 1_000} if number % 2 else {"wide": 1_000})
            wait_until(lambda n=before: newest(running.client) > n, "a decision", PATIENCE_S)  # type: ignore[misc]
            confirmed(running.client)
            decisions += newest(running.client) - before
            time.sleep(AFTER_S)
        results = [*flow.stop()]
    lost, late = sum(r.lost for r in results), sum(r.reordered for r in results)
    say(f"{decisions} decisions under traffic: {lost} lost, {late} reordered of", results[0].sent)
    return {
        "reoptimisations": decisions,
        "sent_packets": sum(r.sent for r in results),
        "lost_packets": lost,
        "reordered": late,
        "duplicates": sum(r.duplicates for r in results),
    }


def tell(running: Bench, mbit: dict[str, int]) -> None:
    """Say what the links of core switches carry, in Mbit/s, and 1,000 of all others."""
    for a, b in SPEEDS:
        speed = mbit.get(a, mbit.get(b, 1_000)) * MBIT
        for key in ends(running.lab, a, b):
            running.client.put(LinkSpeed(id=key, speed=speed))


def ends(lab: Lab, a: str, b: str) -> list[str]:
    """The keys of both directions of the cable between two switches."""
    return [
        f"{lab.dpid(s)}:{lab.port_number(port)}"
        for s, t in ((a, b), (b, a))
        for port in lab.cable_ports(s, t)
    ]


def newest(client: Client) -> int:
    """The id of the newest decision; 0 where there is none."""
    return max((d.id for d in client.path_decisions(1).items), default=0)


def wait_chosen(client: Client) -> None:
    """Return once paths are chosen for bulk traffic both ways, and the switches know."""

    def chosen() -> bool:
        return all(
            any(r.chosen and r.traffic_class is RouteClass.BULK for r in told.routes)
            for told in (client.paths("host0", "host1"), client.paths("host1", "host0"))
        )

    wait_until(chosen, "paths are chosen", PATIENCE_S)
    confirmed(client)


def confirmed(client: Client) -> None:
    """Return once all switches have confirmed what is stored now."""
    wanted = client.topology().revision

    def done() -> bool:
        told = client.topology().progress
        return all(p.revision >= wanted and not p.pending for p in told)

    wait_until(done, f"revision {wanted} is confirmed", PATIENCE_S)


# --- A failure under traffic


def cut(running: Bench, rounds: int) -> Json:
    """Cut a cable that carries the packets, and mend it, under traffic."""
    broken: list[FlowResult] = []
    mended: list[FlowResult] = []
    decided_s = []
    for _ in range(rounds):
        used = crossed(running, 0, 1)
        with Flow(running.guests[0], running.guests[1], RATE) as flow:
            time.sleep(AFTER_S)
            before, begin = newest(running.client), time.monotonic()
            running.lab.link_down(*used[0])
            wait_until(lambda n=before: newest(running.client) > n, "a decision", PATIENCE_S)  # type: ignore[misc]
            confirmed(running.client)
            decided_s.append(time.monotonic() - begin)
            time.sleep(AFTER_S)
            broken += flow.stop()
        with Flow(running.guests[0], running.guests[1], RATE) as flow:
            before = newest(running.client)
            running.lab.link_up(*used[0])
            wait_until(lambda n=before: newest(running.client) > n, "a decision", PATIENCE_S)  # type: ignore[misc]
            confirmed(running.client)
            time.sleep(AFTER_S)
            mended += flow.stop()
        say(f"{used[0]} cut: lost {[r.lost for r in broken[-2:]]}, mended:", mended[-1].lost)
    return {
        "failures": rounds,
        "failure_lost_packets": max(r.lost for r in broken),
        "failure_lost_packets_all": sum(r.lost for r in broken),
        "failure_decided_s": round(max(decided_s), 3),
        "repair_lost_packets": sum(r.lost for r in mended),
    }


# --- Many connections


def competing(running: Bench, seconds: int, *, chosen: bool) -> list[float]:
    """Mbit/s of each of many TCP connections between two guests, with every link held to its
    bandwidth; with `chosen`, once paths have been decided for this load."""
    lines = []
    for (a, b), speed in SPEEDS.items():
        for port in (*running.lab.cable_ports(a, b), *running.lab.cable_ports(b, a)):
            lines.append(f"qdisc add dev {port} root tbf rate {speed}bit burst 32kb latency 50ms")
        for key in ends(running.lab, a, b):
            running.client.put(LinkSpeed(id=key, speed=speed))
    netns.batch("tc", lines)
    iperf(running, 6)
    if chosen:
        wait_chosen(running.client)
        before = newest(running.client)
        iperf(running, 8)  # what they send once they may
        wait_until(lambda: newest(running.client) > before, "a decision", PATIENCE_S)
        confirmed(running.client)
    return iperf(running, seconds)


def iperf(running: Bench, seconds: int) -> list[float]:
    """Mbit/s that each connection brought to the far end."""
    one, other = running.guests[0], running.guests[1]
    server = other.popen(
        *("iperf3", "-s", "-1", "-J"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    target = str(other.ipv4)
    listening = ("sh", "-c", "ss -Hltn 'sport = :5201' | grep -q .")
    wait_until(lambda: other.run(*listening).returncode == 0, "iperf3 listens")
    words = ("iperf3", "-c", target, "-P", str(CONNECTIONS), "-t", str(seconds), "-J")
    done = one.run(*words, timeout_s=seconds + 60)
    told, _ = server.communicate(timeout=30)
    if done.returncode:
        raise RuntimeError(f"iperf3 ended with {done.returncode}: {done.stdout[-500:]}")
    streams = json.loads(told)["end"]["streams"]
    return [stream["receiver"]["bits_per_second"] / MBIT for stream in streams]
