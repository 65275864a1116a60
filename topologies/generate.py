"""Regular fabrics from a few numbers: leaf-spine, fat-tree, hybrid."""

from __future__ import annotations

from itertools import product

from topologies.model import Cable, CableKind, Fabric, Hypervisor, Role, Switch

_GBIT = 1_000_000_000
#: With more, ports of `priv-spine90` would have names that Linux does not take.
_MAX_OF_A_SITE = 90


def leaf_spine(
    leaves: int = 4,
    spines: int = 2,
    hosts_per_leaf: int = 2,
    *,
    capacity_bps: int = 40 * _GBIT,
    name: str = "leaf-spine",
) -> Fabric:
    """Two layers, every leaf (edge) joined to every spine (core): a folded Clos network.

    ValueError where a count is below 1.
    """
    _at_least(1, leaves=leaves, spines=spines, hosts_per_leaf=hosts_per_leaf)
    _at_most(4_000, switches=leaves + spines)
    return _join(name, [_Site("default", "", leaves, spines, hosts_per_leaf, capacity_bps)], [])


def fat_tree(
    k: int = 4,
    hosts_per_edge: int = 1,
    *,
    capacity_bps: int = 10 * _GBIT,
    name: str = "fat-tree",
) -> Fabric:
    """K pods of k/2 edge and k/2 aggregation switches under (k/2)^2 cores, all of k ports
    (Al-Fares, Loukissas, Vahdat: A Scalable, Commodity Data Center Network Architecture,
    SIGCOMM 2008). Of a pod's k^2/4 server ports `hosts_per_edge` an edge carry a hypervisor.

    ValueError where k is odd or below 2, or more hosts are asked for than an edge has ports.
    """
    _at_least(2, k=k)
    _at_least(1, hosts_per_edge=hosts_per_edge)
    _at_most(48, k=k)
    if k % 2:
        raise ValueError(f"k is {k}: a fat-tree needs an even number of ports on a switch")
    half = k // 2
    if hosts_per_edge > half:
        raise ValueError(
            f"hosts_per_edge is {hosts_per_edge}: with k = {k} an edge has {half} ports for hosts"
        )
    edges = [f"p{pod}e{i}" for pod in range(1, k + 1) for i in range(1, half + 1)]
    aggregations = [f"p{pod}a{i}" for pod in range(1, k + 1) for i in range(1, half + 1)]
    cores = [f"c{i}" for i in range(1, half * half + 1)]
    switches = _numbered(edges, Role.EDGE, "default", 0x1000)
    switches += _numbered(aggregations, Role.CORE, "default", 0x2000)
    switches += _numbered(cores, Role.CORE, "default", 0x3000)
    cables: list[Cable] = []
    for pod in range(1, k + 1):
        for edge, aggregation in product(range(1, half + 1), repeat=2):
            cables.append(Cable(f"p{pod}e{edge}", f"p{pod}a{aggregation}", capacity_bps))
        for aggregation, port in product(range(1, half + 1), repeat=2):
            core = f"c{(aggregation - 1) * half + port}"
            cables.append(Cable(f"p{pod}a{aggregation}", core, capacity_bps))
    return Fabric(name, tuple(switches), tuple(cables), _hosts(edges, hosts_per_edge))


def hybrid(
    private_leaves: int = 3,
    private_spines: int = 2,
    public_leaves: int = 2,
    public_spines: int = 2,
    hosts_per_leaf: int = 2,
    *,
    tunnel_bps: int = 200_000_000,
    tunnel_latency_s: float = 0.02,
    capacity_bps: int = 40 * _GBIT,
    name: str = "hybrid",
) -> Fabric:
    """A private and a public leaf-spine, joined by two gateways a site with a tunnel between
    each pair of the same number. A gateway is a core switch joined to every spine of its site,
    so either gateway or either tunnel may fail.

    ValueError where a count is below 1 or the tunnels have no capacity.
    """
    _at_least(
        1,
        private_leaves=private_leaves,
        private_spines=private_spines,
        public_leaves=public_leaves,
        public_spines=public_spines,
        hosts_per_leaf=hosts_per_leaf,
        tunnel_bps=tunnel_bps,
    )
    _at_most(
        _MAX_OF_A_SITE,
        private_leaves=private_leaves,
        private_spines=private_spines,
        public_leaves=public_leaves,
        public_spines=public_spines,
    )
    if tunnel_latency_s < 0:
        raise ValueError(f"tunnel_latency_s is {tunnel_latency_s}: it cannot be negative")
    sites = [
        _Site("private", "priv-", private_leaves, private_spines, hosts_per_leaf, capacity_bps, 2),
        _Site("public", "pub-", public_leaves, public_spines, hosts_per_leaf, capacity_bps, 2),
    ]
    tunnels = [
        Cable(f"priv-gw{i}", f"pub-gw{i}", tunnel_bps, tunnel_latency_s, CableKind.TUNNEL)
        for i in (1, 2)
    ]
    return _join(name, sites, tunnels)


class _Site:
    """One leaf-spine as a part of a fabric; names begin with `prefix`."""

    def __init__(
        self,
        site: str,
        prefix: str,
        leaves: int,
        spines: int,
        hosts_per_leaf: int,
        capacity_bps: int,
        gateways: int = 0,
    ) -> None:
        self.site, self.hosts_per_leaf, self.capacity_bps = site, hosts_per_leaf, capacity_bps
        self.leaves = [f"{prefix}leaf{i}" for i in range(1, leaves + 1)]
        self.spines = [f"{prefix}spine{i}" for i in range(1, spines + 1)]
        self.gateways = [f"{prefix}gw{i}" for i in range(1, gateways + 1)]


def _join(name: str, sites: list[_Site], tunnels: list[Cable]) -> Fabric:
    switches: list[Switch] = []
    cables: list[Cable] = []
    hosts: list[Hypervisor] = []
    for number, part in enumerate(sites):
        base = number << 16
        switches += _numbered(part.leaves, Role.EDGE, part.site, base + 0x1000)
        switches += _numbered(part.spines, Role.CORE, part.site, base + 0x2000)
        switches += _numbered(part.gateways, Role.CORE, part.site, base + 0x4000)
        for lower, spine in product(part.leaves + part.gateways, part.spines):
            cables.append(Cable(lower, spine, part.capacity_bps))
        hosts += _hosts(part.leaves, part.hosts_per_leaf)
    return Fabric(name, tuple(switches), (*cables, *tunnels), tuple(hosts))


def _numbered(names: list[str], role: Role, site: str, base: int) -> list[Switch]:
    return [Switch(name, base + i, role, site) for i, name in enumerate(names, 1)]


def _hosts(edges: list[str], each: int) -> tuple[Hypervisor, ...]:
    return tuple(Hypervisor(f"{edge}-h{i}", edge) for edge in edges for i in range(1, each + 1))


def _at_least(least: int, **numbers: int) -> None:
    for field, number in numbers.items():
        if number < least:
            raise ValueError(f"{field} is {number}: it must be at least {least}")


def _at_most(most: int, **numbers: int) -> None:
    for field, number in numbers.items():
        if number > most:
            raise ValueError(f"{field} is {number}: it must be at most {most}")
