"""Paths chosen from the past, on real traffic matrices, against the next matrix's optimum.

`--data` is a folder with a link table (a text file of lines `index source target OSPF capacity`)
beside matrices (`*TM.gz`, a line each, row-major), or with a node-link graph (`*.json`) beside
`*.hist` (matrices), and where given `*.opt` (an optimum a line) with `tunnels.txt`. Rates are
in the unit of the capacities up to a factor, since only ratios are measured. Without `--data`
a small network and its traffic are made up.
"""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from controller.decide.paths.buckets import BUCKETS
from controller.decide.paths.classes import Options as PathOptions
from controller.decide.paths.classes import TrafficClass
from controller.decide.paths.ground import Ground, ground
from controller.decide.paths.network import FabricLink, Floats, Ints, Network
from controller.decide.paths.optimum import Optimum, over_paths
from controller.decide.paths.plan import Plan, decide
from controller.decide.paths.robust import Aim, choose
from tests.benchmarks.harness import Json, Options, say
from tests.benchmarks.wide import days, wan

BULK = TrafficClass("bulk")
#: Matrices that a decision looks back on, which is more than its scenarios need.
LOOK_BACK = 300
#: Matrices of a day: 5 min apart with a link table, 15 min apart with a graph.
TABLE_DAY, GRAPH_DAY = 288, 96
#: What is made up, where there is no folder.
MADE_UP_DAY, SEED = 48, 7


@dataclass(frozen=True)
class Data:
    """A folder: the network, matrices (time, edges, edges), how many are a day, and optima as
    the folder gives them, with the paths that they are over."""

    network: Network
    matrices: Floats
    day: int
    optima: Floats | None = None
    tunnels: Path | None = None


def run(options: Options) -> Json:
    """Measure on one folder; ValueError where it has none of the known forms."""
    data = read(options.data) if options.data else _made_up()
    network, names = data.network, data.network.nodes
    yardstick = Optimum(network, np.arange(len(names)))
    say(f"{len(names)} nodes, {len(network.links)} links, {len(data.matrices)} matrices")
    optima = np.array([yardstick.of(matrix) for matrix in data.matrices])
    last = min(len(data.matrices), data.day + 60) if options.quick else len(data.matrices)
    times = [t for t in range(data.day, last) if optima[t] > 0]
    base = ground(network, names)
    scored: dict[str, list[float]] = {
        name: [] for name in ("predicted", "previous_matrix", "ecmp", "rounded")
    }
    seconds = []
    plan: Plan | None = None
    for count, t in enumerate(times):
        begin = time.process_time()
        past = data.matrices[max(0, t - LOOK_BACK) : t]
        plan = decide(network, names, {BULK: past}, options=PathOptions(seed=t), last=plan)
        seconds.append(time.process_time() - begin)
        chosen = plan.classes[0]
        weights = {
            "predicted": chosen.weights,
            "rounded": chosen.buckets / BUCKETS,
            "previous_matrix": _best_for(data.matrices[t - 1], optima[t - 1], base),
            "ecmp": base.even,
        }
        for name, values in weights.items():
            loads = base.paths.loads(values, data.matrices[t].reshape(-1))
            scored[name].append(float((loads / network.capacity).max() / optima[t]))
        if count % 50 == 0:
            say(f"matrix {t}:", *(f"{name} {np.mean(v):.4f}" for name, v in scored.items()))
    result: Json = {"data": str(options.data or "made up"), "matrices_scored": len(times)}
    for name, ratios in scored.items():
        result[f"{name}_over_optimal_mean"] = round(float(np.mean(ratios)), 4)
        result[f"{name}_over_optimal_p95"] = round(float(np.quantile(ratios, 0.95)), 4)
        result[f"{name}_over_optimal_max"] = round(float(np.max(ratios)), 4)
    result["decide_cpu_s_mean"] = round(float(np.mean(seconds)), 4)
    result["decide_cpu_s_max"] = round(float(np.max(seconds)), 4)
    if data.optima is not None:
        result["optimal_agrees"] = _agrees(data)
    return result


def read(folder: Path) -> Data:
    """A folder in either form; ValueError says what is missing."""
    tables, graphs = sorted(folder.glob("*TM.gz")), sorted(folder.glob("*.json"))
    if tables:
        return _read_table(tables[0])
    if graphs:
        return _read_graph(graphs[0])
    raise ValueError(f"{folder}: neither *TM.gz with a link table nor *.json with *.hist")


