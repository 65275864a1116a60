"""Weighted max-min fairness from its definition, with a linear program a step: what the filling
of controller/decide/bandwidth is held to."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, diags, hstack, vstack

from controller.decide.bandwidth.fill import Floats


def by_definition(
    usage: csr_matrix, capacity: Floats, weight: Floats, lower: Floats, upper: Floats
) -> Floats:
    """Rates of users (see `fill`): raise the level that all rates over weights reach as far as
    possible; users whose row has a price hold it back, so they are settled there; again."""
    users = len(weight)
    low, high = lower.copy(), upper.copy()
    open_ = np.ones(users, dtype=bool)
    unit = float(max(capacity.max(), 1.0))
    while open_.any():
        mine = np.flatnonzero(open_)
        risen = hstack([-diags(np.ones(users)).tocsr()[mine], csr_matrix(weight[mine][:, None])])
        rows = vstack([hstack([usage, csr_matrix((usage.shape[0], 1))]), risen])
        found = linprog(
            np.append(np.zeros(users), -1.0),
            A_ub=rows.tocsr(),
            b_ub=np.concatenate([capacity / unit, np.zeros(len(mine))]),
            bounds=[*zip(low / unit, high / unit, strict=True), (0, None)],
            method="highs",
        )
        if not found.success:
            raise ArithmeticError(f"the program of a step of max-min ended: {found.message}")
        level = float(found.x[-1]) * unit
        price = -found.ineqlin.marginals[usage.shape[0] :]
        held = mine[price > 1e-9 * price.max()]
        rate = np.clip(weight[held] * level, lower[held], upper[held])
        # A hair of slack keeps rounding from making the next program infeasible.
        low[held], high[held] = rate * (1 - 1e-9), rate
        open_[held] = False
    return high
