"""Bandwidth by REST, client and command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from northbound_server import EDGES, Running, define, other_store, running, wipe

from controller.client import Problem
from controller.model.nouns import Bandwidth, Mark, Marking, RateLimit, ServiceMark, Vm
from controller.store.usage import Metered, Usage, write_usage

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # The tests decide by themselves.
    environ = {"PLEACH_BANDWIDTH__ENABLED": "false"}
    with running(tmp_path_factory.mktemp("brain") / "state", environ=environ) as found:
        yield found


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    define(shared)
    yield shared
    wipe(shared)


@pytest.fixture
def pleach(served: Running, monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    monkeypatch.setenv("PLEACH_STATE_DIR", str(served.settings.state_dir))
    monkeypatch.setenv("PLEACH_NORTHBOUND__PORT", str(served.port))
    return command


def test_limits_are_put_told_and_deleted(served: Running) -> None:
    with served.client() as client:
        limit = RateLimit(vm="vm0", out_kbit=1_000)
        assert client.limit(limit) == limit == client.limit(limit)
        told = client.bandwidth("vm0")
        assert (told.out_kbit, told.in_kbit, told.limit) == (1_000, None, limit)
        assert (told.out_reason, told.in_reason) == ("the operator's limit", "nothing limits it")
        assert [b.vm for b in client.bandwidths().items] == ["vm0"]
        client.unlimit("vm0")
        assert not client.bandwidths().items
        with pytest.raises(Problem, match="vm vm0 has no limit"):
            client.unlimit("vm0")
        client.limit(limit)
        client.delete(Vm, "vm0")
        assert not client.bandwidths().items


@pytest.mark.parametrize(
    ("vm", "body", "status", "words"),
    [
        ("vm0", {}, 422, "nothing is limited"),
        ("vm0", {"out_kbit": 0}, 422, "greater than or equal to 1"),
        ("vm0", {"out_kbit": 1, "vm": "vm1"}, 422, "is not that of the path"),
        ("vm0", {"out_kbit": 1, "burst": 1}, 422, "Extra inputs"),
        ("vm0", [], 400, "no object"),
        ("nobody", {"in_kbit": 5}, 404, "there is no vm nobody"),
    ],
)
def test_what_is_no_limit_is_refused(
    served: Running, vm: str, body: object, status: int, words: str
) -> None:
    answer = served.call("PUT", f"/v1/bandwidth/{vm}", body)
    assert answer.status == status
    assert words in json.dumps(answer.body)
    with served.client() as client:
        assert not client.bandwidths().items


def decide(served: Running) -> None:
    """What loops and switches would write."""
    mark = Mark(name="interactive", dscp=18, traffic=5, paths=1)
    with other_store(served) as store:
        with store.transaction() as tx:
            tx.put(Bandwidth(vm="vm1", out_kbit=3_000, out_reason="its share of all that is"))
            services = (ServiceMark(protocol="tcp", port=22, mark=mark),)
            tx.put(Marking(vm="vm1", services=services))
        row = Usage(next(iter(EDGES.values())), 4e9, (Metered("vm1", True, 1.5e6, 0.0),))
        write_usage(store, [row])


def test_what_was_decided_is_told_with_its_reason_and_what_passed(served: Running) -> None:
    decide(served)
    with served.client() as client:
        told = client.bandwidth("vm1")
        assert (told.out_kbit, told.out_reason) == (3_000, "its share of all that is")
        assert (told.out_passed_kbit, told.in_passed_kbit) == (1_500.0, None)
        assert told.marking is not None
        assert told.marking.services[0].mark.name == "interactive"
        client.limit(RateLimit(vm="vm1", out_kbit=2_000, in_kbit=9_000))
        told = client.bandwidth("vm1")
        assert (told.out_kbit, told.in_kbit) == (2_000, 9_000)
        client.limit(RateLimit(vm="vm1", out_kbit=4_000))
        assert client.bandwidth("vm1").out_kbit == 3_000
        with pytest.raises(Problem, match="there is no vm"):
            client.bandwidth("nobody")


def test_the_command_tells_and_limits(pleach: Run, served: Running) -> None:
    decide(served)
    code, out, _ = pleach("bandwidth", "vm1")
    assert code == 0
    assert "3 Mbit/s, its share of all that is" in out
    assert "tcp 22" in out
    assert "1.5 Mbit/s" in out
    code, out, _ = pleach("bandwidth", "vm0", "--out", "2.5", "--in", "10", "--burst-ms", "100")
    assert code == 0
    assert "2.5 Mbit/s, the operator's limit" in out
    code, out, _ = pleach("bandwidth")
    assert [line.split()[0] for line in out.splitlines()] == ["VM", "vm0", "vm1"]
    code, out, _ = pleach("bandwidth", "vm0", "--unlimit", "--json")
    assert json.loads(out)["out_kbit"] is None
    assert pleach("bandwidth", "--out", "5")[0] != 0
    code, _, err = pleach("bandwidth", "vm0", "--out", "5", "--unlimit")
    assert code != 0
    assert "--unlimit comes with a limit" in err


def test_queues_need_to_know_what_ports_carry(pleach: Run, tmp_path: Path) -> None:
    code, _, err = pleach("queues", "apply", "br0")
    assert code != 0
    assert "Give --mbps" in err
    code, _, err = pleach("queues", "apply", "br0", "--policy", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "cannot be read" in err
