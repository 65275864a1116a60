from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.model.nouns import Host, HostState, Migration, Phase, Placement, Record, Vm
from controller.observe import migrations
from controller.observe.case import Decision, Known, Outcome
from controller.observe.cloudevents import Event, Refused, Why, parse
from controller.observe.events import decide, hosts_concerned, needs

T0 = 1_700_000_000.0
SKEW = 30.0
HOSTS = ("h1", "h2", "h3")


def message(kind: str, at: float, **data: object) -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": f"{kind}-{at}",
        "source": "/agent",
        "type": kind,
        "time": datetime.fromtimestamp(T0 + at, UTC).isoformat().replace("+00:00", "Z"),
        "data": data,
    }


def event(kind: str, at: float, **data: object) -> Event:
    return parse(message(kind, at, **data))


def vm_record(nics: int = 1) -> Vm:
    return Vm.model_validate(
        {
            "id": "a",
            "tenant": "t",
            "nics": [{"mac": f"02:00:00:00:00:{n:02x}", "subnet": "s"} for n in range(1, nics + 1)],
        }
    )


class World:
    """A store of one VM's facts, without a store."""

    def __init__(self, nics: int = 1) -> None:
        self.vm: Vm | None = vm_record(nics)
        self.hosts = {h: Host(id=h, datapath=f"{n:016x}") for n, h in enumerate(HOSTS, 1)}
        self.placement: Placement | None = None
        self.migrations: dict[str, Migration] = {}
        self.clocks: dict[str, float] = {}

    def tell(self, what: Event, now: float | None = None) -> Decision:
        wanted = needs(what, self.migrations.get(getattr(what.data, "migration", "")))
        known = Known(
            vm=self.vm,
            placement=self.placement,
            migrations=self.migrations,
            hosts={h: self.hosts[h] for h in wanted.hosts if h in self.hosts},
            clocks={c: self.clocks[c] for c in wanted.clocks if c in self.clocks},
        )
        decision = decide(what, known, T0 + 1_000 if now is None else now, SKEW)
        assert set(decision.clocks) <= set(wanted.clocks)
        for record in decision.delete:
            if isinstance(record, Placement):
                self.placement = None
            else:
                del self.migrations[record.key]
        for record in decision.put:
            self._put(record)
        self.clocks.update(decision.clocks)
        return decision

    def _put(self, record: Record) -> None:
        if isinstance(record, Placement):
            self.placement = record
        elif isinstance(record, Migration):
            self.migrations[record.id] = record
        elif isinstance(record, Vm):
            self.vm = record
        else:
            assert isinstance(record, Host)
            self.hosts[record.id] = record

    def placed(self, host: str, at: float, *ports: str) -> Decision:
        return self.tell(event("vm.placed", at, vm="a", host=host, ports=ports or ("p1",)))

    def removed(self, host: str, at: float) -> Decision:
        return self.tell(event("vm.removed", at, vm="a", host=host))

    def started(self, m: str, source: str, target: str, at: float, *ports: str) -> Decision:
        return self.tell(
            event(
                "vm.migration.started",
                at,
                migration=m,
                vm="a",
                source=source,
                target=target,
                ports=ports or ("p9",),
            )
        )

    def completed(self, m: str, at: float, **more: object) -> Decision:
        return self.tell(event("vm.migration.completed", at, migration=m, vm="a", **more))

    def failed(self, m: str, at: float) -> Decision:
        return self.tell(event("vm.migration.failed", at, migration=m, vm="a"))

    @property
    def where(self) -> tuple[str, ...] | None:
        return (self.placement.host, *self.placement.ports) if self.placement else None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def moving(world: World) -> World:
    world.placed("h1", 1)
    world.started("m", "h1", "h2", 2)
    return world


# What a message says


