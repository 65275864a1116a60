"""Does a VM leave its role? Held against the others that behave and communicate alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.observe.behaviour.neighbours import scaled, spread
from controller.observe.behaviour.roles import Role

#: Fewer VMs make no rule.
MEMBERS_LEAST = 5
#: A member is reported when farther from the role's middle than so many times the distance that
#: is the median of the members.
FARTHER = 3.0
#: Members that are closer than this (scaled units) are alike, however close the others are.
_CLOSE = 0.5


@dataclass(frozen=True, slots=True)
class Stray:
    """A VM unlike its role: its distance and that of the median member (scaled units), how many
    times the bound that is (at least 1), and the feature that it differs most in, by number."""

    vm: str
    role: str
    distance: float
    usual: float
    score: float
    feature: int


def strays(
    roles: tuple[Role, ...], vectors: Mapping[str, NDArray[np.float64]]
) -> tuple[Stray, ...]:
    """Members of `roles` (as they were yesterday) that are today unlike the others, the oddest
    first. `vectors` holds today's features of VMs; those without are passed over."""
    found = []
    for role in roles:
        members = sorted(vm for vm in role.members if vm in vectors)
        if len(members) < MEMBERS_LEAST:
            continue
        rows = np.array([vectors[vm] for vm in members])
        away = np.abs(scaled(rows, *spread(rows)))
        far = np.sqrt(np.mean(away**2, axis=1))
        usual = max(_CLOSE, float(np.median(far)))
        for vm, distance, parts in zip(members, far, away, strict=True):
            if distance > FARTHER * usual:
                score = float(distance / (FARTHER * usual))
                found.append(
                    Stray(vm, role.id, float(distance), usual, score, int(np.argmax(parts)))
                )
    return tuple(sorted(found, key=lambda stray: (-stray.score, stray.vm)))
