"""How does a count become a rate, without a spike where the count began anew?

A count that falls was reset (the VM or its device started anew) or wrapped. Which of the two
it was cannot be told from outside: a 32-bit counter that stood near its end and was reset looks
like one that wrapped. So that interval has no rate: a gap, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controller.history.series import Codes, Floats, Millis

#: Milliseconds beyond which two counts tell nothing of the time of the second.
LONGEST_MS = 900_000


@dataclass(frozen=True, slots=True)
class Rates:
    """For each row: `values` per second (NaN where there is none), whether it came too `late`
    to be compared with the count before, and whether the count `fell`. `last_times` and
    `last_counts` [subjects] are what the next rows are to be compared with."""

    values: Floats
    late: npt.NDArray[np.bool_]
    fell: npt.NDArray[np.bool_]
    last_times: Millis
    last_counts: Floats


#: `last_times` of a subject that has none.
NEVER = np.iinfo(np.int64).min


def rates(
    codes: Codes, times: Millis, counts: Floats, last_times: Millis, last_counts: Floats
) -> Rates:
    """Rates of `counts` [n] taken of subjects `codes` at `times`, in any order.

    `last_times` [subjects] and `last_counts` tell what came before; NEVER where nothing did.
    A rate belongs to the later end of its interval."""
    values = np.full(len(codes), np.nan)
    fell = np.zeros(len(codes), np.bool_)
    late = times <= last_times[codes]
    order = np.lexsort((times, codes))
    order = order[~late[order]]
    who, when, count = codes[order], times[order], counts[order].astype(np.float64)
    again = np.zeros(len(order), np.bool_)
    again[1:] = (who[1:] == who[:-1]) & (when[1:] == when[:-1])
    late[order[again]] = True
    order, who, when, count = order[~again], who[~again], when[~again], count[~again]

    first = np.ones(len(order), np.bool_)
    first[1:] = who[1:] != who[:-1]
    before_when, before_count = np.roll(when, 1), np.roll(count, 1)
    before_when[first] = last_times[who[first]]
    before_count[first] = last_counts[who[first]]

    known = before_when != NEVER
    lower = known & (count < before_count)
    spans = np.where(known, when - np.where(known, before_when, 0), 1)
    told = known & ~lower & (spans <= LONGEST_MS)
    values[order[told]] = (count[told] - before_count[told]) / (spans[told] / 1000)
    fell[order[lower]] = True

    last = np.ones(len(order), np.bool_)
    last[:-1] = first[1:]
    new_times, new_counts = last_times.copy(), last_counts.copy()
    new_times[who[last]] = when[last]
    new_counts[who[last]] = count[last]
    return Rates(values, late, fell, new_times, new_counts)