def test_a_message_becomes_an_event() -> None:
    told = event("vm.placed", 1.5, vm="a", host="h1", ports=["p1"])
    assert (told.at, told.about, told.source) == (T0 + 1.5, "a", "/agent")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"specversion": "0.3"}, "/specversion"),
        ({"id": "a\x00b"}, "/id"),
        ({"source": "/a\n"}, "/source"),
        ({"id": ""}, "/id"),
        ({"source": 7}, "/source"),
        ({"time": "2030-01-31 08:00"}, "/time"),
        ({"time": "2030-01-31T08:00:00"}, "/time"),
        ({"time": "2030-02-31T08:00:00Z"}, "/time"),
        ({"type": "vm.exploded"}, "/type"),
        ({"data": None}, "/data"),
        ({"data_base64": "e30="}, "/data_base64"),
        ({"datacontenttype": "text/xml"}, "/datacontenttype"),
        ({"data": {"vm": "a", "host": "h1", "ports": ["p", "p"]}}, "/data/ports"),
        ({"data": {"vm": "a", "host": "h1", "ports": []}}, "/data/ports"),
        ({"data": {"vm": "a", "host": "h1", "ports": ["p"], "x": 1}}, "/data/x"),
        ({"data": {"vm": "../a", "host": "h1", "ports": ["p"]}}, "/data/vm"),
    ],
)
def test_a_malformed_message_is_refused_with_its_place(
    change: dict[str, object], pointer: str
) -> None:
    with pytest.raises(Refused) as refused:
        parse({**message("vm.placed", 1, vm="a", host="h1", ports=["p"]), **change})
    assert refused.value.why is Why.MALFORMED
    assert pointer in [fault.pointer for fault in refused.value.faults]


@pytest.mark.parametrize("text", [[], "x", None, 3])
def test_what_is_no_object_is_refused(text: object) -> None:
    with pytest.raises(Refused):
        parse(text)


def test_times_with_zone_and_nanoseconds_are_one_instant() -> None:
    base = message("host.up", 0, host="h1")
    one = parse({**base, "time": "2030-01-31T08:00:00.123456789Z"})
    two = parse({**base, "time": "2030-01-31t10:00:00.123456789+02:00"})
    assert one.at == two.at
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_tells_other_content_apart() -> None:
    base = message("host.up", 0, host="h1")
    assert parse(base).fingerprint != parse({**base, "data": {"host": "h2"}}).fingerprint
    assert parse(base).fingerprint != parse({**base, "type": "host.down"}).fingerprint


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["specversion", "id", "source", "type", "time", "data", "datacontenttype"]),
        st.sampled_from(["1.0", "vm.placed", "host.up", "2030-01-31T08:00:00Z"]) | json_values,
    )
)
@settings(max_examples=60)
def test_any_message_is_an_event_or_refused(anything: dict[str, object]) -> None:
    with suppress(Refused):
        assert parse(anything).id


# What it means


def test_placed_moves_and_says_so(world: World) -> None:
    assert world.placed("h1", 1).outcome is Outcome.APPLIED
    assert world.placed("h1", 2).outcome is Outcome.UNCHANGED
    assert world.placed("h2", 3).outcome is Outcome.APPLIED
    assert world.where == ("h2", "p1")


def test_an_older_event_is_late_and_without_effect(world: World) -> None:
    world.placed("h2", 5)
    decision = world.placed("h1", 4)
    assert (decision.outcome, decision.put, decision.delete) == (Outcome.LATE, (), ())
    assert world.removed("h2", 3).outcome is Outcome.LATE
    assert world.where == ("h2", "p1")


def test_the_future_is_refused(world: World) -> None:
    far = event("vm.placed", 100, vm="a", host="h1", ports=["p1"])
    with pytest.raises(Refused) as refused:
        world.tell(far, now=T0 + 100 - SKEW - 1)
    assert refused.value.why is Why.FUTURE
    assert world.tell(far, now=T0 + 100 - SKEW).outcome is Outcome.APPLIED


def test_unknown_vms_and_hosts_are_told_what_comes_first(world: World) -> None:
    with pytest.raises(Refused, match="no host h9") as refused:
        world.placed("h9", 1)
    assert "PUT /v1/hosts/h9" in refused.value.mend
    world.vm = None
    with pytest.raises(Refused, match="no VM a") as refused:
        world.placed("h1", 1)
    assert "PUT /v1/vms/a" in refused.value.mend
    assert world.removed("h1", 2).outcome is Outcome.IGNORED


def test_one_port_for_each_nic() -> None:
    world = World(nics=2)
    with pytest.raises(Refused, match="2 NIC") as refused:
        world.placed("h1", 1, "p1")
    assert refused.value.why is Why.CONFLICT
    assert world.placed("h1", 1, "p1", "p2").outcome is Outcome.APPLIED


def test_removal_at_another_host_undoes_nothing(world: World) -> None:
    world.placed("h2", 1)
    assert world.removed("h1", 2).outcome is Outcome.IGNORED
    assert world.where == ("h2", "p1")
    assert world.removed("h2", 3).outcome is Outcome.APPLIED
    assert world.where is None


