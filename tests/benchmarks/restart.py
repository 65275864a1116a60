"""Both processes killed in turn under traffic, and rules changed by hand meanwhile: what is
lost, how long it takes to be back, and whether the switches are repaired.
"""

from __future__ import annotations

import time

from controller.act.dataplane.pipeline import TableId
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from topologies.generate import leaf_spine

RATE = 1_000


def run(options: Options) -> Json:
    """Kill and start each process in turn while guests at two edges talk."""
    rounds = 1 if options.quick else 3
    with bench(leaf_spine(4, 2, 1), tenants=1) as running:
        running.define(range(8))
        for number in range(8):
            running.guest(number)
            running.place(number)
        south = [southbound(running) for _ in range(rounds)]
        brain = [brain_killed(running) for _ in range(rounds)]
        return {
            "rounds": rounds,
            "lost_packets": sum(r["lost"] for r in south) + sum(r["lost"] for r in brain),
            "lost_packets_southbound": sum(r["lost"] for r in south),
            "lost_packets_brain": sum(r["lost"] for r in brain),
            "sent_packets": sum(r["sent"] for r in (*south, *brain)),
            "reconcile_s": round(max(r["back_s"] for r in south), 3),
            "brain_back_s": round(max(r["back_s"] for r in brain), 3),
            "drift_repaired": all(r["repaired"] for r in south),
        }


def traffic(running: Bench) -> Flow:
    """Both ways between guests at different edges."""
    return Flow(running.guests[0], running.guests[1], RATE).start()


def southbound(running: Bench) -> dict[str, float]:
    """Kill the southbound process, change rules by hand, and start it again."""
    flow = traffic(running)
    time.sleep(1)
    say("killing the southbound process")
    running.deployment.kill("southbound")
    expected = tamper(running)
    time.sleep(1)
    begin = time.time()
    running.deployment.launch("southbound")

    def reconciled() -> bool:
        rows = running.store.progress().values()
        revision = running.store.revision
        return all(
            p.connected and p.revision >= revision and not p.pending and p.confirmed_at > begin
            for p in rows
        )

    wait_until(reconciled, "every switch is reconciled")
    back = time.time() - begin
    repaired = rules(running) == expected
    time.sleep(1)
    lost, sent = stop(flow)
    say(f"reconciled after {back:.2f} s, lost {lost} of {sent}, repaired: {repaired}")
    return {"lost": lost, "sent": sent, "back_s": back, "repaired": repaired}


def rules(running: Bench) -> dict[str, list[str]]:
    """Every flow entry and group of every switch, without counters."""
    found = {}
    for switch in running.lab.fabric.switches:
        flows = running.lab.ofctl("dump-flows", switch.name, "--no-stats", "--sort")
        groups = running.lab.ofctl("dump-groups", switch.name)
        found[switch.name] = sorted(
            line.strip()
            for line in (flows + groups).splitlines()
            if "cookie=" in line or "group_id=" in line
        )
    return found


def tamper(running: Bench) -> dict[str, list[str]]:
    """Remove a rule, change one, and add one of a stranger; the rules as they were before.

    None of it is in the way of the traffic that is counted.
    """
    before = rules(running)
    edge = running.lab.edges[3]
    ofctl = running.lab.ofctl
    located = f"table={TableId.LOCATE},priority=100,reg2=1,dl_dst={running.mac(5)}"
    ofctl("--strict", "del-flows", edge, located)
    ofctl("--strict", "mod-flows", edge, "table=2,priority=50,arp,actions=normal")
    ofctl("add-flow", edge, "table=0,priority=7,in_port=999,actions=drop")
    if rules(running) == before:
        raise RuntimeError("the rules could not be changed by hand: nothing would be measured")
    return before


def brain_killed(running: Bench) -> dict[str, float]:
    """Kill the brain and start it again."""
    flow = traffic(running)
    time.sleep(1)
    say("killing the brain")
    running.deployment.kill("brain")
    time.sleep(1)
    begin = time.time()
    running.deployment.launch("brain")
    running.client.ready()
    back = time.time() - begin
    time.sleep(1)
    lost, sent = stop(flow)
    say(f"back after {back:.2f} s, lost {lost} of {sent}")
    return {"lost": lost, "sent": sent, "back_s": back}


def stop(flow: Flow) -> tuple[int, int]:
    """Packets lost and sent, both ways together."""
    results = flow.stop()
    return sum(r.lost for r in results), sum(r.sent for r in results)
