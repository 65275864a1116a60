"""How are thousands of flow entries decoded at once?

A switch has many entries but few *layouts*: what is matched under which masks, which actions
follow each other, which counters are told. Entries of one layout agree in all bytes but those
of their values. So a layout is learned from the first entry of it, which is decoded one by one,
and then all entries of a message that have it are read by one `struct` each and put together
by columns, with every loop in C.

An entry is of a layout exactly if all bytes that are no values agree. Lengths, headers, masks,
timeouts and padding are among these, so what is malformed or alien has no layout, and is left
to the decoder of single entries.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeVar

from controller.act.dataplane.openflow.actions import applied_at, get_instructions, varying
from controller.act.dataplane.openflow.fields import Field
from controller.act.dataplane.openflow.flow_entry import (
    BYTES,
    DURATION,
    PACKETS,
    Installed,
    seconds,
    statistics,
)
from controller.act.dataplane.openflow.oxm import Slot, get_slots, raw_match
from controller.act.dataplane.openflow.records import Act, Flow, Match, Test, by_columns
from controller.act.dataplane.openflow.wire import FLOW_DESC

#: Layouts kept at most, altogether and of entries of one length: more than a hundred are none
#: of ours, and whoever shows thousands is not to cost more than decoding one by one.
MAX_LAYOUTS = 512
MAX_ALIKE = 32
#: Bytes of the longest entry whose layout is kept; ours have less than half of that.
MAX_LENGTH = 1024

A = TypeVar("A")
B = TypeVar("B")

#: A place in an entry: offset and bytes.
Place = tuple[int, int]
#: Where entries of one layout that follow each other begin and end in a message.
Span = tuple[int, int]

#: How a value of so many bytes is read.
_FORMATS = {1: "B", 2: "H", 4: "I", 6: "HI", 8: "Q", 16: "QQ"}
#: Values of two parts, and the bits of the second.
_SECOND = {6: 32, 16: 64}
_TABLE, _PRIORITY, _FLAGS, _COOKIE = (4, 1), (6, 2), (12, 2), (16, 8)
_HEAD = (_TABLE, _PRIORITY, _FLAGS, _COOKIE)
_COUNTERS = (PACKETS, BYTES, DURATION)


class _Action(NamedTuple):
    """An action of a layout, and where its values are if it has any."""

    act: Act
    make: Callable[..., Iterable[Act]]
    places: tuple[Place, ...]


class _Anatomy(NamedTuple):
    """The parts of one entry; places count from its beginning."""

    slots: list[Slot]
    counters: dict[int, Place]
    actions: list[_Action]
    goto: int | None
    #: Where the statistics begin and where the instructions do.
    split: tuple[int, int]

    def read(self) -> set[Place]:
        """Where the values are that make one entry different from another."""
        return {
            *_HEAD,
            *((slot.start, slot.size) for slot in self.slots),
            *(self.counters[word] for word in _COUNTERS if word in self.counters),
            *(place for action in self.actions for place in action.places),
        }


def _dissect(entry: bytes) -> _Anatomy:
    """The parts of an entry that was found to be a `Flow`."""
    start = FLOW_DESC.size
    stop, counters = raw_match(entry, start, len(entry), "")
    found, instructions = statistics(entry, counters, len(entry), "")
    acts, goto = get_instructions(entry, instructions, len(entry), "")
    actions = []
    for at, act in zip(applied_at(entry, instructions, len(entry)), acts, strict=True):
        make, places = varying(entry, at, act)
        actions.append(_Action(act, make, tuple((at + offset, size) for offset, size in places)))
    return _Anatomy(
        get_slots(entry, start + 4, stop, ""),
        {word: (at, word & 0xFF) for word, at in found.items()},
        actions,
        goto,
        (counters, instructions),
    )


class Layout:
    """What entries have in common, and how to read the rest of them."""

    def __init__(self, entry: bytes) -> None:
        self._anatomy = anatomy = _dissect(entry)
        self.length = len(entry)
        #: The layout that came after this one when it was met last.
        self.follower: Layout | None = None
        mask = bytearray(b"\xff" * len(entry))
        pieces = [">"]
        at = columns = 0
        #: The first column of each value.
        self._first: dict[Place, int] = {}
        for place in sorted(anatomy.read()):
            offset, size = place
            pieces.append(f"{offset - at}x{_FORMATS[size]}")
            self._first[place] = columns
            columns += len(_FORMATS[size])
            at = offset + size
        for offset, size in {*self._first, *anatomy.counters.values()}:
            mask[offset : offset + size] = bytes(size)
        self._row = struct.Struct(f"{''.join(pieces)}{len(entry) - at}x")
        # Of the bytes of an entry, as one number, which are to be what.
        self._mask = int.from_bytes(mask, "big")
        self._agreed = int.from_bytes(entry, "big") & self._mask

    def end(self, data: bytes, at: int) -> int:
        """Where the entries of this layout end that follow each other from `at` on; `at` itself
        where there is none. Lengths are among what is compared, so all of them are whole."""
        length, mask, agreed = self.length, self._mask, self._agreed
        number = int.from_bytes  # big-endian, unless said otherwise
        while number(data[at : at + length]) & mask == agreed:
            at += length
        return at

    def signatures(self, data: bytes, start: int, end: int) -> list[bytes]:
        """All bytes of each entry but its length and counters."""
        (counters, instructions), length = self._anatomy.split, self.length
        return [
            data[at + 2 : at + counters] + data[at + instructions : at + length]
            for at in range(start, end, length)
        ]

    def read(self, data: bytes, spans: Sequence[Span]) -> Iterator[Installed]:
        """The entries between the ends of each span, at least one in all."""
        view = memoryview(data)
        rows = chain.from_iterable([self._row.iter_unpack(view[at:end]) for at, end in spans])
        columns = list(zip(*rows, strict=True))
        table, priority, flags, cookie = [self._values(columns, place) for place in _HEAD]
        packets, octets, durations = [self._counted(columns, word) for word in _COUNTERS]
        goto = repeat(self._anatomy.goto)
        matches, actions = self._matches(columns), self._actions(columns)
        flows = by_columns(Flow, table, priority, matches, actions, goto, cookie)
        told = zip(flows, packets, octets, seconds(durations), flags, strict=True)
        return map(_told, told)

    def _values(self, columns: list[tuple[int, ...]], place: Place) -> Sequence[int]:
        first = self._first[place]
        bits = _SECOND.get(place[1])
        if bits is None:
            return columns[first]
        return [high << bits | low for high, low in zip(*columns[first : first + 2], strict=True)]

    def _counted(self, columns: list[tuple[int, ...]], word: int) -> Iterable[int]:
        place = self._anatomy.counters.get(word)
        return repeat(0, len(columns[0])) if place is None else self._values(columns, place)

    def _matches(self, columns: list[tuple[int, ...]]) -> Iterable[Match]:
        tests: list[Iterable[Test]] = []
        for _, start, size, kept, field, mask in self._anatomy.slots:
            values = self._values(columns, (start, size))
            if kept != (1 << 8 * size) - 1:
                values = [value & kept for value in values]
            tests.append(_shared(values, partial(_tests, field, mask)))
        return zip(*tests, strict=True) if tests else repeat(())

    def _actions(self, columns: list[tuple[int, ...]]) -> Iterable[tuple[Act, ...]]:
        if not any(action.places for action in self._anatomy.actions):
            return repeat(tuple([action.act for action in self._anatomy.actions]))
        made: list[Iterable[Act]] = []
        for act, make, places in self._anatomy.actions:
            if len(places) == 1:
                made.append(_shared(self._values(columns, places[0]), make))
            elif places:
                rows = list(zip(*[self._values(columns, place) for place in places], strict=True))
                made.append(_shared(rows, partial(_made, make)))
            else:
                made.append(repeat(act))
        return zip(*made, strict=False)  # ends with the varying ones


def _tests(field: Field, mask: int | None, values: Sequence[int]) -> Iterable[Test]:
    return zip(repeat(field), values, repeat(mask))


def _made(make: Callable[..., Iterable[Act]], rows: Sequence[tuple[int, ...]]) -> Iterable[Act]:
    return make(*zip(*rows, strict=True))


def _shared(rows: Sequence[A], make: Callable[[Sequence[A]], Iterable[B]]) -> Iterable[B]:
    """What `make` gives of each row; one object for rows that are equal, where many are."""
    # All the same is what most columns are.
    if rows[0] == rows[-1] and rows.count(rows[0]) == len(rows):
        [same] = make(rows[:1])
        return repeat(same, len(rows))
    distinct = list(set(rows))
    if 2 * len(distinct) > len(rows):
        return make(rows)
    known = dict(zip(distinct, make(distinct), strict=True))
    return map(known.__getitem__, rows)


#: As `Installed._make`, in half the time.
_told: Callable[[tuple[Any, ...]], Installed] = partial(tuple.__new__, Installed)


class Layouts:
    """The layouts of one switch's entries, as far as they are known."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[Layout]] = {}
        self._left = MAX_LAYOUTS

    def find(self, data: bytes, at: int, end: int) -> Layout | None:
        """The layout of the entry between `at` and `end`, None where it is not known."""
        for layout in self._by_length.get(end - at, ()):
            if layout.end(data, at) > at:
                return layout
        return None

    def learn(self, entry: bytes, found: Installed) -> Layout | None:
        """Know the layout of an entry, of which `found` was decoded, from now on. None where it
        is an alien, or too many are known already."""
        if not self._left or len(entry) > MAX_LENGTH or not isinstance(found.flow, Flow):
            return None
        alike = self._by_length.setdefault(len(entry), [])
        if len(alike) == MAX_ALIKE:
            return None
        self._left -= 1
        alike.append(Layout(entry))
        return alike[-1]