def test_a_removal_that_overtakes_its_placement_still_counts(world: World) -> None:
    world.placed("h1", 1)
    world.removed("h2", 5)
    world.placed("h2", 4)
    assert world.where is None


def test_a_migration_runs_its_course(moving: World) -> None:
    assert moving.where == ("h1", "p1")
    assert moving.migrations["m"].phase is Phase.STARTED
    assert moving.completed("m", 3).outcome is Outcome.APPLIED
    assert moving.where == ("h2", "p9")
    assert moving.migrations["m"].activated_by == "event"
    assert moving.removed("h1", 4).outcome is Outcome.IGNORED
    assert moving.where == ("h2", "p9")


def test_the_sources_tidy_up_before_the_end_undoes_nothing(moving: World) -> None:
    assert moving.removed("h1", 3).outcome is Outcome.IGNORED
    assert moving.migrations["m"].open
    moving.completed("m", 4)
    assert moving.where == ("h2", "p9")


def test_failed_takes_all_back(moving: World) -> None:
    moving.failed("m", 3)
    assert moving.where == ("h1", "p1")
    assert moving.migrations["m"].phase is Phase.FAILED
    assert moving.completed("m", 2.5).outcome is Outcome.LATE
    assert moving.where == ("h1", "p1")


def test_failed_of_a_vm_that_died_meanwhile_places_it_nowhere(moving: World) -> None:
    moving.removed("h1", 3)
    moving.failed("m", 4)
    assert moving.where is None


def test_failed_after_a_restart_at_the_source_stays_there(moving: World) -> None:
    moving.removed("h1", 3)
    moving.placed("h1", 4)
    moving.failed("m", 5)
    assert moving.where == ("h1", "p1")


def test_failed_after_activation_goes_back(moving: World) -> None:
    moving.completed("m", 3)
    moving.failed("m", 4)
    assert moving.where == ("h1", "p1")
    assert moving.migrations["m"].phase is Phase.FAILED


def test_failed_after_the_source_is_drained_is_ignored(moving: World) -> None:
    moving.completed("m", 3)
    moving.migrations["m"] = moving.migrations["m"].model_copy(update={"phase": Phase.SETTLING})
    assert moving.failed("m", 4).outcome is Outcome.IGNORED
    assert moving.where == ("h2", "p9")


def test_placed_at_the_target_completes(moving: World) -> None:
    moving.placed("h2", 3, "p8")
    assert moving.where == ("h2", "p8")
    assert moving.migrations["m"].phase is Phase.ACTIVATED
    assert moving.migrations["m"].ports == ("p8",)
    assert moving.completed("m", 4, ports=["p8"]).outcome is Outcome.UNCHANGED


def test_placed_at_the_source_while_it_moves_changes_nothing(moving: World) -> None:
    assert moving.placed("h1", 3).outcome is Outcome.UNCHANGED
    assert moving.migrations["m"].phase is Phase.STARTED


def test_placed_at_a_third_host_fails_the_migration(moving: World) -> None:
    moving.placed("h3", 3)
    assert moving.where == ("h3", "p1")
    assert moving.migrations["m"].phase is Phase.FAILED


def test_placed_at_the_source_after_activation_fails_the_migration(moving: World) -> None:
    moving.completed("m", 3)
    moving.placed("h1", 4)
    assert moving.where == ("h1", "p1")
    assert moving.migrations["m"].phase is Phase.FAILED


def test_a_packet_from_the_target_outdates_what_the_source_said_before(moving: World) -> None:
    moved, place = migrations.activate(moving.migrations["m"], T0 + 10, "packet")
    moving.migrations["m"], moving.placement = moved, place
    assert moving.placed("h1", 5).outcome is Outcome.LATE
    assert moving.where == ("h2", "p9")
    assert moving.completed("m", 6).outcome is Outcome.UNCHANGED
    assert moving.placed("h1", 11).outcome is Outcome.APPLIED
    assert moving.where == ("h1", "p1")


def test_completed_without_started_needs_a_place(world: World) -> None:
    world.placed("h1", 1)
    with pytest.raises(Refused) as refused:
        world.completed("m", 3)
    assert refused.value.why is Why.UNKNOWN
    world.completed("m", 3, target="h2", ports=["p4"])
    assert world.where == ("h2", "p4")
    assert world.started("m", "h1", "h2", 2, "p4").outcome is Outcome.LATE
    assert world.migrations == {}


