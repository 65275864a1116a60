"""Weighted max-min fairness by filling, exact.

Everybody's rate over weight rises together from nothing; who is below the lower bound waits
there, who reaches the upper bound stays, and when a resource is full, its users stop (Bertsekas
and Gallager, Data Networks, 1992, 6.5.2). The level at which a resource would fill is a root of
a piecewise linear function, found from sorted breakpoints. A resource that fills before all that
share users with it can be settled at once, so that distant ones need not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


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
    count = len(capacity)
    while len(entries):
        at, who, part = resource[entries], user[entries], share[entries]
        base = spent + np.bincount(at, weights=part * lower[who], minlength=count)
        level = events.levels(capacity - base)
        first_of_user = np.full(len(upper), np.inf)
        np.minimum.at(first_of_user, who, level[at])
        first_near = np.full(count, np.inf)
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
        spent += np.bincount(
            at[settled], weights=part[settled] * rates[who[settled]], minlength=count
        )
        # Who stops only leaves more to others: what could not fill now never will.
        can_fill = np.isfinite(level)
        entries = entries[~settled & can_fill[at]]
        events = events.kept(rising, can_fill)
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
        from scipy.sparse import csr_matrix

        # All levels in order first; then events are sorted by resource alone, which keeps that
        # order, in time that grows with their number.
        users = len(weight)
        level = np.concatenate([lower / weight, upper / weight])
        place = np.empty(2 * users, dtype=np.int64)
        order = np.argsort(level, kind="stable")
        place[order] = np.arange(2 * users)
        at = np.concatenate([place[user], place[user + users]])
        steep = share * weight[user]
        table = csr_matrix(
            (np.concatenate([steep, -steep]), (np.concatenate([resource, resource]), at)),
            shape=(int(resource.max(initial=-1)) + 1, 2 * users),
        )
        table.sort_indices()
        event = order[table.indices]
        return cls(
            np.repeat(np.arange(table.shape[0]), np.diff(table.indptr)),
            event % users,
            level[event],
            table.data,
            table.shape[0],
        )

    def kept(self, users: Flags, resources: Flags) -> _Events:
        """Only those of some users at some resources."""
        kept = np.flatnonzero(users[self.user] & resources[self.resource])
        return _Events(
            self.resource[kept], self.user[kept], self.level[kept], self.slope[kept], self.resources
        )

    def levels(self, room: Floats) -> Floats:
        """(resources,): the level at which the load above all lower bounds takes up `room`;
        inf where it never does."""
        found = np.full(len(room), np.inf)
        if not len(self.resource):
            return found
        heads = np.flatnonzero(np.diff(self.resource, prepend=-1))
        counts = np.diff(heads, append=len(self.resource))
        before = np.maximum(_running(self.slope, heads, counts) - self.slope, 0.0)
        grown = before * np.diff(self.level, prepend=0.0)
        grown[heads] = 0.0
        load = _running(grown, heads, counts)
        space = np.repeat(np.maximum(room, 0.0)[self.resource[heads]], counts)
        # What only rounding keeps from reaching the room has reached it.
        reached = np.flatnonzero(load >= space * (1 - 1e-12))
        # Events are in order of resources: the first of each is where the number changes.
        event = reached[np.flatnonzero(np.diff(self.resource[reached], prepend=-1))]
        over = np.maximum(load[event] - space[event], 0.0)
        back = np.divide(over, before[event], out=np.zeros(len(event)), where=before[event] > 0)
        found[self.resource[event]] = self.level[event] - back
        return found


def _running(values: Floats, heads: Ints, counts: Ints) -> Floats:
    """Cumulative sums that begin anew at each of `heads`."""
    total = np.cumsum(values)
    running: Floats = total - np.repeat(total[heads] - values[heads], counts)
    return running
