"""How fast and how exactly is bandwidth shared out?

`solver` is the pure part: meters for 10,000 VMs on a fat-tree (both directions; uplinks of 512
hosts, links of edges and of the core by the splits of the paths and a skewed matrix; guarantees,
ceilings and weights of a policy) from the state of record to records of it. A harder problem,
of which no regular fabric makes any, is solved beside it: every VM with eight links and shares of
its own. `max_min_gap` is the largest difference of any rate to max-min fairness solved from its
definition, on smaller problems of both kinds. `bandwidth_live` is what a lab shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from controller.decide.bandwidth import qos
from controller.decide.bandwidth.allocate import Allocation, decide
from controller.decide.bandwidth.claims import Ask, ask, records
from controller.decide.bandwidth.crossing import crossing
from controller.decide.bandwidth.fill import fill
from controller.decide.bandwidth.records import Claim, Direction, Resource
from controller.model.addresses import format_dpid
from controller.model.nouns import Datapath, Host, Link, Nic, Placement, Record, RouteClass, Vm
from controller.model.state import State
from controller.store.traffic import Row
from tests.benchmarks import bandwidth_live
from tests.benchmarks.harness import Json, Options, say
from tests.benchmarks.maxmin import by_definition
from tests.benchmarks.wide import gravity, tree

SEED = 11
#: Uplinks of hosts and links of the fabric, bit/s: too small for all demands.
UPLINK, LINK = 25e9, 40e9
#: Hosts of an edge.
HOSTS = 16
#: Links that a VM's traffic is spread over in the harder problem.
SPREAD = 8
GROUPS = ("critical", "important", "spare", "promised", "web", "web", "web")


def run(options: Options) -> Json:
    """All that is measured."""
    return solver(options) | bandwidth_live.run(options.quick)


def solver(options: Options) -> Json:
    """`solve_s` (wall) and `solve_cpu_s` from the state of record to records, `again_cpu_s` with
    the last rates, `crossing_cpu_s` for what crosses which links (told anew once a minute),
    `dense_solve_s` of the harder problem, `max_min_gap`, and how much of the fabric is scarce."""
    vms = 1_000 if options.quick else 10_000
    random = np.random.default_rng(SEED)
    state, rows = fabric_of_vms(8, vms, random)
    told = policy()
    demand = {
        (vm, way): float(random.lognormal(20.5, 1.5)) for vm in state.vms for way in Direction
    }
    crossed = crossing(state, rows, 0.0)

    def whole(last: Allocation | None = None) -> tuple[Ask, Allocation]:
        asked = ask(state, told, demand, 0.0, crossed)
        made = decide(asked.claims, asked.left(asked.claims), last=last)
        records(state, asked, made, asked.claims)
        return asked, made

    seconds, cpu = least(whole)
    asked, made = whole()
    assert not made.conflicts, made.conflicts
    by = [meter.limited_by or "" for meter in made.meters]
    claims, resources = made_up(vms, max(1, vms // 20), random)
    dense, dense_cpu = least(lambda: decide(claims, resources))
    result: Json = {
        "vms": vms,
        "rates": len(made.meters),
        "resources": len(asked.resources),
        "limited_by_a_resource": sum(bool(name) for name in by),
        "limited_by_a_fabric_link": sum(name.startswith("link ") for name in by),
        "solve_s": round(seconds, 3),
        "solve_cpu_s": round(cpu, 3),
        "again_cpu_s": round(least(lambda: whole(made))[1], 3),
        "crossing_cpu_s": round(least(lambda: crossing(state, rows, 0.0))[1], 3),
        "dense_solve_s": round(dense, 3),
        "dense_solve_cpu_s": round(dense_cpu, 3),
        "max_min_gap": _gap(20 if options.quick else 60),
    }
    say("bandwidth", result)
    return result


def least(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and processor seconds, the least of three, for others may use the machine too."""
    took = []
    for _ in range(3):
        begin, cpu = time.perf_counter(), time.process_time()
        work()
        took.append((time.perf_counter() - begin, time.process_time() - cpu))
    return min(seconds for seconds, _ in took), min(cpu for _, cpu in took)


def policy() -> qos.QosPolicy:
    """The policy that comes with Pleach, with uplinks and promises."""
    text = qos.DEFAULT.read_text().replace("hosts: {}", f"hosts: {{}}\nuplink_mbps: {UPLINK / 1e6}")
    rule = "  - {groups: [promised], priority: normal, guarantee_mbps: 100, ceiling_mbps: 5000}\n"
    return qos.parse(text.replace("vms:\n", f"vms:\n{rule}", 1), "qos.yaml")


