"""Services by REST: agents tell verdicts on flows, and everybody reads what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from northbound_server import Running, connect, define, other_store, running, wipe

from controller.api import FlowVerdict
from controller.model.nouns import Service, Vm


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as found:
        yield found


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    define(shared)
    with other_store(shared) as store:
        connect(store)
    with shared.client() as client:
        client.place("vm0", "h1", ["p0"])
        client.place("vm1", "h2", ["p1"])
    yield shared
    wipe(shared)


def told(vm: str = "vm0", port: int = 443, application: str = "TLS", **more: Any) -> FlowVerdict:
    fields = {
        "vm": vm,
        "protocol": "tcp",
        "port": port,
        "application": application,
        "how": "confirmed",
        "category": "web server",
        "category_how": "confirmed",
        "packets": 5,
        "handshake_s": 0.001,
        "response_s": 0.01,
    }
    return FlowVerdict.model_validate({**fields, **more})


def hypervisor(served: Running, host: str) -> str:
    body = {"name": f"agent-{host}", "role": "hypervisor", "host": host}
    return str(served.call("POST", "/v1/tokens", body).body["secret"])


def test_what_agents_tell_can_be_read(served: Running) -> None:
    with served.client() as client:
        answer = client.tell_flows(
            [told(), told("vm1", application="TLS.YouTube"), told(port=22, application="SSH")]
        )
        assert (answer.accepted, answer.refused) == (3, ())
        assert [s.key for s in answer.settled] == ["vm0:tcp:443", "vm1:tcp:443", "vm0:tcp:22"]
        [tls, *_] = answer.settled
        assert (tls.how, tls.packets, tls.response_s, tls.tapped) == ("confirmed", 5, 0.01, False)

        def keys(**filters: str) -> list[str]:
            return [service.key for service in client.list(Service, **filters)]

        assert keys() == ["vm0:tcp:22", "vm0:tcp:443", "vm1:tcp:443"]
        assert keys(vm="vm1") == ["vm1:tcp:443"]
        assert keys(application="tls") == ["vm0:tcp:443", "vm1:tcp:443"]
        assert keys(application="TLS.YouTube") == ["vm1:tcp:443"]
        assert keys(category="database") == []
    own = served.call("GET", "/v1/vms/vm0/services?limit=1").body
    assert [service["port"] for service in own["items"]] == [22]
    assert own["next"] == "vm0:tcp:22"
    assert served.call("GET", "/v1/vms/ghost/services").type == "not-found"


def test_what_is_not_sure_waits_for_more(served: Running) -> None:
    with served.client() as client:
        unsure = told(port=9, application="unknown", how="unknown", category="unknown")
        assert client.tell_flows([unsure] * 3).settled == ()
        assert client.tell_flows([told(port=9, application="SSH")]).settled[0].flows == 4
        # What did not answer tells of no service.
        silent = told(port=10, handshake_s=None, response_s=None)
        assert client.tell_flows([silent]).settled == ()


def test_a_hypervisor_tells_of_its_own_vms(served: Running) -> None:
    token = hypervisor(served, "h1")
    with served.client(token) as agent, served.client() as operator:
        answer = agent.tell_flows([told("vm1"), told("vm0"), told("ghost")])
        assert answer.accepted == 1
        refused = [(no.index, no.reason) for no in answer.refused]
        assert refused == [(0, "not_yours"), (2, "unknown_vm")]
        assert [s.vm for s in operator.list(Service)] == ["vm0"]
        # Also while it moves, whoever is first to tell.
        operator.start_migration("m", "vm1", "h2", "h1", ["p2"])
        assert agent.tell_flows([told("vm1")]).accepted == 1


def test_a_viewer_tells_nothing(served: Running) -> None:
    body = {"name": "eve", "role": "viewer"}
    secret = served.call("POST", "/v1/tokens", body).body["secret"]
    assert served.call("POST", "/v1/services", {"verdicts": []}, token=secret).type == "forbidden"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65_536},
        {"protocol": "icmp6"},
        {"protocol": "256"},
        {"application": ""},
        {"handshake_s": -1},
        {"how": "certain"},
        {"packets": 0},
        {"more": 1},
    ],
)
def test_nonsense_is_refused_with_its_place(served: Running, wrong: dict[str, Any]) -> None:
    verdict = {**told().model_dump(), **wrong}
    answer = served.call("POST", "/v1/services", {"verdicts": [told().model_dump(), verdict]})
    assert answer.type == "invalid"
    assert answer.body["faults"][0]["pointer"].startswith("/verdicts/1/")
    assert served.call("GET", "/v1/services").body["items"] == []


def test_a_vm_takes_its_services_along(served: Running) -> None:
    with served.client() as client:
        client.tell_flows([told(), told("vm1")])
        client.delete(Vm, "vm0", force=True)
        assert [s.vm for s in client.list(Service)] == ["vm1"]


def test_the_command(served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from controller.cli import app

    monkeypatch.setenv("PLEACH_URL", served.url)
    monkeypatch.setenv("PLEACH_TOKEN", served.token)
    monkeypatch.setenv("PLEACH_STATE_DIR", str(tmp_path))
    with served.client() as client:
        client.tell_flows([told(risks=("Self-signed Certificate",)), told("vm1", port=22)])
    shown = CliRunner().invoke(app, ["services", "vm0"])
    assert shown.exit_code == 0
    assert "tcp/443" in shown.output
    assert "10.00 ms" in shown.output
    assert "Self-signed Certificate" in shown.output
    assert "tcp/22" not in shown.output
    nothing = CliRunner().invoke(app, ["services", "vm0", "--application", "SSH"])
    assert (nothing.exit_code, nothing.output.count("\n")) == (0, 1)
    assert "no vm ghost" in str(CliRunner().invoke(app, ["services", "ghost"]).exception)
