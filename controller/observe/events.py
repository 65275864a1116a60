"""What does an event mean, given what is now? Pure: the event, what is known and the time
come in, a Decision goes out, and `Refused` where the sender has to do something first.

**Order.** Events about a VM come from several senders over several connections, so they
are put in order by their CloudEvents `time`. There is a clock for each thing that an event
can state: where the VM is (`vm/<id>`), its NICs, its groups, when it was last removed from
a host (`vm/<id>@<host>`), each migration, and each host's state. An event older than the
clock of what it states is `late` and has no effect; so a late `vm.updated` cannot undo newer
NICs, yet a newer placement does not make it lost. At equal times the later arrival counts.
Where a VM is, is the newest statement "it is at H", unless it was removed from H since: this
comes out the same in whatever order the messages arrive.

**Contradictions.**

| event | what is | outcome |
|---|---|---|
| any | unknown VM or host | refused (unknown) |
| removed | unknown VM | ignored: that is what was wanted |
| placed, updated, started | number of ports is not the number of NICs | refused (conflict) |
| placed at the target | migration started | that completes it |
| placed at the source | migration started | unchanged: during pre-copy it does run there |
| placed at the source | migration activated | the move failed after all: back to the source |
| placed at the source | activated by a packet seen after the event's time | late |
| placed at a third host | migration started | the move failed; placed there |
| placed at a third host | migration activated | the move is finished; placed there |
| removed at the source or target | migration started | ignored: `completed` or `failed` decides |
| removed at a host where it is not | | ignored, so a tidy-up at the old host undoes nothing |
| started, source is not where the VM is | | refused (conflict) |
| started to where it is already | | refused (conflict) |
| started again, the same id | same hosts and ports | unchanged; otherwise refused (conflict) |
| started | another migration started | refused (conflict) |
| started | another activated or settling | that one is finished, the new one starts |
| completed, never started | target and ports given | placed at the target |
| completed, never started | target or ports missing | refused (unknown) |
| completed after failed | | placed at the target |
| failed, never started | | ignored, and a late `started` of it too |
| failed after activated | source not yet given up | back to the source |
| failed, source drained | | ignored: the VM is at the target |
| failed | the VM was removed from the source meanwhile | placed nowhere |
| updated ports | not placed | refused (conflict) |
| host.down | VMs are there | the state is noted; placements stay, as the switch forwards on |
"""

from __future__ import annotations

from controller.model.nouns import Migration
from controller.observe.case import (
    Decision,
    Known,
    Needs,
    clock_of_groups,
    clock_of_host,
    clock_of_migration,
    clock_of_nics,
    clock_of_place,
    clock_of_removal,
)
from controller.observe.cloudevents import (
    Event,
    HostEvent,
    MigrationCompleted,
    MigrationFailed,
    MigrationStarted,
    Refused,
    VmPlaced,
    VmRemoved,
    VmUpdated,
    Why,
)
from controller.observe.moving import Moving
from controller.observe.placing import Placing


def needs(event: Event, named: Migration | None = None) -> Needs:
    """What `decide` will ask of `Known` for this event, `named` being the migration that
    it names, as far as there is one."""
    data = event.data
    if isinstance(data, HostEvent):
        return Needs(None, (data.host,), None, (clock_of_host(data.host),))
    hosts: tuple[str, ...] = ()
    clocks = [clock_of_place(data.vm)]
    if isinstance(data, VmPlaced | VmRemoved):
        hosts = (data.host,)
    elif isinstance(data, VmUpdated):
        clocks += [clock_of_nics(data.vm), clock_of_groups(data.vm)]
    elif isinstance(data, MigrationStarted):
        hosts = (data.source, data.target)
    elif isinstance(data, MigrationCompleted):
        hosts = (data.target,) if data.target else ()
    places = {*hosts, *((named.source, named.target) if named else ())}
    clocks += [clock_of_removal(data.vm, host) for host in sorted(places)]
    migration = getattr(data, "migration", None)
    if migration is not None:
        clocks.append(clock_of_migration(migration))
    return Needs(data.vm, hosts, migration, tuple(clocks))


def hosts_concerned(event: Event, known: Known) -> frozenset[str]:
    """The hosts that may speak of this event: for a migration source and target."""
    data = event.data
    if isinstance(data, VmPlaced | VmRemoved | HostEvent):
        return frozenset({data.host})
    if isinstance(data, VmUpdated):
        return frozenset({known.placement.host} if known.placement else ())
    if isinstance(data, MigrationStarted):
        return frozenset({data.source, data.target})
    named = known.migrations.get(data.migration)
    if named is not None:
        return frozenset({named.source, named.target})
    if isinstance(data, MigrationCompleted) and data.target is not None:
        return frozenset({data.target})
    return frozenset({known.placement.host} if known.placement else ())


def decide(event: Event, known: Known, now: float, skew_s: float) -> Decision:
    """What `event` makes of what is `known`, at `now` (Unix seconds, UTC).

    Raises Refused: FUTURE where the event is dated more than `skew_s` seconds ahead,
    UNKNOWN and CONFLICT as the table of this module says.
    """
    if event.at > now + skew_s:
        raise Refused(
            Why.FUTURE,
            f"the event is dated {event.at - now:.1f} s in the future (allowed: {skew_s:g} s); "
            "applied, it would shut out events that are to come",
            f"Set the clock of {event.source} (NTP) and send the event anew.",
        )
    match event.data:
        case VmPlaced() as placed:
            return Placing(event, known, now).placed(placed)
        case VmUpdated() as updated:
            return Placing(event, known, now).updated(updated)
        case VmRemoved() as removed:
            return Placing(event, known, now).removed(removed)
        case MigrationStarted() as started:
            return Moving(event, known, now).started(started)
        case MigrationCompleted() as completed:
            return Moving(event, known, now).completed(completed)
        case MigrationFailed() as failed:
            return Moving(event, known, now).failed(failed)
        case HostEvent() as host:
            return Placing(event, known, now).host(host)
