"""Linear programs: a thin, typed door to HiGHS.

Programs are built from sparse blocks, may gain rows, and start again from the last basis.
`highspy` cannot be loaded beside `ortools` in one process.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
from scipy.sparse import csr_matrix

from controller.decide.paths.network import Floats, Ints

INFINITY = float("inf")

#: What a program can truly be; any other status says that the method has failed.
_ENDS = (
    highspy.HighsModelStatus.kOptimal,
    highspy.HighsModelStatus.kInfeasible,
    highspy.HighsModelStatus.kUnbounded,
)


class SolverError(RuntimeError):
    """A program that HiGHS could not bring to an optimum; `status` is its word for why."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the linear program ended as {status}, not at an optimum")
        self.status = status


@dataclass(frozen=True, slots=True)
class Solution:
    """An optimum: values of the columns, prices of the rows, and the objective."""

    values: Floats
    prices: Floats
    objective: float


class Program:
    """Minimise cost @ x with lower <= rows @ x <= upper and 0 <= x.

    `interior` solves by the interior-point method without crossover: faster on large programs,
    exact to about 1e-7, not at a vertex, and without use of earlier solutions.
    """

    def __init__(
        self,
        cost: Floats,
        rows: csr_matrix,
        lower: Floats,
        upper: Floats,
        *,
        interior: bool = False,
    ) -> None:
        rows = csr_matrix(rows)
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(cost), rows.shape[0]
        lp.col_cost_ = cost
        lp.col_lower_ = np.zeros(len(cost))
        lp.col_upper_ = np.full(len(cost), INFINITY)
        lp.row_lower_, lp.row_upper_ = lower, upper
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = rows.indptr
        lp.a_matrix_.index_ = rows.indices
        lp.a_matrix_.value_ = rows.data
        self._highs = highspy.Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        self._method = "ipm" if interior else "choose"
        self._highs.setOptionValue("solver", self._method)
        if interior:
            self._highs.setOptionValue("run_crossover", "off")
        self._highs.passModel(lp)

    def add(self, rows: csr_matrix, upper: Floats) -> None:
        """More rows, bounded from above only."""
        rows = csr_matrix(rows)
        self._highs.addRows(
            rows.shape[0],
            np.full(rows.shape[0], -INFINITY),
            upper,
            rows.nnz,
            rows.indptr[:-1].astype(np.int32),
            rows.indices.astype(np.int32),
            rows.data,
        )

    def bound(self, rows: Ints, lower: Floats, upper: Floats) -> None:
        """Other bounds for some rows."""
        self._highs.changeRowsBounds(len(rows), rows.astype(np.int32), lower, upper)

    def solve(self) -> Solution:
        """An optimum; SolverError where there is none."""
        self._highs.run()
        if self._highs.getModelStatus() not in _ENDS:
            # Many rows added to an old basis can lose the simplex method its footing.
            self._highs.clearSolver()
            self._highs.setOptionValue("solver", "ipm")
            self._highs.run()
            self._highs.setOptionValue("solver", self._method)
        status = self._highs.getModelStatus()
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(self._highs.modelStatusToString(status))
        found = self._highs.getSolution()
        return Solution(
            np.array(found.col_value, dtype=np.float64),
            np.array(found.row_dual, dtype=np.float64),
            float(self._highs.getObjectiveValue()),
        )
