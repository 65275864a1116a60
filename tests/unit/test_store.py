from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from controller.model.nouns import (
    MAX_DATAPATH_NUMBER,
    AccessRule,
    Datapath,
    Host,
    Link,
    Migration,
    Nic,
    Phase,
    Placement,
    Port,
    Service,
    Subnet,
    Tenant,
    Vm,
)
from controller.store import (
    Duplicate,
    EventReceipt,
    FeedCompacted,
    InUse,
    Missing,
    NumbersExhausted,
    Progress,
    SchemaTooNew,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    Token,
    backup,
    schema,
)
from controller.store.shapes import SHAPES


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url, busy_timeout_s=2)
    yield store
    store.close()


def execute(url: str, *statements: str) -> None:
    """Change a database past the store."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def mac(n: int) -> str:
    return f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}"


def nic(n: int, subnet: str = "s", **more: str) -> Nic:
    return Nic.model_validate({"mac": mac(n), "subnet": subnet, **more})


def subnet(key: str = "s", tenant: str = "t", cidr: str = "10.0.0.0/24") -> Subnet:
    return Subnet.model_validate({"id": key, "tenant": tenant, "cidr": cidr})


def vm(key: str, *nics: Nic) -> Vm:
    return Vm(id=key, tenant="t", nics=nics)


def dpid(n: int) -> str:
    return f"{n:016x}"


def furnish(store: Store) -> None:
    """A tenant with a subnet, two hosts, and the VMs a and b without placement."""
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.put(subnet())
        for n in (1, 2):
            tx.put(Host(id=f"h{n}", datapath=dpid(n)))
        tx.put(vm("a", nic(1, ipv4="10.0.0.11", ipv6="fd00::11")))
        tx.put(vm("b", nic(2, ipv4="10.0.0.12")))


def move(key: str, vm: str = "a", port: str = "p", phase: Phase = Phase.STARTED) -> Migration:
    return Migration(
        id=key,
        vm=vm,
        source="h1",
        source_ports=("p",),
        target="h2",
        ports=(port,),
        phase=phase,
        started_at=1.0,
    )


# The schema.


def test_migrations_make_the_tables_that_the_code_knows(bare_url: str) -> None:
    Store.open(bare_url).close()
    engine = create_engine(bare_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()
    folder = Path(schema.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_current_head() == schema.HEAD


def test_a_newer_schema_is_refused(url: str) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match=f"9999 and this Pleach knows up to {schema.HEAD}"):
        Store.open(url)


def test_a_database_that_does_not_say_its_schema_is_refused(url: str) -> None:
    execute(url, "DELETE FROM alembic_version")
    with pytest.raises(StoreCorrupt, match="does not say what schema"):
        Store.open(url)


def test_a_database_of_another_program_is_refused(bare_url: str) -> None:
    execute(bare_url, "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreCorrupt, match=r"no database of Pleach|none of Pleach"):
        Store.open(bare_url)


@pytest.mark.parametrize(
    "url", ["oracle://x/y", "nonsense", "sqlite://", "sqlite:///:memory:", "sqlite:///x?mode=ro"]
)
def test_an_unusable_url_says_what_would_be_right(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="sqlite://"):
        Store.open(url)


def test_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/pleach.db")
    furnish(store)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    store.close()


def test_what_was_committed_is_there_after_a_restart(store: Store, url: str) -> None:
    furnish(store)
    before = store.snapshot()
    store.close()
    again = Store.open(url)
    assert again.snapshot() == before
    again.close()


# Records and the feed.


def test_a_change_is_in_the_feed_with_its_record(store: Store) -> None:
    with store.transaction() as tx:
        tenant = tx.put(Tenant(id="t", name="Trees"))
        assert tx.get(Tenant, "t") == tenant
        assert tx.revision == 1
    assert tx.revision == store.revision == 1
    (change,) = store.changes(0)
    assert (change.revision, change.kind, change.key, change.record) == (1, "tenant", "t", tenant)
    with store.transaction() as tx:
        assert tx.delete(Tenant, "t")
        assert not tx.delete(Tenant, "t")
        assert tx.get(Tenant, "t") is None
    (change,) = store.changes(1)
    assert (change.revision, change.record) == (2, None)
    assert store.changes(2) == []


def test_what_is_equal_makes_no_entry(store: Store) -> None:
    furnish(store)
    before = store.revision
    with store.transaction() as tx:
        for record in store.snapshot().records():
            assert tx.put(record) == record
        tx.put(Tenant(id="t"))  # without its number
    assert tx.revision == store.revision == before


def test_an_exception_takes_all_back(store: Store) -> None:
    furnish(store)
    before = store.snapshot()

    def fail() -> None:
        with store.transaction() as tx:
            tx.put(Tenant(id="u"))
            tx.delete(Vm, "a")
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fail()
    assert store.snapshot() == before
    assert store.changes(before.revision) == []


def test_an_error_of_the_callers_own_files_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.transaction():
        (tmp_path / "absent").read_text()


def test_a_refused_record_leaves_the_transaction_usable(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Tenant(id="u"))
        with pytest.raises(Duplicate):
            # The row of the VM is written before those of its NICs: neither may stay.
            tx.put(vm("c", nic(3), nic(1)))
        assert tx.get(Vm, "c") is None
        with pytest.raises(InUse):
            tx.delete(Tenant, "t")
        tx.put(vm("c", nic(3)))
    assert [c.key for c in store.changes(tx.revision - 2)] == ["u", "c"]
    assert store.snapshot().vms["c"].nics == (nic(3),)


def test_a_transaction_is_never_cut_in_two(store: Store) -> None:
    with store.transaction() as tx:
        for n in range(10):
            tx.put(Tenant(id=f"t{n}"))
    with store.transaction() as tx:
        tx.put(Tenant(id="last"))
    assert len(store.changes(0, limit=3)) == 10
    assert [c.key for c in store.changes(10, limit=3)] == ["last"]
    assert len(store.changes(0, limit=11)) == 11


def test_records_are_found_by_what_they_refer_to(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Datapath(dpid=dpid(1)))
        tx.put(Datapath(dpid=dpid(2)))
        tx.put(Port(datapath=dpid(1), number=7, name="eth7"))
        tx.put(Link(datapath=dpid(1), port=7, to_datapath=dpid(2), to_port=8))
        tx.put(AccessRule(id="r", tenant="t"))
        tx.put(Placement(vm="a", host="h1", ports=("p",)))
        tx.put(move("m"))
        assert [r.id for r in tx.all(Vm)] == ["a", "b"]
        assert [r.id for r in tx.where(Vm, tenant="t")] == ["a", "b"]
        assert [r.id for r in tx.where(Vm, subnet="s", mac=mac(2))] == ["b"]
        assert [r.id for r in tx.where(Vm, host="h1")] == ["a"]
        assert tx.where(Vm, tenant="u") == []
        assert [r.vm for r in tx.where(Placement, host="h1")] == ["a"]
        assert [r.vm for r in tx.where(Placement, vm="a")] == ["a"]
        assert [r.id for r in tx.where(Migration, vm="a", host="h2")] == ["m"]
        assert [r.id for r in tx.where(Host, datapath=dpid(2))] == ["h2"]
        assert [r.name for r in tx.where(Port, datapath=dpid(1))] == ["eth7"]
        assert [r.port for r in tx.where(Link, to_datapath=dpid(2))] == [7]
        assert [r.id for r in tx.where(AccessRule, tenant="t")] == ["r"]
        with pytest.raises(ValueError, match="cannot be looked up by 'colour'"):
            tx.where(Vm, colour="red")


def test_the_order_of_keys_is_that_of_code_points(store: Store) -> None:
    keys = ["a", "B", "a-b", "aB", "ab", "Z", "z", "a.c", "0"]
    with store.transaction() as tx:
        for key in keys:
            tx.put(Tenant(id=key))
        assert [tenant.id for tenant in tx.all(Tenant)] == sorted(keys)


# What must be unique or there.


@pytest.mark.parametrize(
    ("clash", "field", "value"),
    [
        (nic(1), "mac", mac(1)),
        (nic(9, ipv4="10.0.0.11"), "ipv4", "10.0.0.11"),
        (nic(9, ipv6="fd00:0::0011"), "ipv6", "fd00::11"),
        (nic(9, link_local="fe80::ff:fe00:1"), "link_local", "fe80::ff:fe00:1"),
    ],
)
def test_addresses_are_unique(store: Store, clash: Nic, field: str, value: str) -> None:
    furnish(store)
    before = store.snapshot()
    for key in ("b", "new"):
        with pytest.raises(Duplicate) as caught, store.transaction() as tx:
            tx.put(vm(key, clash))
        error = caught.value
        assert (error.kind, error.field, error.value, error.holder) == ("nic", field, value, "vm a")
    assert store.snapshot() == before


def test_subnets_may_use_the_same_addresses(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Tenant(id="u"))
        tx.put(subnet("su", "u"))
        tx.put(Vm(id="c", tenant="u", nics=(nic(3, "su", ipv4="10.0.0.11"),)))


def test_nics_of_one_vm_may_not_clash_either(store: Store) -> None:
    furnish(store)
    with pytest.raises(Duplicate, match="another NIC of vm c"), store.transaction() as tx:
        tx.put(vm("c", nic(3, ipv4="10.0.0.3"), nic(4, ipv4="10.0.0.3")))
    with store.transaction() as tx:
        tx.put(vm("c", nic(3), nic(4)))
    with pytest.raises(Duplicate, match="another NIC of c"), store.transaction() as tx:
        tx.put(Placement(vm="c", host="h1", ports=("p", "p")))


def test_a_vm_may_swap_its_nics(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(vm("c", nic(3, ipv4="10.0.0.3"), nic(4, ipv4="10.0.0.4")))
        tx.put(Placement(vm="c", host="h1", ports=("p3", "p4")))
    with store.transaction() as tx:
        tx.put(vm("c", nic(4, ipv4="10.0.0.3"), nic(3, ipv4="10.0.0.4")))
        tx.put(Placement(vm="c", host="h1", ports=("p4", "p3")))
        tx.put(vm("b", nic(2)))
        tx.put(vm("d", nic(9, ipv4="10.0.0.12")))


def test_a_port_holds_one_nic(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Placement(vm="a", host="h1", ports=("p",)))
        tx.put(Placement(vm="b", host="h2", ports=("q",)))
    with (
        pytest.raises(Duplicate, match="port: h1/p already belongs to vm a"),
        store.transaction() as tx,
    ):
        tx.put(Placement(vm="b", host="h1", ports=("p",)))
    with (
        pytest.raises(Duplicate, match="port: h2/q already belongs to vm b"),
        store.transaction() as tx,
    ):
        tx.put(move("m", port="q"))
    with store.transaction() as tx:
        tx.put(Placement(vm="b", host="h2", ports=("r",)))
        tx.put(move("m", port="q"))


def test_an_open_migration_holds_its_ports_at_the_target(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Placement(vm="a", host="h1", ports=("p",)))
        tx.put(move("m", port="q"))
    for phase in (Phase.STARTED, Phase.ACTIVATED, Phase.SETTLING):
        with store.transaction() as tx:
            tx.put(move("m", port="q", phase=phase))
            if phase is Phase.ACTIVATED:
                tx.put(Placement(vm="a", host="h2", ports=("q",)))
        with pytest.raises(Duplicate, match="vm a"), store.transaction() as tx:
            tx.put(Placement(vm="b", host="h2", ports=("q",)))
    with store.transaction() as tx:
        tx.put(move("m", port="q", phase=Phase.FAILED))
        tx.put(Placement(vm="a", host="h1", ports=("p",)))
        tx.put(Placement(vm="b", host="h2", ports=("q",)))


def test_a_vm_moves_once_at_a_time(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(move("m"))
    with pytest.raises(Duplicate) as caught, store.transaction() as tx:
        tx.put(move("n"))
    assert (caught.value.field, caught.value.holder) == ("vm", "migration m")
    with store.transaction() as tx:
        tx.put(move("m", phase=Phase.SETTLING))
        tx.put(move("n"))


def test_what_is_referred_to_must_be_there(store: Store) -> None:
    furnish(store)
    wrong = (
        (Subnet, subnet("x", "none"), ("tenant", "none", "subnet x")),
        (Vm, Vm(id="c", tenant="none", nics=(nic(3),)), ("tenant", "none", "vm c")),
        (Vm, vm("c", nic(3, "none")), ("subnet", "none", "vm c")),
        (Placement, Placement(vm="c", host="h1", ports=()), ("vm", "c", "placement c")),
        (Placement, Placement(vm="a", host="h9", ports=()), ("host", "h9", "placement a")),
        (Migration, move("m", vm="c"), ("vm", "c", "migration m")),
        (Port, Port(datapath=dpid(9), number=1, name="x"), ("datapath", dpid(9), None)),
        (AccessRule, AccessRule(id="r", tenant="none"), ("tenant", "none", "access_rule r")),
    )
    before = store.snapshot()
    for cls, record, (kind, key, wanted_by) in wrong:
        with pytest.raises(Missing) as caught, store.transaction() as tx:
            tx.put(record)
        assert (caught.value.kind, caught.value.key) == (kind, key), cls
        assert wanted_by in (None, caught.value.wanted_by)
    assert store.snapshot() == before


def test_what_is_referred_to_stays(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(Placement(vm="a", host="h1", ports=("p",)))
        tx.put(move("m"))
        tx.put(Datapath(dpid=dpid(1)))
        tx.put(Port(datapath=dpid(1), number=1, name="x"))
    for cls, key, used_by in (
        (Tenant, "t", "subnet s"),
        (Subnet, "s", "vm a"),
        (Vm, "a", "placement a"),
        (Host, "h1", "placement a"),
        (Host, "h2", "migration m"),
        (Datapath, dpid(1), f"port {dpid(1)}:1"),
    ):
        with pytest.raises(InUse) as caught, store.transaction() as tx:
            tx.delete(cls, key)
        assert (caught.value.key, caught.value.used_by) == (key, used_by)


def test_what_is_over_keeps_nobody(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        tx.put(move("m", phase=Phase.FINISHED))
        assert tx.delete(Vm, "a")
        assert tx.delete(Host, "h2")
        assert [m.id for m in tx.where(Migration, vm="a")] == ["m"]


# Numbers.


def test_numbers_ascend_and_never_change(store: Store) -> None:
    with store.transaction() as tx:
        assert [tx.put(Tenant(id=f"t{n}")).number for n in range(3)] == [1, 2, 3]
        assert tx.put(Tenant(id="t1", name="new")).number == 2
        assert tx.put(Tenant(id="t1", name="newer", number=9)).number == 2
        tx.delete(Tenant, "t0")
        tx.delete(Tenant, "t2")
        assert tx.put(Tenant(id="t3")).number == 4
        assert tx.put(Tenant(id="t0", number=7)).number == 7
        assert tx.put(Tenant(id="t4")).number == 8
        assert tx.put(Datapath(dpid=1)).number == 1
    with (
        pytest.raises(Duplicate, match="tenant number: 7 already belongs to tenant t0"),
        store.transaction() as tx,
    ):
        tx.put(Tenant(id="t9", number=7))


def test_a_refused_record_takes_no_number(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        with pytest.raises(Missing):
            tx.put(AccessRule(id="r", tenant="none"))
        assert tx.put(AccessRule(id="r", tenant="t")).number == 1


def test_freed_numbers_come_back_when_none_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SHAPES["datapath"].max_number == MAX_DATAPATH_NUMBER
    monkeypatch.setitem(SHAPES, "datapath", replace(SHAPES["datapath"], max_number=9))
    with store.transaction() as tx:
        for n in range(1, 10):
            tx.put(Datapath(dpid=n))
    with pytest.raises(NumbersExhausted, match="datapath"), store.transaction() as tx:
        tx.put(Datapath(dpid=10))
    with store.transaction() as tx:
        for n in (1, 7, 9):
            tx.delete(Datapath, dpid(n))
        numbers = [tx.put(Datapath(dpid=10 + n)).number for n in range(3)]
    assert numbers == [1, 7, 9]


# Compaction.


def test_compaction_keeps_the_newest_and_tells_who_is_behind(url: str) -> None:
    store = Store.open(url, feed_keep=5)
    for n in range(12):
        with store.transaction(durable=False) as tx:
            tx.put(Tenant(id="t", name=str(n)))
    assert store.compact() == 7
    assert store.compact() == 0
    with pytest.raises(FeedCompacted) as caught:
        store.changes(6)
    assert (caught.value.after, caught.value.oldest) == (6, 8)
    assert [c.revision for c in store.changes(7)] == [8, 9, 10, 11, 12]
    store.check()
    store.close()


def test_a_hole_in_the_feed_is_damage(url: str) -> None:
    store = Store.open(url)
    store.check()
    furnish(store)
    store.check()
    for statement in (
        "DELETE FROM feed WHERE revision = 3",
        "UPDATE counter SET value = 9 WHERE name = 'revision'",
        "DELETE FROM feed",
    ):
        execute(url, statement)
        with pytest.raises(StoreCorrupt, match="change feed: it has"):
            store.check()
    store.close()


def test_revisions_are_never_used_again(url: str) -> None:
    store = Store.open(url, feed_keep=0)
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.delete(Tenant, "t")
    assert store.compact() == 2
    store.close()
    store = Store.open(url)
    assert store.changes(2) == []
    with store.transaction() as tx:
        assert tx.put(Tenant(id="u")).number == 2
    assert store.revision == 3
    assert [c.revision for c in store.changes(2)] == [3]
    store.close()


def test_a_consumer_ahead_of_a_restored_backup_starts_anew(store: Store) -> None:
    with pytest.raises(FeedCompacted):
        store.changes(5)


# Events, progress, tokens, audit.


def test_events_are_remembered_until_forgotten(store: Store) -> None:
    first = EventReceipt("h1", "e1", "f" * 64, "applied", 3, received_at=10.0)
    second = EventReceipt("h1", "e2", "f" * 64, "late", 4, received_at=20.0)
    with store.transaction() as tx:
        assert tx.seen("h1", "e1") is None
        tx.remember(first)
        tx.remember(second)
        with pytest.raises(Duplicate):
            tx.remember(first)
    with store.transaction() as tx:
        assert tx.seen("h1", "e1") == first
        assert tx.seen("h2", "e1") is None
        assert tx.forget_events(older_than=20.0) == 1
        assert tx.seen("h1", "e1") is None
        assert tx.seen("h1", "e2") == second
    assert store.revision == 0


def test_event_times_survive_and_never_fall_back(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        assert tx.last_event("vm/a") is None
        tx.note_event("vm/a", 5.0)
        tx.note_event("vm/a", 4.0)
        tx.note_event("vm/b", 50.0)
        tx.delete(Vm, "a")
        assert tx.last_event("vm/a") == 5.0
        with pytest.raises(ValueError, match="subject is empty"):
            tx.note_event("", 1.0)
        tx.forget_events(older_than=10.0)
        # What was forgotten still counts: an event from before it is late for everyone.
        assert tx.last_event("vm/a") == 5.0
        assert tx.last_event("vm/new") == 5.0
        assert tx.last_event("vm/b") == 50.0


def test_progress_is_replaced_and_goes_with_its_datapath(store: Store) -> None:
    one = Progress(dpid(1), 5, 1.0, connected=True, pending=0)
    two = Progress(dpid(2), 4, 2.0, connected=False, pending=3, error="no route")
    store.set_progress([one, two])
    newer = Progress(dpid(1), 6, 3.0, connected=True, pending=1)
    store.set_progress([newer])
    store.set_progress([])
    assert store.progress() == {dpid(1): newer, dpid(2): two}
    assert store.revision == 0
    with store.transaction() as tx:
        tx.put(Datapath(dpid=1))
        tx.delete(Datapath, dpid(1))
    assert store.progress() == {dpid(2): two}


def test_tokens(store: Store) -> None:
    token = Token("agent", "hypervisor", "h1", "d" * 64, 1.0, 2.0)
    other = Token("viewer", "viewer", None, "e" * 64, 1.0)
    with store.transaction() as tx:
        tx.put_token(token)
        tx.put_token(other)
        with pytest.raises(Duplicate, match="token agent"):
            tx.put_token(Token("thief", "operator", None, "d" * 64, 1.0))
        assert tx.tokens() == [token, other]
    assert store.token("d" * 64) == token
    with store.transaction() as tx:
        tx.put_token(Token("agent", "hypervisor", "h1", "c" * 64, 3.0))
        assert tx.token("agent") == Token("agent", "hypervisor", "h1", "c" * 64, 3.0)
        assert tx.revoke_token("viewer")
        assert not tx.revoke_token("viewer")
        assert tx.token("viewer") is None
    assert store.token("d" * 64) is None


def test_the_audit_log_is_read_backwards(store: Store) -> None:
    with store.transaction() as tx:
        for n in range(5):
            tx.audit(float(n), "ann", "put", f"vm/{n}", {"n": n, "why": ["ü"]})
    newest = store.audit_log(limit=2)
    assert [e.subject for e in newest] == ["vm/4", "vm/3"]
    assert newest[0].detail == {"n": 4, "why": ["ü"]}
    assert newest[0].at == 4.0
    assert [e.subject for e in store.audit_log(before=newest[-1].id)] == ["vm/2", "vm/1", "vm/0"]


# Threads, locks, backups.


def test_threads_share_one_store(store: Store) -> None:
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(20):
                with store.transaction(durable=False) as tx:
                    tx.put(Tenant(id=f"{name}{n}"))
                assert f"{name}{n}" in store.snapshot().tenants
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [c.revision for c in store.changes(0)] == list(range(1, 81))
    assert sorted(t.number for t in store.snapshot().tenants.values()) == list(range(1, 81))


def test_a_lock_that_is_never_given_back_ends_in_an_error(url: str) -> None:
    store, other = Store.open(url), Store.open(url, busy_timeout_s=0.05)
    with store.transaction() as tx:
        tx.put(Tenant(id="t"))
        with pytest.raises(StoreBusy, match=r"more than 0\.05 s"), other.transaction():
            pass
        with pytest.raises(StoreBusy), other.transaction(), other.transaction():
            pass
        assert other.snapshot().tenants == {}  # readers do not wait
    assert list(other.snapshot().tenants) == ["t"]
    with pytest.raises(StoreBusy), other.transaction(), other.transaction():
        pass  # nested
    store.close()
    other.close()


def test_a_backup_is_a_store(store: Store, url: str, tmp_path: Path) -> None:
    furnish(store)
    store.backup(tmp_path / "one.db")
    with store.transaction() as tx:
        tx.put(Tenant(id="later"))
    backup(url, tmp_path / "two.db")
    for name, tenants in (("one", ["t"]), ("two", ["t", "later"])):
        copy = Store.open(f"sqlite:///{tmp_path}/{name}.db")
        assert sorted(copy.snapshot().tenants) == sorted(tenants)
        copy.close()
    with pytest.raises(StoreError, match="there is such a file already"):
        store.backup(tmp_path / "one.db")
    with pytest.raises(StoreError, match="absent"):
        store.backup(tmp_path / "absent" / "x.db")


def a_service(vm: str, port: int) -> Service:
    return Service(
        vm=vm,
        protocol="tcp",
        port=port,
        application="HTTP",
        how="confirmed",
        category="web server",
        category_how="confirmed",
        confidence=1.0,
        concluded_at=1.0,
        flows=1,
        packets=4,
        due=2.0,
    )


def test_the_services_of_a_vm_go_with_it(store: Store) -> None:
    furnish(store)
    with store.transaction() as tx:
        for name, port in (("a", 80), ("a", 443), ("b", 80)):
            tx.put(a_service(name, port))
    before = store.revision
    with store.transaction() as tx:
        assert tx.delete(Vm, "a")
    gone = [(c.kind, c.key) for c in store.changes(before, 10)]
    assert gone == [("service", "a:tcp:443"), ("service", "a:tcp:80"), ("vm", "a")]
    assert list(store.snapshot().services) == ["b:tcp:80"]
    with pytest.raises(Missing), store.transaction() as tx:
        tx.put(a_service("a", 80))
