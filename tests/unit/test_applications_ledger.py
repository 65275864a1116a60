"""What becomes of verdicts in the store, and when a service is looked at again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.model import nouns
from controller.model.nouns import MAX_SERVICES, Nic, Subnet, Tenant, Vm
from controller.observe.applications.ledger import Ledger, answered, keep, renewed
from controller.observe.applications.records import Direction, Kind, Service, Verdict
from controller.store import Store
from tests.unit.test_applications_services import BEHAVED, GUESS, RULES, UNKNOWN
from tests.unit.test_applications_services import verdict as unanswered

SERVICE = Service("vm-1", "tcp", 5432)


def verdict(like: Verdict | None = None, **changes: object) -> Verdict:
    return (like or unanswered())._replace(response_s=0.01, **changes)


def judge(ledger: Ledger, *verdicts: Verdict, now: float = 0.0, **known: nouns.Service) -> list:
    stored = {service.key: service for service in known.values()}
    return ledger.judge(stored, [(SERVICE, one) for one in verdicts], now)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(RULES, lambda: 0.0)


def settled(**changes: object) -> nouns.Service:
    [record] = Ledger(RULES, lambda: 0.0).judge({}, [(SERVICE, verdict())], 0.0)
    return record.model_copy(update=changes)


def test_what_is_confirmed_is_stored(ledger: Ledger) -> None:
    [record] = judge(ledger, verdict(risks=("b", "a"), handshake_s=0.002), now=7.0)
    assert (record.key, record.application) == ("vm-1:tcp:5432", "PostgreSQL")
    assert (record.how, record.category) == ("confirmed", "database")
    assert (record.handshake_s, record.response_s) == (0.002, 0.01)
    assert record.risks == ("a", "b")
    assert (record.tapped, record.concluded_at, record.due) == (False, 7.0, 7.0 + RULES.every_s)


def test_connections_at_the_same_time_settle_a_service_once(ledger: Ledger) -> None:
    """Nothing of what came beside the first is left over, to be concluded from later."""
    [record] = judge(ledger, verdict(), verdict(), verdict(unanswered("MySQL")), verdict(UNKNOWN))
    assert (record.application, record.flows) == ("PostgreSQL", 1)
    assert judge(ledger, now=RULES.patience_s, known=record) == []


def test_what_does_not_answer_is_no_service() -> None:
    assert not answered(unanswered())
    assert answered(unanswered(handshake=0.1))
    assert not answered(verdict(direction=Direction.FIRST))
    assert answered(verdict(protocol="udp", direction=Direction.FIRST))
    assert not answered(verdict(protocol="icmp"))


def test_a_scan_leaves_nothing(ledger: Ledger) -> None:
    scanned = [(Service("vm-1", "tcp", port), unanswered()) for port in range(1, 2_000)]
    assert ledger.judge({}, scanned, 0.0) == []
    assert ledger.judge({}, [], 1e6) == []


def test_what_nothing_recognises_is_settled_too(ledger: Ledger) -> None:
    several = [verdict(one) for one in (UNKNOWN, GUESS, UNKNOWN)]
    assert judge(ledger, *several[:2]) == []
    [record] = judge(ledger, several[2], now=3.0)
    assert (record.how, record.application, record.flows) == ("guessed", "PostgreSQL", 3)
    assert record.due == 3.0 + RULES.retry_s


def test_time_settles_what_has_seen_too_little(ledger: Ledger) -> None:
    assert judge(ledger, verdict(BEHAVED)) == []
    assert judge(ledger, now=RULES.patience_s - 1) == []
    [record] = judge(ledger, now=RULES.patience_s)
    assert (record.how, record.flows) == ("behavioural", 1)


def test_a_known_service_is_judged_only_while_it_is_tapped(ledger: Ledger) -> None:
    other = verdict(unanswered("MySQL"))
    assert judge(ledger, other, known=settled()) == []
    [record] = judge(ledger, other, known=settled(tapped=True))
    assert record.application == "MySQL"
    assert not record.tapped


def test_nonsense_is_not_stored(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    assert judge(ledger, verdict(application="")) == []
    assert "a verdict on a service is dropped" in caplog.text
    [record] = judge(ledger, verdict(application="x" * 1_000, risks=("y" * 1_000,) * 100))
    assert (len(record.application), len(record.risks)) == (100, 1)


def test_looked_at_again_and_let_be() -> None:
    known = settled()
    assert renewed(known, known.due - 1, 0.0, RULES) is known
    again = renewed(known, known.due, 0.0, RULES)
    assert again is not None
    assert (again.tapped, again.due) == (True, known.due + RULES.patience_s)
    assert again.application == known.application
    quiet = renewed(again, again.due, 0.5, RULES)
    assert quiet is not None
    assert (quiet.tapped, quiet.due) == (False, again.due + RULES.every_s * 1.1)
    for how in (Kind.UNKNOWN, Kind.GUESSED):
        assert renewed(settled(how=how.value, tapped=True, due=0.0), 5.0, 0.0, RULES) is None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/s.db")
    with opened.transaction() as tx:
        tx.put(Tenant(id="t"))
        tx.put(Subnet.model_validate({"id": "s", "tenant": "t", "cidr": "10.0.0.0/24"}))
        tx.put(Vm(id="vm-1", tenant="t", nics=(Nic(mac="02:00:00:00:00:01", subnet="s"),)))
    yield opened
    opened.close()


def test_a_vm_has_room_for_so_many(store: Store) -> None:
    with store.transaction() as tx:
        keep(tx, [settled(port=port) for port in range(MAX_SERVICES + 9)])
        keep(tx, [settled(port=0, application="MySQL"), settled(vm="gone")])
    kept = store.snapshot().services
    assert len(kept) == MAX_SERVICES
    assert kept["vm-1:tcp:0"].application == "MySQL"
