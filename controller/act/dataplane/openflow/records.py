"""Flow entries, groups and meters as frozen records.

A record is what we want or what a switch said it has; both sides are made canonical
(`match`), so that two records are equal exactly when the switch would treat them alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise, repeat
from typing import TypeVar

from controller.act.dataplane.openflow.fields import Field

#: Reserved ports (OpenFlow 1.5.1, 7.2.1.2).
IN_PORT_NUMBER = 0xFFFFFFF8
CONTROLLER = 0xFFFFFFFD
LOCAL = 0xFFFFFFFE
NO_BUFFER = 0xFFFFFFFF

#: Field, value, and mask or None for an exact match.
Test = tuple[Field, int, int | None]
Match = tuple[Test, ...]

R = TypeVar("R")


def match(*tests: tuple[Field, int] | Test) -> Match:
    """Tests in canonical form: masks applied to values, full masks dropped, empty ones
    left out, in order of class and number. ValueError where a value does not fit."""
    canonical: list[Test] = []
    for test in tests:
        field, value = test[0], test[1]
        full = field.full_mask
        mask = test[2] if len(test) == 3 else None
        if not 0 <= value <= full or not 0 <= (mask or 0) <= full:
            raise ValueError(f"{field.name}={value}/{mask} is wider than {field.bits} bits")
        if mask is None or mask == full:
            canonical.append((field, value, None))
        elif mask:
            canonical.append((field, value & mask, mask))
    canonical.sort(key=_rank)
    for one, other in pairwise(canonical):
        if one[0] is other[0]:
            raise ValueError(f"{one[0].name} is matched twice")
    return tuple(canonical)


def _rank(test: Test) -> int:
    return test[0].rank


@dataclass(frozen=True, slots=True)
class Output:
    """Send out of a port; `max_len` bytes of it where the port is CONTROLLER."""

    port: int
    max_len: int = 0xFFFF


@dataclass(frozen=True, slots=True)
class OutputField:
    """Send out of the port whose number a register holds (NXAST_OUTPUT_REG2)."""

    field: Field


@dataclass(frozen=True, slots=True)
class ToGroup:
    """Hand to a group."""

    group: int


@dataclass(frozen=True, slots=True)
class ToMeter:
    """Pass through a meter, which may drop the packet (OFPAT_METER of 1.5)."""

    meter: int


@dataclass(frozen=True, slots=True)
class SetField:
    """Overwrite a field, or the bits of it that `mask` has; a full mask becomes None."""

    field: Field
    value: int
    mask: int | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            object.__setattr__(self, "value", self.value & self.mask)
            if self.mask == self.field.full_mask:
                object.__setattr__(self, "mask", None)


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `bits` bits from one field to another (OFPAT_COPY_FIELD of 1.5)."""

    source: Field
    target: Field
    bits: int
    source_offset: int = 0
    target_offset: int = 0


@dataclass(frozen=True, slots=True)
class PushMpls:
    """Put a label, still zero, before the payload."""

    ethertype: int = 0x8847


@dataclass(frozen=True, slots=True)
class PopMpls:
    """Take the outermost label off; what is under it is of `ethertype`."""

    ethertype: int


@dataclass(frozen=True, slots=True)
class DecTtl:
    """Decrement the TTL or hop limit of IP; at 0 the switch drops or reports the packet."""


@dataclass(frozen=True, slots=True)
class Ct:
    """Look the packet up in conntrack (NXAST_CT), in the zone that `zone` holds (its low 16
    bits) or names; go on in `table` if given; `commit` makes the connection known, and `sets`
    then writes what is remembered with it."""

    zone: Field | int
    table: int | None = None
    commit: bool = False
    sets: tuple[SetField, ...] = ()


@dataclass(frozen=True, slots=True)
class CtClear:
    """Forget the conntrack state of the packet (NXAST_CT_CLEAR)."""


@dataclass(frozen=True, slots=True)
class Resubmit:
    """Look up in `table` too, then go on here (NXAST_RESUBMIT_TABLE, port kept)."""

    table: int


@dataclass(frozen=True, slots=True)
class Learnt:
    """One test of a learned entry: `bits` of `field` from `offset` on are to be `value`, or what
    the packet at hand has in as many bits of `source`."""

    field: Field
    bits: int
    value: int = 0
    source: Field | None = None
    offset: int = 0
    source_offset: int = 0


@dataclass(frozen=True, slots=True)
class Learn:
    """Make an entry without actions in `table`, of what the packet at hand is like (NXAST_LEARN2).
    It goes after `idle_s` seconds without packets or `hard_s` in all, where these are not 0; at
    `limit` entries of the same cookie in the table no more are made. The packet at hand does not
    meet it yet."""

    table: int
    priority: int
    cookie: int
    specs: tuple[Learnt, ...]
    idle_s: int = 0
    hard_s: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Clone:
    """Do `actions` to a copy (NXAST_CLONE)."""

    actions: tuple[Act, ...]


@dataclass(frozen=True, slots=True)
class Conjunction:
    """This flow satisfies clause `clause` (from 0) of `clauses` of conjunction `id`."""

    id: int
    clause: int
    clauses: int


Act = (
    Output
    | OutputField
    | ToGroup
    | ToMeter
    | SetField
    | Move
    | PushMpls
    | PopMpls
    | DecTtl
    | Ct
    | CtClear
    | Resubmit
    | Learn
    | Clone
    | Conjunction
)


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow entry: `actions` are applied at once, then the lookup goes on in `goto`.
    Neither means drop."""

    table: int
    priority: int
    match: Match
    actions: tuple[Act, ...] = ()
    goto: int | None = None
    cookie: int = 0

    @property
    def place(self) -> tuple[int, int, Match]:
        """What makes it one entry of a switch and not another."""
        return (self.table, self.priority, self.match)


class GroupType(IntEnum):
    """How a group treats its buckets."""

    ALL = 0
    SELECT = 1
    INDIRECT = 2
    FAST_FAILOVER = 3


@dataclass(frozen=True, slots=True)
class Bucket:
    """One choice of a group. It lives while its `watch_port`, or a bucket of its `watch_group`,
    does; one that watches neither always lives, but fast failover asks for one of them."""

    actions: tuple[Act, ...]
    weight: int = 1
    watch_port: int | None = None
    watch_group: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A group. `hash_fields` makes a SELECT group hash just these (selection method
    "hash" of Open vSwitch), in whatever order; empty leaves the choice to the switch."""

    id: int
    type: GroupType
    buckets: tuple[Bucket, ...]
    hash_fields: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.hash_fields, key=lambda f: (f.oxm_class, f.number))
        object.__setattr__(self, "hash_fields", tuple(ordered))


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter with one drop band; `rate` in kbit/s, or packets/s where `packets`. `burst`
    in kbit or packets; 0 leaves it to the switch."""

    id: int
    rate: int
    burst: int = 0
    packets: bool = False


def by_columns(kind: type[R], *columns: Iterable[object]) -> list[R]:
    """Records of one of the kinds above, of columns of their fields in order; the first one
    says how many. What the constructor of a frozen record checks is taken for granted, and
    what it does an object at a time takes a third of the time."""
    first = list(columns[0])
    made: list[R] = list(map(object.__new__, repeat(kind, len(first))))
    for name, column in zip(kind.__match_args__, (first, *columns[1:]), strict=True):  # type: ignore[attr-defined]
        deque(map(vars(kind)[name].__set__, made, column), maxlen=0)
    return made