def fabric_of_vms(
    k: int, vms: int, random: np.random.Generator, link: float = LINK
) -> tuple[State, list[Row]]:
    """VMs on hosts of a fat-tree, and what its edges sent to each other: half of each edge's
    traffic goes to one other, as that of a tier to the next does; the rest is a gravity matrix."""
    network, names = tree(k)
    dpid = {name: format_dpid(number) for number, name in enumerate(network.nodes, 1)}
    port: dict[tuple[str, str], int] = {}
    for number, ends in enumerate((k.source, k.target) for k in network.links):
        port[ends] = number + 1
    of: list[Record] = [Datapath(dpid=d, number=n) for n, d in enumerate(dpid.values(), 1)]
    of += [
        Link(
            datapath=dpid[a], port=port[a, b], to_datapath=dpid[b], to_port=port[b, a],
            capacity=round(link),
        )
        for a, b in port
    ]  # fmt: skip
    hosts = [f"{name}-{number}" for name in names for number in range(HOSTS)]
    of += [Host(id=host, datapath=dpid[host.rsplit("-", 1)[0]]) for host in hosts]
    for number in range(vms):
        mac = ":".join(f"{octet:02x}" for octet in (2 << 40 | number).to_bytes(6, "big"))
        groups = (GROUPS[int(random.integers(len(GROUPS)))],)
        of.append(Vm(id=f"vm{number}", tenant="t", nics=(Nic(mac=mac, subnet="s"),), groups=groups))
        host = hosts[int(random.integers(len(hosts)))]
        of.append(Placement(vm=f"vm{number}", host=host, ports=(f"tap{number}",)))
    edges = [dpid[name] for name in names]
    matrix = gravity(len(edges), random)
    for row, column in enumerate(random.permutation(len(edges)).tolist()):
        matrix[row, column] += matrix[row].sum()
    np.fill_diagonal(matrix, 0.0)
    rows = [
        Row(a, 1.0, {b: {RouteClass.BULK: float(bps)} for b, bps in zip(edges, sent, strict=True)})
        for a, sent in zip(edges, matrix, strict=True)
    ]
    return State.of(of), rows


def made_up(
    vms: int, hosts: int, random: np.random.Generator
) -> tuple[list[Claim], list[Resource]]:
    """VMs on hosts under a fabric that is too small for all demands, each with links of its own."""
    links = max(SPREAD, hosts // 4)
    resources = [Resource(f"host{h} {way}", UPLINK) for h in range(hosts) for way in Direction]
    resources += [Resource(f"link{n}", 2e7 * vms / links * 1e3) for n in range(links)]
    claims = []
    for vm in range(vms):
        host = int(random.integers(hosts))
        for way in Direction:
            used = random.choice(links, size=SPREAD, replace=False).tolist()
            share = random.dirichlet(np.ones(SPREAD)).tolist()
            fabric = tuple((f"link{n}", part) for n, part in zip(used, share, strict=True))
            guarantee = float(random.choice([0.0, 0.0, 1e8, 3e8]))
            claims.append(
                Claim(
                    f"vm{vm}",
                    way,
                    demand_bps=float(random.lognormal(20.5, 1.5)),
                    weight=float(random.choice([0.25, 1.0, 4.0, 8.0])),
                    guarantee_bps=guarantee,
                    ceiling_bps=float(random.choice([1e9, 5e9, 25e9])),
                    uses=((f"host{host} {way}", 1.0), *fabric),
                )
            )
    return claims, resources


def _gap(vms: int) -> float:
    """Largest difference to the definition, as a share of the rate, over a few problems."""
    worst = 0.0
    for seed in range(5):
        random = np.random.default_rng(seed)
        claims, resources = made_up(vms, max(3, vms // 10), random)
        worst = max(worst, _difference(claims, resources, 1 / 8))
        state, rows = fabric_of_vms(4, vms, random, 2e8 * vms)
        demand = {
            (vm, way): float(random.lognormal(20.5, 1.5)) for vm in state.vms for way in Direction
        }
        asked = ask(state, policy(), demand, 0.0, crossing(state, rows, 0.0))
        worst = max(worst, _difference(asked.claims, asked.left(asked.claims), 1.0))
    return worst


def _difference(claims: Sequence[Claim], resources: Sequence[Resource], scale: float) -> float:
    """Of one problem, with capacities and guarantees scaled."""
    index = {resource.name: number for number, resource in enumerate(resources)}
    rows = [index[name] for claim in claims for name, _ in claim.uses]
    columns = [number for number, claim in enumerate(claims) for _ in claim.uses]
    shares = [share for claim in claims for _, share in claim.uses]
    usage = csr_matrix((shares, (rows, columns)), shape=(len(resources), len(claims)))
    problem = (
        usage,
        np.array([resource.capacity_bps for resource in resources]) * scale,
        np.array([claim.weight for claim in claims]),
        np.array([min(claim.guarantee_bps, claim.demand_bps) for claim in claims]) * scale,
        np.array([claim.demand_bps for claim in claims]),
    )
    exact = by_definition(*problem)
    found = fill(*problem).rates
    return float((np.abs(found - exact) / np.maximum(exact, 1.0)).max())
