"""What does a switch have? Its descriptions of flows, groups and meters, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.act.dataplane.compiler import Entry, FlowKey, GroupKey, Key, MeterKey
from controller.act.dataplane.openflow import decode
from controller.act.dataplane.openflow.aliens import AlienFlow, AlienGroup, AlienMeter
from controller.act.dataplane.openflow.flow_replies import Installed, Layouts, flow_entries
from controller.act.dataplane.openflow.records import Flow
from controller.act.dataplane.openflow.wire import Malformed
from controller.act.dataplane.pipeline import Owner, owner_of

#: What a switch may have at a key: an entry of our making, or something strange.
Found = Entry | AlienFlow | AlienGroup | AlienMeter

#: Entries that one reading may tell of, or this many times what is wanted if that is more: a
#: switch that tells of entries for ever is not to fill the memory.
MOST, TIMES = 100_000, 4


class Known(NamedTuple):
    """A flow entry that was read before, by its signature."""

    key: FlowKey
    found: Flow | AlienFlow


@dataclass(slots=True)
class Reading:
    """One question for all that a switch has, or for the flow entries of one `part` of
    `parts`, and what has been told of it so far."""

    #: What is still to be told, by transaction id: flows (0), groups (1) or meters (2).
    requests: dict[int, int]
    deadline: float
    part: int
    parts: int
    #: What the reading of the same part before this one decoded, so that this one need not.
    known: Mapping[bytes, Known]
    #: Keys that a change was under way for meanwhile: what was read of them says nothing.
    touched: set[Key]
    found: dict[Key, Found] = field(default_factory=dict)
    #: Entries whose match cannot be read.
    strange: list[AlienFlow] = field(default_factory=list)
    signatures: dict[bytes, Known] = field(default_factory=dict)
    _told: int = 0

    def take(self, data: bytes, wanted: Mapping[Key, Entry], layouts: Layouts) -> None:
        """Take in a part of a description; one that answers another question is passed over.
        Malformed where it cannot be read, or more is told than can be true."""
        xid = decode.header(data).xid
        kind = self.requests.get(xid)
        if kind is None:
            return
        if kind == 0:
            more = self._flows(data, wanted, layouts)
        else:
            more = self._groups(data) if kind == 1 else self._meters(data)
        most = max(MOST, TIMES * len(wanted))
        if self._told > most:
            raise Malformed("descriptions", f"more than {most} entries, groups and meters")
        if not more:
            del self.requests[xid]

    def _flows(self, data: bytes, wanted: Mapping[Key, Entry], layouts: Layouts) -> bool:
        reply = flow_entries(data, self.known, layouts)
        self._told += len(reply.items)
        for signature, item in reply.items:
            if isinstance(item, Installed):
                flow = item.flow
                if owner_of(flow.cookie) is Owner.LEARNED:
                    continue  # it comes and goes by itself; where it is in the way, it is missed
                if isinstance(flow, AlienFlow) and flow.match is None:
                    self.strange.append(flow)
                    continue
                assert flow.match is not None
                seen = Known(FlowKey(flow.table, flow.priority, flow.match), flow)
            else:
                seen = item
            # One object for what is wanted and found: the next comparison is then for free.
            want = wanted.get(seen.key)
            if isinstance(want, Flow) and want is not seen.found and want == seen.found:
                seen = Known(seen.key, want)
            self.signatures[signature] = seen
            self.found[seen.key] = seen.found
        return reply.more

    def _groups(self, data: bytes) -> bool:
        reply = decode.group_descs(data)
        self._told += len(reply.items)
        self.found.update((GroupKey(group.id), group) for group in reply.items)
        return reply.more

    def _meters(self, data: bytes) -> bool:
        reply = decode.meter_descs(data)
        self._told += len(reply.items)
        self.found.update((MeterKey(meter.id), meter) for meter in reply.items)
        return reply.more
