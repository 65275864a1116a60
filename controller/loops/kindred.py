"""Whom is a VM like, as far as can be said before it has a past? Of its role, its groups, its
flavour, its tenant: the closest first. Pure.

Roles are found by behaviour, so a newcomer plays none yet. It is taken for one of the role that
most VMs of its first group play.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from controller.model.nouns import Vm
from controller.observe.behaviour.album import Role

#: A role is that of a group where at least this share of its members play it.
_MOST = 0.5


def kindred(
    vms: Mapping[str, Vm], roles: Iterable[Role], memory: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """The kinds of each VM, as people read them. `memory` has bytes by VM where they are known:
    what is left of a flavour when nobody tells its name."""
    plays = {vm: role.id for role in roles for vm in role.members}
    groups = {vm.id: vm.groups[:1] or (f"tenant {vm.tenant}",) for vm in vms.values()}
    votes: dict[str, Counter[str]] = {}
    for vm, (group,) in groups.items():
        if vm in plays:
            votes.setdefault(group, Counter())[plays[vm]] += 1
    usual = {group: _usual(count) for group, count in votes.items()}
    return {
        vm.id: (*_kinds(vm, plays, usual.get(groups[vm.id][0]), memory),) for vm in vms.values()
    }


def _usual(count: Counter[str]) -> str | None:
    role, many = count.most_common(1)[0]
    return role if many >= _MOST * count.total() else None


def _kinds(
    vm: Vm, plays: Mapping[str, str], usual: str | None, memory: Mapping[str, float]
) -> Iterable[str]:
    role = plays.get(vm.id, usual)
    if role is not None:
        yield role
    yield from (f"group {group}" for group in vm.groups)
    size = memory.get(vm.id, math.nan)
    if size > 0:
        yield f"flavour of {size / 2**30:.3g} GiB"
    yield f"tenant {vm.tenant}"