def test_failed_without_started_is_ignored_and_bars_the_late_start(world: World) -> None:
    world.placed("h1", 1)
    assert world.failed("m", 3).outcome is Outcome.IGNORED
    assert world.started("m", "h1", "h2", 2).outcome is Outcome.LATE
    assert world.migrations == {}


@pytest.mark.parametrize(
    ("source", "target", "port", "cause"),
    [
        ("h2", "h3", "p9", "is at h1"),
        ("h1", "h1", "p1", "already"),
    ],
)
def test_impossible_starts_are_refused(
    world: World, source: str, target: str, port: str, cause: str
) -> None:
    world.placed("h1", 1)
    with pytest.raises(Refused, match=cause) as refused:
        world.started("m", source, target, 2, port)
    assert refused.value.why is Why.CONFLICT


def test_a_second_start_is_refused_while_the_first_is_open(moving: World) -> None:
    with pytest.raises(Refused, match=r"migration m .* still open"):
        moving.started("n", "h1", "h3", 3)
    assert moving.started("m", "h1", "h2", 3).outcome is Outcome.UNCHANGED
    with pytest.raises(Refused, match="other hosts"):
        moving.started("m", "h1", "h3", 3)


def test_moving_on_before_the_drain_is_over_ends_the_first_move(moving: World) -> None:
    moving.completed("m", 3)
    moving.started("n", "h2", "h1", 4)
    assert moving.migrations["m"].phase is Phase.FINISHED
    assert moving.migrations["n"].source_ports == ("p9",)


def test_ended_migrations_do_not_pile_up(world: World) -> None:
    world.placed("h1", 0)
    for n in range(30):
        source, target = ("h1", "h2") if n % 2 == 0 else ("h2", "h1")
        world.started(f"m{n}", source, target, 2 * n + 1)
        world.completed(f"m{n}", 2 * n + 2)
    assert len(world.migrations) < 12


def test_a_move_between_ports_of_one_host(world: World) -> None:
    world.placed("h1", 1)
    world.started("m", "h1", "h1", 2, "p2")
    assert world.placed("h1", 3, "p1").outcome is Outcome.UNCHANGED
    world.placed("h1", 4, "p2")
    assert world.migrations["m"].phase is Phase.ACTIVATED
    assert world.where == ("h1", "p2")


def test_updates_are_ordered_by_what_they_tell(world: World) -> None:
    world.placed("h1", 9)

    def update(at: float, **what: object) -> Outcome:
        return world.tell(event("vm.updated", at, vm="a", **what)).outcome

    assert update(3, groups=["web"]) is Outcome.APPLIED
    assert update(2, groups=["db"]) is Outcome.LATE
    assert update(4, groups=["web"]) is Outcome.UNCHANGED
    assert world.vm is not None
    assert world.vm.groups == ("web",)
    assert update(5, ports=["p7"]) is Outcome.LATE
    assert update(10, ports=["p7"]) is Outcome.APPLIED
    assert world.where == ("h1", "p7")
    partly = world.tell(event("vm.updated", 9.5, vm="a", ports=["p6"], groups=["x"]))
    assert partly.outcome is Outcome.APPLIED
    assert "left out" in partly.reason
    assert world.where == ("h1", "p7")


def test_an_added_nic_needs_its_port(moving: World) -> None:
    nics = [{"mac": f"02:00:00:00:01:0{n}", "subnet": "s"} for n in (1, 2)]
    with pytest.raises(Refused, match="2 NIC"):
        moving.tell(event("vm.updated", 3, vm="a", nics=nics))
    with pytest.raises(Refused, match="2 NIC"):  # the target has a port for one NIC only
        moving.tell(event("vm.updated", 3, vm="a", nics=nics, ports=["p1", "p2"]))
    moving.failed("m", 4)
    moving.tell(event("vm.updated", 5, vm="a", nics=nics, ports=["p1", "p2"]))
    assert moving.where == ("h1", "p1", "p2")


def test_new_ports_in_the_middle_of_a_move(moving: World) -> None:
    moving.tell(event("vm.updated", 3, vm="a", ports=["p5"]))
    assert moving.migrations["m"].source_ports == ("p5",)
    moving.failed("m", 4)
    assert moving.where == ("h1", "p5")


def test_ports_of_a_vm_that_is_nowhere_cannot_be_updated(world: World) -> None:
    with pytest.raises(Refused, match="placed nowhere"):
        world.tell(event("vm.updated", 3, vm="a", ports=["p5"]))


