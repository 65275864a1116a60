"""How much can each VM use at most? What its forecasts are held against. Pure.

Of CPU it is all of its CPUs, of memory what it was last given. Of the network it is the least of
what an operator's limit, the policy's ceiling for its priority and its host's uplink allow, and
what `forecast.nic_mbps` says of any VM; where nobody says anything, what its ports say. Of disks
it is `forecast.disk_mb_s`. NaN where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from controller.decide.bandwidth.qos import QosPolicy
from controller.model.state import State
from controller.predict.demand.series import Metric
from controller.settings import ForecastSettings

_KILO, _MEGA = 1e3, 1e6
#: bit/s that a tap says of itself whatever it can carry, which tells nothing (Linux, tun.c).
_TAP = 10_000_000


def capacities(
    state: State,
    policy: QosPolicy,
    settings: ForecastSettings,
    metric: Metric,
    vms: Sequence[str],
    memory: Mapping[str, float],
) -> list[float]:
    """What each of `vms` has, in the metric's unit. `memory` is bytes by VM."""
    if metric is Metric.CPU:
        return [1.0] * len(vms)
    if metric is Metric.MEMORY:
        return [memory.get(vm, math.nan) for vm in vms]
    if metric.family == "disk":
        mb_s = settings.disk_mb_s
        return [math.nan if mb_s is None else mb_s * _MEGA] * len(vms)
    speeds = _speeds(state)
    most = math.inf if settings.nic_mbps is None else settings.nic_mbps * _MEGA
    return [_network(state, policy, vm, metric, most, speeds) for vm in vms]


def _network(
    state: State,
    policy: QosPolicy,
    vm: str,
    metric: Metric,
    most_bps: float,
    speeds: Mapping[tuple[str, str], int],
) -> float:
    """bytes/s of one direction."""
    told = [most_bps]
    limit, machine = state.rate_limits.get(vm), state.vms.get(vm)
    if limit is not None:
        kbit = limit.out_kbit if metric is Metric.NET_TX else limit.in_kbit
        told.append(math.inf if kbit is None else kbit * _KILO)
    if machine is not None:
        ceiling = policy.terms(vm, machine.tenant, machine.groups).ceiling_bps
        told.append(math.inf if ceiling is None else ceiling)
    placement = state.placements.get(vm)
    if placement is not None:
        uplink = policy.uplink_bps(placement.host)
        told.append(math.inf if uplink is None else uplink)
    bps = min(told)
    if math.isinf(bps) and placement is not None and placement.host in state.hosts:
        datapath = state.hosts[placement.host].datapath
        ports = [speeds.get((datapath, name), 0) for name in placement.ports]
        bps = math.nan if not ports or min(ports) <= _TAP else float(sum(ports))
    return bps / 8 if math.isfinite(bps) else math.nan


def _speeds(state: State) -> dict[tuple[str, str], int]:
    """bit/s of ports by datapath and name, as they say themselves."""
    return {(port.datapath, port.name): port.speed for port in state.ports.values()}
