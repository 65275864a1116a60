"""Which VMs behave and communicate alike, and is that the group of yesterday? Pure.

A VM is compared by its scaled features and by whom and what it talks to (Hellinger distance of
shares); groups are made by average linkage (Sokal and Michener 1958) up to a fixed distance, so
that their number follows from the VMs. From day to day, groups are matched so that the overlap
of members is the largest possible (Kuhn 1955), and keep their role's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment

from controller.observe.behaviour.neighbours import scaled, spread

Array = NDArray[np.float64]

#: VMs at a smaller distance share a role; distances lie between 0 (alike) and 1.
ALIKE = 0.35
#: A role lives on in a group that shares at least this much with it (Jaccard index).
OVERLAP_LEAST = 0.3
#: The distance of features at which two VMs are half-way to having nothing in common.
_HALF = 1.5


@dataclass(frozen=True, slots=True)
class Role:
    """A group of VMs under an id that it keeps while its members mostly stay."""

    id: str
    members: frozenset[str]


def groups(vms: Sequence[str], vectors: Array, talks: Array) -> tuple[frozenset[str], ...]:
    """VMs in groups, the largest first.

    `vectors` is (VMs, features); `talks` (VMs, kinds), each VM's bytes or connections of each
    kind of communication (direction, application and port, say), zero where there are none.
    Raises ValueError where the rows do not fit.
    """
    if not len(vms) == len(vectors) == len(talks):
        raise ValueError(f"{len(vms)} VMs, {len(vectors)} vectors, {len(talks)} rows of talks")
    if len(vms) < 2:
        return tuple(frozenset((vm,)) for vm in vms)
    unit, shares = _aspects(vectors, talks)
    # Row by row, because of thousands of VMs the whole square would take gigabytes.
    apart = np.concatenate([_from(unit, shares, n)[n + 1 :] for n in range(len(vms))])
    labels = fcluster(linkage(apart, "average"), ALIKE, "distance")
    found = [
        frozenset(vm for vm, label in zip(vms, labels, strict=True) if label == one)
        for one in np.unique(labels)
    ]
    return tuple(sorted(found, key=lambda group: (-len(group), min(group))))


def distances(vectors: Array, talks: Array) -> Array:
    """How unlike VMs are, 0 to 1: the mean of both aspects; (VMs, VMs)."""
    unit, shares = _aspects(vectors, talks)
    return np.array([_from(unit, shares, n) for n in range(len(unit))])


def _aspects(vectors: Array, talks: Array) -> tuple[Array, Array]:
    """Scaled features, and the roots of the shares of communication."""
    unit = scaled(vectors, *spread(vectors))
    sizes = np.where(np.isfinite(talks), np.maximum(talks, 0.0), 0.0)
    total = sizes.sum(axis=1, keepdims=True)
    # One that is silent is like the silent, and unlike all others.
    shares = np.hstack((sizes / np.where(total > 0, total, 1.0), (total <= 0).astype(float)))
    return unit, np.sqrt(shares)


def _from(unit: Array, shares: Array, one: int) -> Array:
    """How far all are from VM number `one`."""
    far = np.sqrt(np.mean((unit - unit[one]) ** 2, axis=1)) if unit.shape[1] else 0.0
    same = shares @ shares[one]
    result = (far / (far + _HALF) + np.sqrt(np.clip(1.0 - same, 0.0, 1.0))) / 2
    result[one] = 0.0
    return np.asarray(result)


def follow(
    before: Sequence[Role], today: Sequence[frozenset[str]], new_ids: Sequence[str]
) -> tuple[Role, ...]:
    """Today's groups as roles: with the id of the role that lives on in a group, or else the
    next of `new_ids`, of which there must be one for each group. Raises ValueError otherwise."""
    if len(new_ids) < len(today):
        raise ValueError(f"{len(new_ids)} new ids for {len(today)} groups: give one for each")
    overlap = np.array([[_jaccard(role.members, group) for role in before] for group in today])
    kept: dict[int, str] = {}
    if overlap.size:
        for group, role in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[group, role] >= OVERLAP_LEAST:
                kept[int(group)] = before[int(role)].id
    fresh = iter(new_ids)
    return tuple(Role(kept.get(i) or next(fresh), group) for i, group in enumerate(today))


def stability(before: Sequence[Role], after: Sequence[Role]) -> float:
    """The share of the VMs that are in both which kept their role; 1 where there are none."""
    was, now = _role_of(before), _role_of(after)
    both = was.keys() & now.keys()
    return sum(was[vm] == now[vm] for vm in both) / len(both) if both else 1.0


def _role_of(roles: Sequence[Role]) -> Mapping[str, str]:
    return {vm: role.id for role in roles for vm in role.members}


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one or other else 0.0