def _made_up() -> Data:
    return Data(wan(10, 16, SEED), 1e9 * days(10, MADE_UP_DAY, 5 * MADE_UP_DAY, SEED), MADE_UP_DAY)


def _read_table(file: Path) -> Data:
    links = file.with_name(file.name.removesuffix("TM.gz"))
    rows = [line.split() for line in links.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[0].isdigit()]
    if not rows:
        raise ValueError(f"{links}: no line of the form: index source target OSPF capacity")
    fabric = tuple(
        FabricLink(source, target, float(capacity) * 1000, cost=float(weight))
        for _, source, target, weight, capacity in rows
    )
    with gzip.open(file, "rt") as lines:
        return Data(_network(fabric), _matrices(lines.read(), fabric, file), TABLE_DAY)


def _read_graph(file: Path) -> Data:
    graph = json.loads(file.read_text())
    largest = max(link["capacity"] for link in graph["links"])
    fabric = tuple(
        FabricLink(str(link["source"]), str(link["target"]), link["capacity"],
                   cost=largest / link["capacity"])
        for link in graph["links"]
    )  # fmt: skip
    histories = sorted(file.parent.glob("*.hist"))
    if not histories:
        raise ValueError(f"{file.parent}: no *.hist with matrices beside {file.name}")
    matrices = _matrices(histories[0].read_text(), fabric, histories[0])
    optima, tunnels = histories[0].with_suffix(".opt"), file.with_name("tunnels.txt")
    return Data(
        _network(fabric),
        matrices,
        GRAPH_DAY,
        np.loadtxt(optima, ndmin=1) if optima.exists() else None,
        tunnels if tunnels.exists() else None,
    )


def _network(links: tuple[FabricLink, ...]) -> Network:
    nodes = {end for link in links for end in (link.source, link.target)}
    return Network(tuple(sorted(nodes, key=int)), links)


def _matrices(text: str, links: tuple[FabricLink, ...], file: Path) -> Floats:
    size = len({link.source for link in links} | {link.target for link in links})
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        values = np.array(line.split(), dtype=np.float64)
        if len(values) != size * size:
            raise ValueError(f"{file}:{number}: {len(values)} numbers for {size} nodes")
        found.append(values.reshape(size, size))
    matrices = np.array(found)
    matrices[:, np.arange(size), np.arange(size)] = 0.0
    return matrices


def _best_for(matrix: Floats, best: float, base: Ground) -> Floats:
    """Weights that are optimal for one matrix, `best` being its optimum."""
    links = len(base.network.links)
    short = 1e-4 * base.paths.cost / base.paths.cost.mean() / len(base.names) ** 2
    aim = Aim(short, np.ones(1), np.array([best or 1.0]), np.zeros((1, links)))
    return choose(base.paths, base.network.capacity, matrix.reshape(1, -1), aim).weights


def _agrees(data: Data) -> bool:
    """Whether our optima over the folder's own tunnels (over all paths where it lists none)
    are those that it gives, to a ten-thousandth."""
    assert data.optima is not None
    if data.tunnels is None:
        yardstick = Optimum(data.network, np.arange(len(data.network.nodes)))
        ours = [yardstick.of(matrix) for matrix in data.matrices]
    else:
        incidence, pair = _tunnels(data.tunnels, data.network)
        ours = [
            over_paths(incidence, pair, matrix.reshape(-1), data.network.capacity)
            for matrix in data.matrices
        ]
    return len(ours) == len(data.optima) and bool(np.allclose(ours, data.optima, rtol=1e-4))


def _tunnels(file: Path, network: Network) -> tuple[csr_matrix, Ints]:
    """Links by paths, and whose each path is; lines such as `0 1:0-2-6-1,0-4-6-1`."""
    table, pair, rows, columns = network.link_table(), [], [], []
    for line in file.read_text().split("\n"):
        ends, _, listed = line.partition(":")
        for tunnel in filter(None, listed.split(",")):
            nodes = [network.index[name] for name in tunnel.strip().split("-")]
            source, target = (network.index[name] for name in ends.split())
            rows += [table[hop] for hop in pairwise(nodes)]
            columns += [len(pair)] * (len(nodes) - 1)
            pair.append(source * len(network.nodes) + target)
    shape = (len(network.links), len(pair))
    return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape), np.array(pair)
