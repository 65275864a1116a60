"""What did an edge send towards the others? From what its groups of paths have counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controller.act.dataplane.openflow.counters import Counted
from controller.act.dataplane.pipeline import Class, path_of_group
from controller.model.nouns import RouteClass

#: bit/s by the edge that it went to, and its class.
Rates = dict[str, dict[RouteClass, float]]


@dataclass(slots=True)
class Meterage:
    """The counters of one edge, from one look to the next."""

    #: Bytes that each group had counted at the last look.
    _stood: dict[int, int] = field(default_factory=dict)
    _bytes: dict[tuple[int, RouteClass], int] = field(default_factory=dict)
    #: When the last row was made, by the caller's clock; None before the first.
    _since: float | None = None

    def take(self, counted: Iterable[Counted]) -> None:
        """A part of what the groups have counted. A group that was changed counts anew."""
        for group in counted:
            path = path_of_group(group.id)
            if path is None:
                continue
            number, kind = path
            before = self._stood.get(group.id, 0)
            more = group.bytes - before if group.bytes >= before else group.bytes
            self._stood[group.id] = group.bytes
            of = RouteClass.INTERACTIVE if kind is Class.INTERACTIVE else RouteClass.BULK
            self._bytes[number, of] = self._bytes.get((number, of), 0) + more

    def row(self, edges: Mapping[int, str], now: float) -> Rates | None:
        """The rates since the last row, by the names of `edges`, which are known by number; None
        for the first, before which nobody knows what was counted. `now` is in seconds."""
        since, self._since = self._since, now
        counted, self._bytes = self._bytes, {}
        if since is None or now <= since:
            return None
        rates: Rates = {}
        for (number, kind), octets in counted.items():
            if number in edges and octets:
                rates.setdefault(edges[number], {})[kind] = 8 * octets / (now - since)
        return rates
