"""Whatever is written and removed: who follows the feed knows what is so, and the store never
holds what contradicts itself."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from databases import Databases
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from controller.model.nouns import (
    AccessRule,
    Datapath,
    Host,
    Link,
    Migration,
    Nic,
    Phase,
    Placement,
    Port,
    Record,
    Subnet,
    Tenant,
    Vm,
)
from controller.model.state import Change, State
from controller.store import FeedCompacted, InUse, Store, StoreError
from tests.postgres import PostgresServer

few = st.integers(1, 3)
dpids = few.map(lambda n: f"{n:016x}")
tenants = few.map(lambda n: f"t{n}")
subnets = few.map(lambda n: f"s{n}")
hosts = few.map(lambda n: f"h{n}")
vms = few.map(lambda n: f"v{n}")
ports = st.lists(st.sampled_from(["p1", "p2", "p3"]), max_size=2).map(tuple)
nics = st.builds(
    lambda mac, subnet, ip: Nic.model_validate(
        {"mac": f"02:00:00:00:00:0{mac}", "subnet": subnet, "ipv4": f"10.0.0.{ip}" if ip else None}
    ),
    st.integers(1, 5),
    subnets,
    st.integers(0, 3),
)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Datapath, dpid=dpids, connected=st.booleans()),
    st.builds(Port, datapath=dpids, number=few, name=st.just("eth")),
    st.builds(Link, datapath=dpids, port=few, to_datapath=dpids, to_port=few),
    st.builds(Tenant, id=tenants, name=st.sampled_from(["", "x"])),
    st.builds(
        lambda key, tenant: Subnet.model_validate(
            {"id": key, "tenant": tenant, "cidr": "10.0.0.0/24"}
        ),
        subnets,
        tenants,
    ),
    st.builds(Host, id=hosts, datapath=dpids),
    st.builds(Vm, id=vms, tenant=tenants, nics=st.lists(nics, min_size=1, max_size=2).map(tuple)),
    st.builds(Placement, vm=vms, host=hosts, ports=ports),
    st.builds(
        Migration,
        id=few.map(lambda n: f"m{n}"),
        vm=vms,
        source=hosts,
        source_ports=ports,
        target=hosts,
        ports=ports,
        phase=st.sampled_from(Phase),
        started_at=st.just(1.0),
    ),
    st.builds(AccessRule, id=few.map(lambda n: f"r{n}"), tenant=tenants),
)


class FeedMachine(RuleBasedStateMachine):
    """A store that `source` gives, its writer, a consumer of its feed, and what must be so."""

    #: Gives the URL of an empty store, and what is to be done with it afterwards.
    source: ClassVar[Callable[[], tuple[str, Callable[[], None]]]]

    def __init__(self) -> None:
        super().__init__()
        url, self.discard = type(self).source()
        self.store = Store.open(url, feed_keep=6)
        self.reader = Store.open(url)
        self.consumer = State()
        self.model = State()

    @initialize()
    def furnish(self) -> None:
        with self.store.transaction(durable=False) as tx:
            for n in (1, 2, 3):
                self.model.apply(Change(0, "tenant", f"t{n}", tx.put(Tenant(id=f"t{n}"))))
                host = Host(id=f"h{n}", datapath=f"{n:016x}")
                self.model.apply(Change(0, "host", host.id, tx.put(host)))
                subnet = Subnet.model_validate(
                    {"id": f"s{n}", "tenant": "t1", "cidr": "10.0.0.0/24"}
                )
                self.model.apply(Change(0, "subnet", subnet.id, tx.put(subnet)))
        self.model.revision = tx.revision

    def teardown(self) -> None:
        self.store.close()
        self.reader.close()
        self.discard()

    @rule(
        batch=st.lists(st.tuples(records, st.booleans()), min_size=1, max_size=6),
        fails=st.booleans(),
    )
    def write(self, batch: list[tuple[Record, bool]], fails: bool) -> None:
        expected = copy.deepcopy(self.model)
        try:
            with self.store.transaction(durable=False) as tx:
                for record, remove in batch:
                    table = expected.table(record.kind)
                    try:
                        if remove:
                            assert tx.delete(type(record), record.key) == (record.key in table)
                            table.pop(record.key, None)
                        else:
                            before = table.get(record.key)
                            table[record.key] = tx.put(record)
                            if isinstance(before, Tenant | Subnet | Datapath | AccessRule):
                                assert before.number == tx.put(before).number
                                tx.put(record)
                    except StoreError:
                        continue  # that one record was refused, and nothing else
                    assert tx.get(type(record), record.key) == table.get(record.key)
                if fails:
                    raise InterruptedError
        except InterruptedError:
            return
        self.model = expected
        self.model.revision = tx.revision

    @rule(limit=st.integers(1, 4))
    def follow(self, limit: int) -> None:
        try:
            changes = self.reader.changes(self.consumer.revision, limit)
        except FeedCompacted:
            self.consumer = self.reader.snapshot()
            return
        revisions = [change.revision for change in changes]
        start = self.consumer.revision + 1
        assert revisions == list(range(start, start + len(revisions)))
        for change in changes:
            self.consumer.apply(change)

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @invariant()
    def the_snapshot_is_what_was_written(self) -> None:
        assert self.reader.snapshot() == self.model

    @invariant()
    def who_follows_knows_what_is_so(self) -> None:
        at = copy.deepcopy(self.consumer)
        while True:
            try:
                changes = self.reader.changes(at.revision, 3)
            except FeedCompacted:
                return  # tells the consumer to start anew, which `follow` does
            if not changes:
                break
            for change in changes:
                at.apply(change)
        assert at == self.model

    @invariant()
    def nothing_contradicts(self) -> None:
        now = self.model
        held = [nic for vm in now.vms.values() for nic in vm.nics]
        addresses = Counter((n.subnet, n.ipv4) for n in held if n.ipv4 is not None)
        assert max(Counter(n.mac for n in held).values(), default=1) == 1
        assert max(addresses.values(), default=1) == 1
        assert all(n.subnet in now.subnets for n in held)
        assert all(v.tenant in now.tenants for v in now.vms.values())
        assert all(p.vm in now.vms and p.host in now.hosts for p in now.placements.values())
        plugs: dict[tuple[str, str], set[str]] = {}
        for placement in now.placements.values():
            for port in placement.ports:
                plugs.setdefault((placement.host, port), set()).add(placement.vm)
        moving: list[str] = []
        for migration in now.migrations.values():
            if migration.open:
                assert migration.vm in now.vms
                assert {migration.source, migration.target} <= now.hosts.keys()
                for port in migration.ports:
                    plugs.setdefault((migration.target, port), set()).add(migration.vm)
            if migration.phase in (Phase.STARTED, Phase.ACTIVATED):
                moving.append(migration.vm)
        assert all(len(holders) == 1 for holders in plugs.values())
        assert len(moving) == len(set(moving))

    @invariant()
    def numbers_are_unique(self) -> None:
        for table in (self.model.tenants, self.model.subnets, self.model.datapaths):
            numbers = {key: record.number for key, record in table.items()}
            assert len(set(numbers.values())) == len(numbers)
            assert 0 not in numbers.values()


def run(source: Callable[[], tuple[str, Callable[[], None]]], examples: int) -> None:
    class Machine(FeedMachine):
        pass

    Machine.source = staticmethod(source)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_the_feed_on_sqlite(tmp_path: Path, empty_file: Path) -> None:
    def copied() -> tuple[str, Callable[[], None]]:
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        shutil.copy(empty_file, directory / "pleach.db")
        return f"sqlite:///{directory}/pleach.db", lambda: shutil.rmtree(directory)

    run(copied, 25)


def test_the_feed_on_postgresql(postgres: PostgresServer, databases: Databases) -> None:
    def taken() -> tuple[str, Callable[[], None]]:
        name = databases.take()
        return postgres.url(name), lambda: databases.give_back(name)

    run(taken, 6)


def test_a_record_that_is_used_can_go_after_its_user(url: str) -> None:
    # The order of RECORDS is one in which everything can be removed backwards.
    store = Store.open(url)
    with store.transaction() as tx:
        tx.put(Tenant(id="t1"))
        tx.put(Subnet.model_validate({"id": "s1", "tenant": "t1", "cidr": "10.0.0.0/24"}))
        tx.put(Host(id="h1", datapath=f"{1:016x}"))
        nic = Nic(mac="02:00:00:00:00:01", subnet="s1")
        tx.put(Vm(id="v1", tenant="t1", nics=(nic,)))
        tx.put(Placement(vm="v1", host="h1", ports=("p",)))
    everything = list(store.snapshot().records())
    refused = 0
    with store.transaction() as tx:
        for record in everything:
            try:
                tx.delete(type(record), record.key)
            except InUse:
                refused += 1
        for record in reversed(everything):
            tx.delete(type(record), record.key)
    assert refused == 4  # all but the placement
    assert list(store.snapshot().records()) == []
    store.close()
