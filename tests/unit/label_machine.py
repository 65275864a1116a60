"""A fabric of switches that know nothing but the rules of unit "paths": where labelled packets
go, by which ports, while some links are dead. Every choice of a select group is followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from controller.act.dataplane.compiler import compile_unit
from controller.act.dataplane.impact import Unit
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    Act,
    Bucket,
    Flow,
    Group,
    GroupType,
    Move,
    Output,
    PopMpls,
    PushMpls,
    SetField,
    ToGroup,
)
from controller.act.dataplane.pipeline import (
    ALIVE_GROUP,
    MPLS,
    Class,
    Payload,
    TableId,
    path_group,
)
from controller.act.dataplane.view import FabricView
from controller.model.addresses import format_dpid
from controller.model.nouns import Datapath, Host, Link, Record, Route
from controller.model.state import State

POPPED = "popped"
Cable = tuple[int, int]
Place = tuple[str, int]
Packet = dict[f.Field, int]


def fabric(
    cables: list[Cable],
    edges: Iterable[int],
    down: Iterable[int] = (),
    routes: Iterable[Route] = (),
) -> State:
    """Datapaths numbered from 1 and joined by `cables`, each with ports of its own; a host at
    each of `edges`. The cables of the indexes `down` are known not to work."""
    down = set(down)
    switches = {s for cable in cables for s in cable} | set(edges)
    records: list[Record] = [Datapath(dpid=format_dpid(s), number=s) for s in switches]
    records += [Host(id=f"h{s}", datapath=format_dpid(s)) for s in edges]
    for index, (a, b) in enumerate(cables):
        for one, other in ((a, b), (b, a)):
            records.append(
                Link(
                    datapath=format_dpid(one),
                    port=port_of(index),
                    to_datapath=format_dpid(other),
                    to_port=port_of(index),
                    up=index not in down,
                )
            )
    return State.of([*records, *routes])


def port_of(cable: int) -> int:
    """The port that a cable has at either end."""
    return 10 + cable


@dataclass
class Machine:
    """The switches of a view, and the cables between them, some of which are `dead`, and some
    `doubted`: they carry packets, but both ends take them for dead. A way that ends with POPPED
    has arrived."""

    view: FabricView
    dead: frozenset[int] = frozenset()
    doubted: frozenset[int] = frozenset()
    flows: dict[str, list[Flow]] = field(default_factory=dict)
    groups: dict[str, dict[int, Group]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for datapath in self.view.state.datapaths:
            rules = compile_unit(self.view, Unit("paths"), datapath)
            self.flows[datapath] = list(rules.flows)
            self.groups[datapath] = {group.id: group for group in rules.groups}

    def lives(self, switch: str, bucket: Bucket) -> bool:
        """Whether a switch takes a bucket for alive."""
        if bucket.watch_port is None and bucket.watch_group is None:
            return True
        if bucket.watch_group is not None:
            # It stands there with a bucket that watches nothing.
            assert bucket.watch_group == ALIVE_GROUP
            return any(self.lives(switch, b) for b in self.groups[switch][ALIVE_GROUP].buckets)
        return bucket.watch_port is None or not self._off(bucket.watch_port, self.doubted)

    def _off(self, port: int, doubted: frozenset[int] = frozenset()) -> bool:
        return port - 10 in self.dead | doubted

    def ways(
        self, ingress: str, egress: str, traffic_class: Class = Class.DEFAULT
    ) -> Iterator[list[str]]:
        """Every way that a packet of a class may take, one a bucket: the switches it comes by,
        the last one being where its label is popped. AssertionError where it goes in circles; a
        way that ends elsewhere is where it is dropped."""
        number = self.view.number(egress)
        group = self.groups[ingress][path_group(number, Payload.IPV4, traffic_class)]
        assert group.type is GroupType.SELECT
        living = [b for b in group.buckets if self.lives(ingress, b)]
        if not living:
            yield [ingress]
        known: dict[Bucket, list[str]] = {}
        for bucket in living:
            if bucket not in known:
                known[bucket] = self._follow(ingress, bucket.actions, {f.IN_PORT: 1})
            yield known[bucket]

    def _follow(self, switch: str, actions: tuple[Act, ...], packet: Packet) -> list[str]:
        way = [switch]
        seen = set()
        while (out := self._do(switch, actions, packet)) is not None:
            link = self.view.state.links[f"{switch}:{out}"]
            if self._off(out):
                break
            switch = link.to_datapath
            way.append(switch)
            packet = {f.IN_PORT: link.to_port, f.MPLS_LABEL: packet[f.MPLS_LABEL]}
            state = (switch, *packet.values())
            assert state not in seen, f"in circles: {way}"
            seen.add(state)
            found = self._lookup(switch, packet)
            if found is None:
                break
            actions = found
            if isinstance(actions[0], PopMpls):
                return [*way, POPPED]
        return way

    def _lookup(self, switch: str, packet: Packet) -> tuple[Act, ...] | None:
        table: int | None = TableId.CLASSIFY
        while table is not None:
            matching = [
                flow
                for flow in self.flows[switch]
                if flow.table == table and self._matches(flow, packet)
            ]
            if not matching:
                return None
            assert len({flow.priority for flow in matching}) == len(matching)
            best = max(matching, key=lambda flow: flow.priority)
            if best.goto in (None, TableId.DELIVER):
                return best.actions
            self._do(switch, best.actions, packet)
            table = best.goto
        return None

    @staticmethod
    def _matches(flow: Flow, packet: Packet) -> bool:
        known = {f.ETH_TYPE: MPLS, **packet}
        return all(
            field in known and (known[field] if mask is None else known[field] & mask) == value
            for field, value, mask in flow.match
        )

    def _do(self, switch: str, actions: tuple[Act, ...], packet: Packet) -> int | None:
        """Change the packet; the port that it leaves by."""
        for action in actions:
            if isinstance(action, SetField):
                mask = action.field.full_mask if action.mask is None else action.mask
                name = f.IN_PORT if action.field is f.INGRESS else action.field
                packet[name] = packet.get(name, 0) & ~mask | action.value
            elif isinstance(action, Move):
                packet[action.target] = packet.get(action.source, 0)
            elif isinstance(action, Output):
                return action.port if action.port != packet[f.IN_PORT] else None
            elif isinstance(action, ToGroup):
                group = self.groups[switch][action.group]
                assert group.type is GroupType.FAST_FAILOVER
                bucket = next((b for b in group.buckets if self.lives(switch, b)), None)
                return None if bucket is None else self._do(switch, bucket.actions, packet)
            else:
                assert isinstance(action, PushMpls), action
        return None
