"""Weighted max-min fairness by filling, exact.

Everybody's rate over weight rises together from nothing; who is below the lower bound waits
there, who reaches the upper bound stays, and when a resource is full, its users stop (Bertsekas
and Gallager, Data Networks, 1992, 6.5.2). The level at which a resource would fill is a root of
a piecewise linear function, found from sorted breakpoints. A resource that fills before all that
share users with it can be settled at once, so that distant ones need not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Filled:
    """`rates` (users,), and the resource that stopped each, or -1 at the upper bound."""

    rates: Floats
    bottleneck: Ints


def fill(
    usage: csr_matrix, capacity: Floats, weight: Floats, lower: Floats, upper: Floats
) -> Filled:
    """Rates of users whose smallest rate over weight is as large as can be, then the second
    smallest, and so on, within lower and upper bounds and with usage @ rates <= capacity.

    `usage` (resources, users) is not negative; lower bounds must fit, as `conflicts` checks;
    weights are above 0 and upper bounds finite.
    """
    table = usage.tocoo()
    kept = table.data > 0
    resource, user, share = table.row[kept], table.col[kept], table.data[kept]
    rates = upper.copy()
    bottleneck = np.full(len(upper), -1, dtype=np.int64)
    rising = upper > lower
    spent = np.zeros(len(capacity))
    still = ~rising[user]
    np.add.at(spent, resource[still], share[still] * rates[user[still]])
    events = _Events.of(resource, user, share, weight, lower, upper)
    entries = np.flatnonzero(rising[user])
    while len(entries):
        at, who, part = resource[entries], user[entries], share[entries]
        base = spent.copy()
        np.add.at(base, at, part * lower[who])
        events = events.of_users(rising)
        level = events.levels(capacity - base)
        first_of_user = np.full(len(upper), np.inf)
        np.minimum.at(first_of_user, who, level[at])
        first_near = np.full(len(capacity), np.inf)
        np.minimum.at(first_near, at, first_of_user[who])
        full = np.isfinite(level) & (level <= first_near)
        stopping = full[at]
        if not stopping.any():
            break
        stopped = who[stopping]
        reached = np.clip(weight[stopped] * level[at[stopping]], lower[stopped], upper[stopped])
        rates[stopped] = reached
        bottleneck[stopped] = np.where(reached < upper[stopped], at[stopping], -1)
        rising[stopped] = False
        settled = ~rising[who]
        np.add.at(spent, at[settled], part[settled] * rates[who[settled]])
        entries = entries[~settled]
    return Filled(rates, bottleneck)


@dataclass(frozen=True)
class _Events:
    """Where the load of each resource changes its slope, in order of resource and level."""

    resource: Ints
    user: Ints
    level: Floats
    slope: Floats
    resources: int

    @classmethod
    def of(
        cls,
        resource: Ints,
        user: Ints,
        share: Floats,
        weight: Floats,
        lower: Floats,
        upper: Floats,
    ) -> _Events:
        begin, end = lower[user] / weight[user], upper[user] / weight[user]
        level = np.concatenate([begin, end])
        both = np.concatenate([resource, resource])
        order = np.lexsort((level, both))
        steep = share * weight[user]
        return cls(
            both[order],
            np.concatenate([user, user])[order],
            level[order],
            np.concatenate([steep, -steep])[order],
            int(resource.max(initial=-1)) + 1,
        )

    def of_users(self, wanted: npt.NDArray[np.bool_]) -> _Events:
        """Only those of some users."""
        kept = wanted[self.user]
        return _Events(
            self.resource[kept], self.user[kept], self.level[kept], self.slope[kept], self.resources
        )

    def levels(self, room: Floats) -> Floats:
        """(resources,): the level at which the load above all lower bounds takes up `room`;
        inf where it never does."""
        found = np.full(len(room), np.inf)
        if not len(self.resource):
            return found
        first = np.ones(len(self.resource), dtype=bool)
        first[1:] = np.diff(self.resource) != 0
        start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        before = np.maximum(_running(self.slope, first, start) - self.slope, 0.0)
        step = np.diff(self.level, prepend=self.level[:1])
        load = _running(np.where(first, 0.0, before * step), first, start)
        space = np.maximum(room, 0.0)[self.resource]
        # What only rounding keeps from reaching the room has reached it.
        reached = np.flatnonzero(load >= space * (1 - 1e-12))
        where, which = np.unique(self.resource[reached], return_index=True)
        event = reached[which]
        over = np.maximum(load[event] - space[event], 0.0)
        back = np.divide(over, before[event], out=np.zeros(len(event)), where=before[event] > 0)
        found[where] = self.level[event] - back
        return found


def _running(values: Floats, first: npt.NDArray[np.bool_], start: Ints) -> Floats:
    """Cumulative sums that begin anew at each `first`."""
    total = np.cumsum(values)
    offset = (total - values)[start]
    running: Floats = total - offset
    return running
