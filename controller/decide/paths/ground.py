"""What do all classes choose among? Trees, the paths that they give, and routing without
forecasts, for one network and its edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controller.decide.paths.network import Floats, Ints, Network, PathsError
from controller.decide.paths.trees import MAX_TREES, Forest, PathSet, different, path_set

#: Notes name at most this many nodes of an island.
_NAMED = 4


@dataclass(frozen=True)
class Ground:
    """A network, its edges by name and by position, and the ways between them."""

    network: Network
    names: tuple[str, ...]
    edges: Ints
    forest: Forest
    paths: PathSet
    #: (paths,): even over each pair's paths of least cost.
    even: Floats
    #: (pairs,): whether any way leads; False for an edge to itself.
    reachable: npt.NDArray[np.bool_]

    def pair(self, ingress: str, egress: str) -> int:
        """Number of a pair; PathsError where one is no edge, or both are the same."""
        unknown = [name for name in (ingress, egress) if name not in self.names]
        if unknown:
            raise PathsError(
                f"{' and '.join(unknown)}: no such edge; there are {', '.join(self.names)}"
            )
        if ingress == egress:
            raise PathsError(f"{ingress} is both ends: name two different edges")
        return self.names.index(ingress) * len(self.names) + self.names.index(egress)

    def pair_names(self, pair: int) -> tuple[str, str]:
        """Ingress and egress of a pair."""
        ingress, egress = divmod(pair, len(self.names))
        return self.names[ingress], self.names[egress]


def positions(network: Network, edges: Sequence[str]) -> Ints:
    """Places of the edges in the network; PathsError where a name is unknown or given twice."""
    twice = sorted({name for name in edges if list(edges).count(name) > 1})
    if twice:
        raise PathsError(f"{', '.join(twice)}: the same edge is given twice: give each once")
    return network.numbers(edges)


def ground(
    network: Network,
    edges: Sequence[str],
    *,
    forest: Forest | None = None,
    last: Ground | None = None,
    trees: int = MAX_TREES,
) -> Ground:
    """The ways between `edges`: over `forest` if given, over those of `last` as far as they
    are still whole, and new ones."""
    where = positions(network, edges)
    alike = last is not None and last.network.nodes == network.nodes and last.names == tuple(edges)
    if last is not None and alike and forest is None and last.network == network:
        return last
    if forest is None:
        kept = last.forest if last is not None and alike else None
        forest = different(network, where, trees, kept=kept)
    paths = path_set(network, forest)
    reachable = np.zeros(len(edges) ** 2, dtype=bool)
    reachable[paths.pair] = True
    return Ground(network, tuple(edges), where, forest, paths, paths.even(), reachable)


def cut_note(ground: Ground, demand: Floats) -> str | None:
    """What to tell when pairs have no way: the islands, and how much of `demand` (pairs,)
    bit/s is between them; None where all is whole."""
    count = len(ground.names)
    lost = ~ground.reachable & ~np.eye(count, dtype=bool).reshape(-1)
    if not lost.any():
        return None
    islands = []
    for island in ground.network.islands():
        here = [name for name in island if name in ground.names]
        if here:
            more = f" and {len(here) - _NAMED} more" if len(here) > _NAMED else ""
            islands.append("{" + ", ".join(here[:_NAMED]) + more + "}")
    return (
        f"the topology is cut: edges {' | '.join(islands)}; {int(lost.sum())} pairs have no way, "
        f"{float(demand[lost].sum()) / 1e6:.3g} Mbit/s are foreseen between them: mend a link"
    )
