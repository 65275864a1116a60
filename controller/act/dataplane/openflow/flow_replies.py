"""Which flow entries does a switch tell of? Replies to FLOW_DESC requests, of 500 entries or so
each, many of which are of one layout.

Malformed is the only thing raised, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from controller.act.dataplane.openflow.flow_entry import Installed, installed, statistics
from controller.act.dataplane.openflow.frame import BODY, Reply, entry_end, multipart
from controller.act.dataplane.openflow.layouts import Layout, Layouts
from controller.act.dataplane.openflow.oxm import raw_match
from controller.act.dataplane.openflow.wire import FLOW_DESC, MP_FLOW_DESC

__all__ = ["Installed", "Layouts", "flow_descs", "flow_entries"]

K = TypeVar("K")


def flow_descs(data: bytes, layouts: Layouts) -> Reply[Installed]:
    """One message of the reply to a FLOW_DESC request. `layouts` are those met before; those
    that are met first are learned."""
    xid, more = multipart(data, MP_FLOW_DESC, "flow descriptions")
    runs = _runs(data, layouts)
    _decode(data, runs)
    return Reply(xid, list(chain.from_iterable([run.items for run in runs])), more)


def flow_entries(
    data: bytes, known: Mapping[bytes, K], layouts: Layouts
) -> Reply[tuple[bytes, K | Installed]]:
    """As `flow_descs`, for a reader who has seen most of it before: each entry comes with its
    signature, which is all of its bytes but the counters, and is decoded only where `known`
    has nothing under that signature."""
    xid, more = multipart(data, MP_FLOW_DESC, "flow descriptions")
    runs = _runs(data, layouts)
    told = [_signatures(data, run) for run in runs]
    new = [
        run
        for run, signatures in zip(runs, told, strict=True)
        if run.layout is not None and not all(map(known.__contains__, signatures))
    ]
    _decode(data, new)
    found: list[tuple[bytes, K | Installed]] = []
    for run, signatures in zip(runs, told, strict=True):
        if run.items:
            pairs = zip(signatures, run.items, strict=True)
            found += [(signature, known.get(signature, item)) for signature, item in pairs]
        else:
            found += [(signature, known[signature]) for signature in signatures]
    return Reply(xid, found, more)


@dataclass(slots=True)
class _Run:
    """Entries that follow each other and have one layout; where there is none, one entry, which
    is decoded at once."""

    layout: Layout | None
    start: int
    end: int
    items: list[Installed]


def _runs(data: bytes, layouts: Layouts) -> list[_Run]:
    """The entries of a message, each in a run. Malformed where one of them is."""
    runs: list[_Run] = []
    before: Layout | None = None
    at = BODY
    count = 0
    while at < len(data):
        layout = before.follower if before else None
        end = layout.end(data, at) if layout else at
        if end == at:
            end = entry_end(data, at, FLOW_DESC.size, "flow description", count)
            layout = layouts.find(data, at, end)
            if layout is None:
                item = installed(data, at, end, f"flow description {count}")
                layout = layouts.learn(data[at:end], item)
            if layout is not None:
                end = layout.end(data, at)
                if before is not None:
                    before.follower = layout
        if layout is None:
            runs.append(_Run(None, at, end, [item]))
            count += 1
        else:
            runs.append(_Run(layout, at, end, []))
            count += (end - at) // layout.length
            before = layout
        at = end
    return runs


def _decode(data: bytes, runs: Iterable[_Run]) -> None:
    """Decode the runs that have a layout, all of one layout together."""
    alike: dict[Layout, list[_Run]] = {}
    for run in runs:
        if run.layout is not None:
            alike.setdefault(run.layout, []).append(run)
    for layout, those in alike.items():
        items = layout.read(data, [(run.start, run.end) for run in those])
        for run in those:
            run.items = list(islice(items, (run.end - run.start) // layout.length))


def _signatures(data: bytes, run: _Run) -> list[bytes]:
    """The signature of each entry of a run."""
    if run.layout is not None:
        return run.layout.signatures(data, run.start, run.end)
    counters = raw_match(data, run.start + FLOW_DESC.size, run.end, "")[1]
    instructions = statistics(data, counters, run.end, "").end
    return [data[run.start + 2 : counters] + data[instructions : run.end]]
