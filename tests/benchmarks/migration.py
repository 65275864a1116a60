"""Moves of a VM under traffic, with stateful access rules that allow one direction only: what
is lost, what comes twice, how long the longest gap is, and whether TCP survives; and a move
that fails.
"""

from __future__ import annotations

import time

from controller.model.nouns import AccessRule, Action, PortRange, Protocol, Selector, Tenant
from mininet_labs.deployment import wait_until
from mininet_labs.traffic import Flow, FlowResult, Stream
from tests.benchmarks.harness import Bench, Json, Options, bench, say
from topologies.generate import leaf_spine

RATE = 1_000
UDP_PORT, TCP_PORT = 7_701, 7_702
CLIENT, SERVER = 0, 1


def run(options: Options) -> Json:
    """Move the server and the client by turns, then begin a move that fails."""
    moves = 4 if options.quick else 20
    settings = {"PLEACH_MIGRATION__GRACE_S": "3"}
    with bench(leaf_spine(4, 2, 1), tenants=1, settings=settings) as running:
        prepare(running)
        at = {CLIENT: 0, SERVER: 1}
        results: list[tuple[FlowResult, FlowResult]] = []
        survived, stall, activated = 0, 0.0, []
        for move in range(moves):
            # A stream for each move: one that died early would hide what came after.
            who = SERVER if move % 2 == 0 else CLIENT
            target = (
                next(i for i in (at[who] + 1, at[who] + 2, at[who] + 3) if i % 4 not in at.values())
                % 4
            )
            stream = Stream(running.guests[CLIENT], running.guests[SERVER]).start()
            flow = Flow(running.guests[CLIENT], running.guests[SERVER], RATE).start()
            activated.append(migrate(running, who, at[who], target, f"move{move}"))
            at[who] = target
            results.append(flow.stop())
            told = stream.stop()
            survived += told.survived
            stall = max(stall, told.longest_stall_ms)
            lost = sum(r.lost for r in results[-1])
            say(
                f"move {move + 1}: lost {lost}, TCP {'survived' if told.survived else told.failure}"
            )
        failed = fail(running, at[SERVER])
        both = [r for pair in results for r in pair]
        return {
            "moves": moves,
            "sent_packets": sum(r.sent for r in both),
            "lost_packets": sum(r.lost for r in both),
            "duplicates": sum(r.duplicates for r in both),
            "longest_gap_ms": max(r.longest_gap_ms for r in both),
            "tcp_survived": survived,
            "tcp_longest_stall_ms": stall,
            "activated_ms_max": round(max(activated) * 1000, 1),
            "failed_lost_packets": sum(r.lost for r in failed),
        }


def prepare(running: Bench) -> None:
    """Two guests, and rules that let the client begin and nobody else."""
    client = running.client
    client.put(Tenant(id="tenant0", inside=Action.DENY))
    running.define([CLIENT, SERVER], {SERVER: ("servers",)})
    for protocol, port in ((Protocol.UDP, UDP_PORT), (Protocol.TCP, TCP_PORT)):
        client.put(
            AccessRule(
                id=f"serve-{protocol}",
                tenant="tenant0",
                source=Selector(vms=(f"vm{CLIENT}",)),
                destination=Selector(groups=("servers",)),
                protocol=protocol,
                ports=(PortRange(first=port, last=port),),
            )
        )
    for number, edge in ((CLIENT, 0), (SERVER, 1)):
        guest = running.lab.vm(
            f"vm{number}", running.mac(number), running.address(number), 16, running.gateway(number)
        )
        port = f"v{number}e{edge}"
        guest.plug(running.lab.edges[edge], port)
        running.guests[number] = guest
        reply = client.place(f"vm{number}", f"host{edge}", [port])
        client.vm(f"vm{number}", wait=True, revision=reply.revision)


def migrate(running: Bench, number: int, source: int, target: int, key: str) -> float:
    """Move a VM as a hypervisor would; seconds from the switch-over to the activation."""
    vm, client = f"vm{number}", running.client
    guest = running.guests[number]
    old, new = f"v{number}e{source}", f"v{number}e{target}"
    guest.plug(running.lab.edges[target], new)
    reply = client.start_migration(key, vm, f"host{source}", f"host{target}", [new])
    client.vm(vm, wait=True, revision=reply.revision)
    begin = time.time()
    guest.switch_over(new)
    wait_until(lambda: phase(running, vm, key) != "started", "the move is seen")
    took = time.time() - begin
    client.complete_migration(key, vm)
    wait_until(lambda: phase(running, vm, key) not in ("started", "activated"), "it is drained")
    guest.unplug(old)
    wait_until(lambda: phase(running, vm, key) == "finished", "grace is over")
    return took


def phase(running: Bench, vm: str, key: str) -> str:
    """How far a migration has come."""
    moving = running.client.vm(vm).migration
    return moving.phase.value if moving is not None and moving.id == key else "finished"


def fail(running: Bench, source: int) -> tuple[FlowResult, FlowResult]:
    """Begin a move that the hypervisor gives up; traffic must not notice."""
    say("a move that fails")
    vm, client, guest = f"vm{SERVER}", running.client, running.guests[SERVER]
    target = (source + 1) % 4
    port = f"v{SERVER}f{target}"
    flow = Flow(running.guests[CLIENT], guest, RATE).start()
    guest.plug(running.lab.edges[target], port)
    reply = client.start_migration("fails", vm, f"host{source}", f"host{target}", [port])
    client.vm(vm, wait=True, revision=reply.revision)
    time.sleep(1)
    reply = client.fail_migration("fails", vm, "the target ran out of memory")
    client.vm(vm, wait=True, revision=reply.revision)
    guest.unplug(port)
    time.sleep(1)
    return flow.stop()
