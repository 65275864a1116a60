"""In which order do switches take what a change of paths means for them?

    LAY ─▶ TURN ─▶ USE ─▶ (drain) ─▶ CLEAR

A label is laid everywhere before an edge uses it, and cleared when nobody does any more: a step
begins when every switch has confirmed the one before. What is not about paths waits for nobody.
"""

from __future__ import annotations

from enum import IntEnum

from controller.act.dataplane.compiler import Entry, FlowKey, GroupKey, Key
from controller.act.dataplane.pipeline import CLASS, GroupKind, TableId


class Step(IntEnum):
    """What a change of one entry does."""

    #: It is not about paths.
    FREE = 0
    #: A label, or a choice of ports, that was not there.
    LAY = 1
    #: A label that leads elsewhere now.
    TURN = 2
    #: Which labels packets are given.
    USE = 3
    #: A label, or a choice of ports, that is not to be there.
    CLEAR = 4


#: In these groups packets are given labels.
_GIVING = {GroupKind.PATH, GroupKind.FLOOD}
#: These are what labels lead to.
_CHOOSING = {GroupKind.FAILOVER, GroupKind.ALIVE}


def step_of(key: Key, wanted: Entry | None, found: object | None) -> Step:
    """What it means to put `wanted` in the place of `found`; None is no entry."""
    if isinstance(key, FlowKey):
        if key.table == TableId.PATH and wanted is not None and found is None:
            # A class gets a group of its own: of labels that may not be laid yet.
            return Step.USE if any(field is CLASS for field, _, _ in key.match) else Step.FREE
        if key.table != TableId.LABEL:
            return Step.FREE
    elif isinstance(key, GroupKey):
        kind = GroupKind.of(key.group)
        if kind in _GIVING:
            return Step.FREE if wanted is None or found is None else Step.USE
        if kind not in _CHOOSING:
            return Step.FREE
    else:
        return Step.FREE
    if wanted is None:
        return Step.CLEAR
    return Step.LAY if found is None else Step.TURN


class Rollout:
    """How far all switches may go. Times are seconds of one clock."""

    def __init__(self, drain_s: float, patience_s: float) -> None:
        #: How long packets may be under way by labels that are not given any more.
        self.drain_s = drain_s
        #: How long one step is waited for: a switch that is stuck must not hold up the others.
        self.patience_s = patience_s
        self._lowest = Step.FREE
        self._since = 0.0
        self._used = float("-inf")

    def look(self, lowest: Step, now: float) -> Step:
        """The step that all may go up to, where `lowest` is the first that some switch has not
        confirmed all of (FREE: there is none)."""
        if lowest is not self._lowest:
            self._lowest, self._since = lowest, now
        if lowest is Step.FREE:
            return Step.CLEAR
        if lowest is not Step.CLEAR:
            self._used = now
        if now - self._since > self.patience_s:
            return Step.CLEAR
        if lowest is Step.CLEAR and now - self._used < self.drain_s:
            return Step.USE
        return lowest
