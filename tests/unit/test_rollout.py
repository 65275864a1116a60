"""The order in which switches take a change of paths."""

from __future__ import annotations

import pytest

from controller.act.dataplane.channel import Channel
from controller.act.dataplane.compiler import Desired, FlowKey, GroupKey, key_of
from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import (
    Bucket,
    Flow,
    Group,
    GroupType,
    Output,
    match,
)
from controller.act.dataplane.pipeline import (
    Payload,
    TableId,
    failover_group,
    flood_group,
    local_flood_group,
    path_group,
)
from controller.act.dataplane.rollout import Rollout, Step, step_of

LABEL = Flow(TableId.LABEL, 10, match((f.ETH_TYPE, 0x8847), (f.REG[4], 0x100)), (Output(1),))
OTHER = Flow(LABEL.table, 10, LABEL.match, (Output(2),))
ANSWER = Flow(TableId.ANSWER, 10, LABEL.match)


def group(number: int, port: int = 1) -> Group:
    return Group(number, GroupType.SELECT, (Bucket((Output(port),)),))


@pytest.mark.parametrize(
    ("wanted", "found", "step"),
    [
        (LABEL, None, Step.LAY),
        (OTHER, LABEL, Step.TURN),
        (None, LABEL, Step.CLEAR),
        (ANSWER, None, Step.FREE),
        (None, ANSWER, Step.FREE),
        (group(failover_group(5)), None, Step.LAY),
        (None, group(failover_group(5)), Step.CLEAR),
        (group(path_group(5, Payload.IPV4)), None, Step.FREE),
        (group(path_group(5, Payload.IPV4)), group(path_group(5, Payload.IPV4), 2), Step.USE),
        (group(flood_group(5)), group(flood_group(5), 2), Step.USE),
        (None, group(flood_group(5)), Step.FREE),
        (group(local_flood_group(5)), group(local_flood_group(5), 2), Step.FREE),
    ],
)
def test_what_an_entry_does(
    wanted: Flow | Group | None, found: Flow | Group | None, step: Step
) -> None:
    entry = wanted or found
    assert entry is not None
    assert step_of(key_of(entry), wanted, found) is step


def test_a_step_begins_when_the_one_before_is_confirmed_and_clearing_after_a_drain() -> None:
    rollout = Rollout(drain_s=1.0, patience_s=10.0)
    seen = [
        rollout.look(lowest, now)
        for now, lowest in enumerate(
            [Step.LAY, Step.LAY, Step.TURN, Step.USE, Step.CLEAR, Step.CLEAR, Step.FREE]
        )
    ]
    # At 3 packets were still given old labels; the second that they may be under way is over at 4.
    assert seen == [
        *(Step.LAY, Step.LAY, Step.TURN, Step.USE, Step.CLEAR, Step.CLEAR, Step.CLEAR),
    ]
    assert rollout.look(Step.USE, 10.0) is Step.USE
    assert rollout.look(Step.CLEAR, 10.5) is Step.USE
    assert rollout.look(Step.CLEAR, 11.0) is Step.CLEAR


def test_a_switch_that_is_stuck_is_waited_for_so_long_and_no_longer() -> None:
    rollout = Rollout(drain_s=1.0, patience_s=3.0)
    assert rollout.look(Step.LAY, 0.0) is Step.LAY
    assert rollout.look(Step.LAY, 3.0) is Step.LAY
    assert rollout.look(Step.LAY, 3.1) is Step.CLEAR
    assert rollout.look(Step.USE, 3.2) is Step.USE


def ready(*entries: Flow | Group) -> tuple[Channel, Desired]:
    """A channel whose switch has the entries, and what it wants."""
    desired = Desired()
    desired.entries.update((key_of(entry), entry) for entry in entries)
    channel = Channel(desired, 1)
    channel.stage = type(channel.stage).READY
    channel.installed.update(desired.entries)
    return channel, desired


def want(channel: Channel, desired: Desired, key: FlowKey | GroupKey, entry: object) -> None:
    if entry is None:
        del desired.entries[key]
    else:
        assert isinstance(entry, Flow | Group)
        desired.entries[key] = entry
    channel.changed({key}, channel.revision + 1)


def test_a_channel_keeps_back_what_is_not_yet_allowed() -> None:
    old, number = group(path_group(5, Payload.IPV4)), path_group(5, Payload.IPV4)
    channel, desired = ready(LABEL, old)
    channel.allow(Step.LAY)
    want(channel, desired, GroupKey(number), group(number, 2))
    want(channel, desired, FlowKey(*LABEL.place), None)
    assert not channel.wants_to_send
    assert channel.pending == 2
    assert channel.lowest is Step.USE
    assert channel.confirmed < channel.revision
    channel.allow(Step.USE)
    assert channel.dirty == {GroupKey(number)}
    list(channel.batch(0.0))
    assert channel.lowest is Step.USE  # sent, and not confirmed
    channel.allow(Step.CLEAR)
    assert channel.dirty == {FlowKey(*LABEL.place)}


def test_what_is_taken_back_while_it_is_kept_is_never_sent() -> None:
    channel, desired = ready(LABEL)
    channel.allow(Step.LAY)
    want(channel, desired, FlowKey(*LABEL.place), OTHER)
    assert channel.pending == 1
    want(channel, desired, FlowKey(*LABEL.place), LABEL)
    assert channel.pending == 0
    assert channel.lowest is Step.FREE
    assert channel.confirmed == channel.revision
