"""What is asked of those who compute paths, and what is the answer? Light to import: the brain
computes nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.decide.paths.fabric import Fabric
from controller.loops.paths.moves import Move
from controller.model.nouns import Route
from controller.store.decisions import Decided, Decision
from controller.store.traffic import Row


@dataclass(frozen=True)
class Question:
    """What is to be decided: on which fabric, after which `keep` intervals of `every_s` seconds,
    with which moves of VMs and what these send (bit/s), inside which bounds, what for
    (`trigger`, at `at`, Unix seconds), beside which routes, and after which plan."""

    fabric: Fabric
    rows: Sequence[Row]
    every_s: float
    keep: int
    moves: Sequence[Move]
    rates: Mapping[str, tuple[float, float]]
    hedge: float
    ceiling: float
    trigger: str
    at: float
    standing: Mapping[str, Route]
    last: bytes | None


@dataclass(frozen=True)
class Answer:
    """A plan, to be given to the next question as it is, its routes by key, and what is to be
    remembered of it."""

    plan: bytes
    routes: Mapping[str, Route]
    decision: Decision
    decided: Mapping[str, Decided]