def test_a_host_going_down_keeps_its_placements(world: World) -> None:
    world.placed("h1", 1)
    world.tell(event("host.down", 2, host="h1"))
    assert world.hosts["h1"].state is HostState.DOWN
    assert world.where == ("h1", "p1")
    assert world.tell(event("host.up", 1, host="h1")).outcome is Outcome.LATE
    assert world.tell(event("host.draining", 3, host="h1")).outcome is Outcome.APPLIED


def test_who_may_speak() -> None:
    known = Known(placement=Placement(vm="a", host="h1", ports=("p1",)))
    migrate = event(
        "vm.migration.started", 1, migration="m", vm="a", source="h1", target="h2", ports=["p"]
    )
    assert hosts_concerned(migrate, known) == {"h1", "h2"}
    assert hosts_concerned(event("vm.updated", 1, vm="a", ports=["p"]), known) == {"h1"}
    assert hosts_concerned(event("vm.updated", 1, vm="a", ports=["p"]), Known()) == frozenset()


# Whatever the order


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """What really happened to a VM, told in full, ending with placed or removed."""
    rng = draw(st.randoms(use_true_random=False))
    told: list[Event] = []
    where: str | None = None
    at = 0.0

    def tell(kind: str, **data: object) -> None:
        nonlocal at
        at += rng.uniform(0.1, 3)
        told.append(event(kind, at, vm="a", **data))

    def place() -> str:
        host = rng.choice(HOSTS)
        tell("vm.placed", host=host, ports=[f"p{len(told)}"])
        return host

    for n in range(draw(st.integers(0, 6))):
        if where is None or rng.random() < 0.2:
            where = place()
        elif rng.random() < 0.3:
            tell("vm.removed", host=where)
            where = None
        else:
            target = rng.choice([h for h in HOSTS if h != where])
            ports = [f"q{n}"]
            tell(
                "vm.migration.started",
                migration=f"m{n}",
                source=where,
                target=target,
                ports=ports,
            )
            if rng.random() < 0.7:
                tell("vm.migration.completed", migration=f"m{n}", target=target, ports=ports)
                where = target
            else:
                tell("vm.migration.failed", migration=f"m{n}")
    if where is not None and rng.random() < 0.5:
        tell("vm.removed", host=where)
    else:
        place()
    return told


def told_in(order: list[Event]) -> World:
    world = World()
    for what in order:
        with suppress(Refused):
            world.tell(what)
    return world


@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=120)
def test_any_order_and_repetition_ends_in_the_same_place(
    history: list[Event], rng: random.Random
) -> None:
    shuffled = history + [what for what in history if rng.random() < 0.3]
    rng.shuffle(shuffled)
    straight, crooked = told_in(history), told_in(shuffled)
    assert crooked.where == straight.where
    open_moves = [m for m in crooked.migrations.values() if m.phase is Phase.STARTED]
    assert all(crooked.where == (m.source, *m.source_ports) for m in open_moves)


names = st.sampled_from(HOSTS)
anything = st.one_of(
    st.builds(lambda h, p: ("vm.placed", {"host": h, "ports": [p]}), names, st.sampled_from("pq")),
    st.builds(lambda h: ("vm.removed", {"host": h}), names),
    st.builds(
        lambda m, s, t, p: (
            "vm.migration.started",
            {"migration": m, "source": s, "target": t, "ports": [p]},
        ),
        st.sampled_from("mn"),
        names,
        names,
        st.sampled_from("pq"),
    ),
    st.builds(lambda m: ("vm.migration.completed", {"migration": m}), st.sampled_from("mn")),
    st.builds(
        lambda m, t: ("vm.migration.completed", {"migration": m, "target": t, "ports": ["z"]}),
        st.sampled_from("mn"),
        names,
    ),
    st.builds(lambda m: ("vm.migration.failed", {"migration": m}), st.sampled_from("mn")),
    st.builds(lambda p: ("vm.updated", {"ports": [p]}), st.sampled_from("pqr")),
)


@given(st.lists(anything, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=120)
def test_even_nonsense_ends_where_the_newest_placement_says(
    steps: list[tuple[str, dict[str, object]]], rng: random.Random
) -> None:
    history = [event(kind, n, vm="a", **data) for n, (kind, data) in enumerate(steps)]
    history.append(event("vm.placed", len(steps), vm="a", host="h3", ports=["last"]))
    rng.shuffle(history)
    world = told_in(history)
    assert world.where == ("h3", "last")
    assert sum(m.open for m in world.migrations.values()) <= 1
