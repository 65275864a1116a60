"""Which roles are there today, and who strays from those of yesterday?

Called by name in another process; what is slow to import is imported here in the function, and
what is returned can be read without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.observe.anomalies.alerts import Signal
from controller.observe.behaviour.portrait import feature

Array = NDArray[np.float64]

#: Begins the id of a role that is new, until the store has given it one.
NEW = "new "


@dataclass(frozen=True, slots=True)
class Group:
    """A role's members; `stayed` is the share of those of before, as far as they are still there,
    that are members now (1 for a new role)."""

    role: str
    members: tuple[str, ...]
    stayed: float


def regroup(
    before: Mapping[str, Sequence[str]],
    vms: Sequence[str],
    vectors: Array,
    talks: Array,
    at: float,
) -> tuple[list[Group], list[Signal]]:
    """Today's roles, and who strays from the roles of `before` (members by id).

    `vectors` is (VMs, features of `portrait.FEATURES` for each metric), `talks` as for
    `roles.groups`; `at` is now, in Unix seconds.
    """
    from controller.observe.anomalies import alerts
    from controller.observe.anomalies.roles import strays
    from controller.observe.behaviour import roles

    old = tuple(roles.Role(name, frozenset(members)) for name, members in before.items())
    rows = dict(zip(vms, vectors, strict=True))
    signals = [alerts.of_stray(stray, feature(stray.feature), at) for stray in strays(old, rows)]
    today = roles.groups(vms, vectors, talks)
    followed = roles.follow(old, today, [f"{NEW}{n}" for n in range(len(today))])
    there = frozenset(vms)
    found = []
    for role in followed:
        held = frozenset(before.get(role.id, ())) & there
        stayed = len(held & role.members) / len(held) if held else 1.0
        found.append(Group(role.id, tuple(sorted(role.members)), stayed))
    return found, signals
