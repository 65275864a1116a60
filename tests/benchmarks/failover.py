"""A link of the core dies under 1,000 packets a second each way: how many are lost where the
port goes down, and where only BFD can tell; how long until the controller's own paths avoid it;
and how many are lost when it is mended.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mininet_labs import netns
from mininet_labs.deployment import wait_until
from mininet_labs.lab import Lab
from mininet_labs.traffic import Flow, FlowResult
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from topologies.generate import fat_tree, leaf_spine
from topologies.model import Fabric

RATE = 1_000
SEED = 1
OVSDB = "unix:/run/openvswitch/db.sock"
#: Nobody damps links that are cut on purpose.
SETTINGS = {
    "PLEACH_SOUTHBOUND__OVSDB": OVSDB,
    "PLEACH_SOUTHBOUND__LLDP_S": "1",
    "PLEACH_SOUTHBOUND__DAMPING__CUTOFF": "1000",
    "PLEACH_SOUTHBOUND__DAMPING__MAX_S": "3600",
}
#: How long traffic goes on after everything is settled, for what comes late.
AFTER_S = 0.5

Cut = Callable[[Lab, str, str], None]
#: How a cable dies, and how it is mended.
WAYS: dict[str, tuple[Cut, Cut]] = {
    "port_down": (Lab.link_down, Lab.link_up),
    "bfd_only": (Lab.mute, Lab.unmute),
}


@dataclass(frozen=True, slots=True)
class Round:
    """One cut: packets lost until it was gone around and until it was in use again, each way."""

    way: str
    cut: tuple[FlowResult, FlowResult]
    reroute_s: float
    mended: tuple[FlowResult, FlowResult]


def run(options: Options) -> Json:
    """Cut links that carry the traffic, one after another, by both ways of dying."""
    fabrics = [(leaf_spine(4, 2, 1), 2 if options.quick else 12)]
    if not options.quick:
        fabrics.append((fat_tree(4), 6))
    rounds = [r for fabric, number in fabrics for r in measure(fabric, number)]
    by_way = {way: [r for r in rounds if r.way == way] for way in WAYS}
    reroute = {way: [r.reroute_s for r in some] for way, some in by_way.items()}
    worst = {way: max(max(x.lost for x in r.cut) for r in some) for way, some in by_way.items()}
    both = {way: max(sum(x.lost for x in r.cut) for r in some) for way, some in by_way.items()}
    mended = [x for r in rounds for x in r.mended]
    every = [x for r in rounds for x in (*r.cut, *r.mended)]
    return {
        "rounds": len(rounds),
        "sent_packets": sum(x.sent for x in every),
        "lost_packets": worst["port_down"],
        "lost_packets_bfd": worst["bfd_only"],
        "lost_packets_both_ways": both["port_down"],
        "lost_packets_bfd_both_ways": both["bfd_only"],
        "reroute_s": round(max(reroute["port_down"]), 3),
        "reroute_s_bfd": round(max(reroute["bfd_only"]), 3),
        "repair_lost_packets": sum(x.lost for x in mended),
        "duplicates": sum(x.duplicates for x in every),
    }


def measure(fabric: Fabric, number: int) -> list[Round]:
    """So many rounds of each way, on one fabric."""
    rng = random.Random(SEED)
    favour_switches()
    with bench(fabric, tenants=1, settings=SETTINGS) as running:
        one, other = 0, len(running.lab.edges) - 1
        running.define([one, other])
        for vm in (one, other):
            running.guest(vm)
            reply = running.client.place(f"vm{vm}", f"host{vm}", [f"tap{vm}"])
            running.client.vm(f"vm{vm}", wait=True, revision=reply.revision)
        settle(running, 0)
        rounds: list[Round] = []
        waiting: list[tuple[str, str]] = []
        for index in range(number * len(WAYS)):
            way = list(WAYS)[index % len(WAYS)]
            if not waiting:
                waiting = crossed(running, one, other)
                rng.shuffle(waiting)
            cable = waiting.pop() if index % len(WAYS) else waiting[-1]
            rounds.append(cut(running, way, cable, one, other))
        return rounds


def favour_switches() -> None:
    """Give the switches the processor whenever they want it, as if they had one of their own:
    to wait for it behind the traffic's own processes would count as lost packets."""
    pid = (Path(os.environ["OVS_RUNDIR"]) / "ovs-vswitchd.pid").read_text().strip()
    try:
        netns.call("chrt", "--all-tasks", "--fifo", "--pid", "10", pid)
    except RuntimeError as error:
        say("the switches must share the processor:", error)


def cut(running: Bench, way: str, cable: tuple[str, str], one: int, other: int) -> Round:
    """Cut a cable under traffic, and mend it under traffic."""
    lab, guests = running.lab, running.guests
    break_it, mend_it = WAYS[way]
    flow = Flow(guests[one], guests[other], RATE).start()
    time.sleep(AFTER_S)
    begin = time.monotonic()
    break_it(lab, *cable)
    settle(running, 1)
    reroute_s = time.monotonic() - begin
    time.sleep(AFTER_S)
    broken = flow.stop()
    flow = Flow(guests[one], guests[other], RATE).start()
    time.sleep(AFTER_S)
    mend_it(lab, *cable)
    settle(running, 0)
    time.sleep(AFTER_S)
    mended = flow.stop()
    say(
        f"{way} {'-'.join(cable)}: lost {[x.lost for x in broken]}, rerouted in "
        f"{reroute_s:.2f} s, mended: lost {[x.lost for x in mended]}"
    )
    for x in mended:
        if x.lost:  # when, and whether at once, says most of why
            say(f"of {x.sent}, first {x.first_lost}, longest gap {x.longest_gap_ms:.0f} ms")
    return Round(way, broken, reroute_s, mended)


def settle(running: Bench, dead: int) -> None:
    """Return once so many cables are known to be dead, and all switches have confirmed what
    that means."""
    links = 2 * (len(running.lab.fabric.cables) - dead)

    def settled() -> bool:
        told = running.client.topology()
        confirmed = all(p.revision >= told.revision and not p.pending for p in told.progress)
        return confirmed and sum(link.up for link in told.links) == links

    wait_until(settled, f"{links} links are up, and confirmed by all")


def crossed(running: Bench, one: int, other: int) -> list[tuple[str, str]]:
    """The cables that packets between two guests take, either way."""
    lab = running.lab
    ports = {
        port: (cable.a, cable.b)
        for cable in lab.fabric.cables
        for pair in ((cable.a, cable.b), (cable.b, cable.a))
        for port in lab.cable_ports(*pair)
    }
    with Flow(running.guests[one], running.guests[other], RATE) as flow:
        before = sent()
        time.sleep(AFTER_S)
        after = sent()
        flow.stop()
    return sorted(
        {cable for p, cable in ports.items() if after[p] - before[p] > RATE * AFTER_S / 2}
    )


def sent() -> dict[str, int]:
    """Packets that the switches have sent by each port."""
    told = json.loads(netns.call("ip", "-json", "-stats", "link", "show"))
    return {link["ifname"]: link["stats64"]["tx"]["packets"] for link in told}
