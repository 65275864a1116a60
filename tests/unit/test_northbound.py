from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from northbound_server import EDGES, Answer, Running, define, other_store, running, vm, wipe
from pydantic import TypeAdapter

from controller.api import NewToken, Role
from controller.client import Problem
from controller.model.nouns import AccessRule, Host, Migration, Placement, Subnet, Tenant, Vm
from controller.northbound.auth import OPERATOR_TOKEN_FILE, Buckets
from controller.northbound.brain import Brain
from controller.northbound.documents import RECORD_EXAMPLES
from controller.observe.cloudevents import EventType
from controller.store import StoreBusy, StoreCorrupt, StoreFull

NOW = datetime.now(UTC)


def event(kind: str, at: float = 0.0, id_: str | None = None, **data: object) -> dict[str, Any]:
    """An event dated `at` seconds after the test began."""
    when = (NOW + timedelta(seconds=at)).isoformat()
    return {
        "specversion": "1.0",
        "id": id_ or f"{kind}@{at}@{data}",
        "source": "/test",
        "type": kind,
        "time": when,
        "data": data,
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("brain") / "state") as found:
        yield found


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    global NOW
    NOW = datetime.now(UTC)
    yield shared
    wipe(shared)


@pytest.fixture
def defined(served: Running) -> Running:
    define(served)
    return served


def test_routes_are_ready_before_threads_run_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What FastAPI would make at a first request, it has made when the loops start."""
    made: list[int] = []  # by which thread
    make, start = TypeAdapter.__init__, Brain.start
    before: list[int] = []
    serving: list[int] = []

    def making(self: TypeAdapter[Any], *args: Any, **named: Any) -> None:
        made.append(threading.get_ident())
        make(self, *args, **named)

    async def starting(self: Brain) -> None:
        serving.append(threading.get_ident())
        before.append(made.count(serving[0]))
        await start(self)

    monkeypatch.setattr(TypeAdapter, "__init__", making)
    monkeypatch.setattr(Brain, "start", starting)
    with running(tmp_path / "state") as served:
        for path in ("/v1/health", "/v1/vms", "/v1/changes?after=0", "/v1/nothing"):
            assert served.call("GET", path).status < 500
    assert before[0] > 0
    assert made.count(serving[0]) == before[0]


def post(served: Running, body: object, **more: str) -> Answer:
    return served.call("POST", "/v1/events", body, media="application/cloudevents+json", **more)


def place(served: Running, name: str, host: str, at: float = 0.0, port: str = "p") -> Answer:
    return post(served, event("vm.placed", at, vm=name, host=host, ports=[f"{port}-{name}"]))


# Resources


def test_records_are_put_got_listed_and_deleted(served: Running) -> None:
    with served.client() as client:
        made = client.put(Tenant(id="acme", name="Acme"))
        assert made.number > 0
        assert client.put(Tenant(id="acme", name="Acme")) == made
        assert client.get(Tenant, "acme") == made
        assert list(client.list(Tenant)) == [made]
        client.delete(Tenant, "acme")
        with pytest.raises(Problem, match="no tenant acme") as gone:
            client.get(Tenant, "acme")
        assert (gone.value.type, gone.value.status) == ("not-found", 404)


def test_put_makes_then_replaces_and_post_only_makes(served: Running) -> None:
    first = served.call("PUT", "/v1/tenants/acme", {})
    again = served.call("PUT", "/v1/tenants/acme", {})
    assert (first.status, again.status) == (201, 200)
    assert first.headers["location"] == "/v1/tenants/acme"
    assert first.headers["pleach-revision"] == again.headers["pleach-revision"]
    assert served.call("POST", "/v1/tenants", {"id": "acme"}).type == "duplicate"
    assert served.call("POST", "/v1/tenants", {"id": "other"}).status == 201


def test_lists_come_in_pages(served: Running) -> None:
    with served.client() as client:
        for n in range(7):
            client.put(Tenant(id=f"t{n}"))
    seen: list[str] = []
    after = ""
    while after is not None:
        page = served.call("GET", f"/v1/tenants?limit=3&after={after}").body
        assert len(page["items"]) <= 3
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == [f"t{n}" for n in range(7)]


def test_lists_are_filtered(defined: Running) -> None:
    place(defined, "vm0", "h1")
    with defined.client() as client:
        assert [v.id for v in client.list(Vm, host="h1")] == ["vm0"]
        assert [v.id for v in client.list(Vm, subnet="web")] == ["vm0", "vm1"]
        assert list(client.list(Vm, tenant="nobody")) == []
        assert [p.vm for p in client.list(Placement, host="h1")] == ["vm0"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"nics": []}, "/nics"),
        ({"nics": [{"mac": "01:00:00:00:00:01", "subnet": "web"}]}, "/nics/0/mac"),
        ({"nics": [{"mac": "02:00:00:00:00:77", "subnet": "nowhere"}]}, "/nics/0/subnet"),
        (
            {"nics": [{"mac": "02:00:00:00:00:77", "subnet": "web", "ipv4": "10.9.0.1"}]},
            "/nics/0/ipv4",
        ),
        (
            {"nics": [{"mac": "02:00:00:00:00:77", "subnet": "web", "ipv4": "10.1.0.1"}]},
            "/nics/0/ipv4",
        ),
        (
            {"nics": [{"mac": "02:00:00:00:00:77", "subnet": "web", "ipv4": "10.1.0.255"}]},
            "/nics/0/ipv4",
        ),
        (
            {"nics": [{"mac": "02:00:00:00:00:77", "subnet": "web", "ipv6": "2001:db8::5"}]},
            "/nics/0/ipv6",
        ),
        ({"id": "another"}, "/id"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_a_wrong_vm_is_refused_with_the_place(
    defined: Running, change: dict[str, object], pointer: str
) -> None:
    nic = {"mac": "02:00:00:00:00:77", "subnet": "web"}
    answer = defined.call("PUT", "/v1/vms/new", {"tenant": "acme", "nics": [nic], **change})
    assert answer.status == 422
    assert answer.type in ("invalid", "missing-reference")
    assert pointer in [fault["pointer"] for fault in answer.body["faults"]]
    assert defined.call("GET", "/v1/vms/new").status == 404


def test_a_nic_on_another_tenants_subnet_is_refused(defined: Running) -> None:
    with defined.client() as client:
        client.put(Tenant(id="evil"))
    nic = {"mac": "02:00:00:00:00:77", "subnet": "web"}
    answer = defined.call("PUT", "/v1/vms/spy", {"tenant": "evil", "nics": [nic]})
    assert answer.type == "invalid"
    assert "belongs to tenant acme" in answer.body["detail"]


def test_a_port_of_a_datapath_belongs_to_one_vm_whatever_the_host(defined: Running) -> None:
    dpid = next(iter(EDGES.values()))
    with defined.client() as client:
        client.put(Host(id="first", datapath=dpid))
        client.put(Host(id="same-switch", datapath=dpid))

    def placed(vm: str, host: str, port: str, at: float) -> Answer:
        return post(defined, event("vm.placed", at, vm=vm, host=host, ports=[port]))

    assert placed("vm0", "first", "tap7", 1.0).status == 200
    refused = placed("vm1", "same-switch", "tap7", 1.0)
    assert refused.status == 409
    assert "vm0" in refused.body["detail"]
    assert "first" in refused.body["detail"]
    assert placed("vm1", "same-switch", "tap8", 2.0).status == 200
    # The same VM may take its port along from one host of the switch to another.
    assert placed("vm0", "same-switch", "tap7", 3.0).status == 200


@pytest.mark.parametrize(
    "nic",
    [
        {"mac": "02:00:00:00:00:01", "subnet": "web", "ipv4": "10.1.0.99"},
        {"mac": "02:00:00:00:00:77", "subnet": "web", "ipv4": "10.1.0.10"},
    ],
)
def test_a_duplicate_names_its_holder(defined: Running, nic: dict[str, str]) -> None:
    answer = defined.call("PUT", "/v1/vms/twin", {"tenant": "acme", "nics": [nic]})
    assert answer.status == 409
    assert answer.type == "duplicate"
    assert "vm vm0" in answer.body["detail"]


def test_what_is_in_use_stays(defined: Running) -> None:
    place(defined, "vm0", "h1")
    assert defined.call("DELETE", "/v1/tenants/acme").type == "in-use"
    assert defined.call("DELETE", "/v1/subnets/web").type == "in-use"
    assert defined.call("DELETE", "/v1/hosts/h1").type == "in-use"
    assert defined.call("DELETE", "/v1/vms/vm0").type == "conflict"
    with defined.client() as client:
        client.delete(Vm, "vm0", force=True)
        assert list(client.list(Placement)) == []


def test_subnets_of_one_tenant_do_not_overlap(defined: Running) -> None:
    overlapping = {"tenant": "acme", "cidr": "10.1.0.128/25"}
    assert defined.call("PUT", "/v1/subnets/web2", overlapping).type == "conflict"
    with defined.client() as client:
        client.put(Tenant(id="other"))
    other = {"tenant": "other", "cidr": "10.1.0.0/24"}
    assert defined.call("PUT", "/v1/subnets/web3", other).status == 201
    shrunk = {"tenant": "acme", "cidr": "10.1.0.0/29"}
    refused = defined.call("PUT", "/v1/subnets/web", shrunk)
    assert refused.type == "conflict"
    assert "vm vm0" in refused.body["detail"]


def test_a_placed_vm_keeps_its_number_of_nics(defined: Running) -> None:
    place(defined, "vm0", "h1")
    nics = [{"mac": f"02:00:00:00:01:0{n}", "subnet": "web"} for n in (1, 2)]
    assert defined.call("PUT", "/v1/vms/vm0", {"tenant": "acme", "nics": nics}).type == "conflict"


def test_a_hosts_state_survives_a_put(defined: Running) -> None:
    with defined.client() as client:
        client.tell("host.draining", host="h1")
        client.put(client.get(Host, "h1").model_copy(update={"site": "east"}))
        defined.call("PUT", "/v1/hosts/h1", {"datapath": EDGES["h1"]})
        assert client.get(Host, "h1").state == "draining"


def test_access_rules(defined: Running) -> None:
    rule = AccessRule.model_validate(
        {
            "id": "http",
            "tenant": "acme",
            "destination": {"groups": ["web"]},
            "protocol": "tcp",
            "ports": [{"first": 80, "last": 80}],
        }
    )
    with defined.client() as client:
        made = client.create(rule)
        assert made.number > 0
        assert list(client.list(AccessRule, tenant="acme")) == [made]
    bad = {"tenant": "acme", "protocol": "icmp", "ports": [{"first": 1, "last": 1}]}
    assert defined.call("PUT", "/v1/access-rules/bad", bad).type == "invalid"


# Events


def test_an_event_is_applied_once(defined: Running) -> None:
    placed = event("vm.placed", vm="vm0", host="h1", ports=["p"])
    first, again = post(defined, placed).body, post(defined, placed).body
    assert (first["outcome"], again["outcome"]) == ("applied", "replayed")
    assert first["revision"] == again["revision"]
    other = {**placed, "data": {**placed["data"], "host": "h2"}}
    assert post(defined, other).type == "event-id-reused"
    with defined.client() as client:
        assert client.get(Placement, "vm0").host == "h1"


def test_a_late_event_is_acknowledged_and_has_no_effect(defined: Running) -> None:
    place(defined, "vm0", "h2", at=-5)
    late = place(defined, "vm0", "h1", at=-6)
    assert (late.status, late.body["outcome"]) == (200, "late")
    with defined.client() as client:
        assert client.get(Placement, "vm0").host == "h2"


def test_an_event_of_a_definition_that_was_put_since_is_late(defined: Running) -> None:
    with defined.client() as client:
        client.put(vm(0, groups=["new"]))
        told = client.send(event("vm.updated", at=-60, vm="vm0", groups=["old"]))
        assert told.outcome == "late"
        assert client.get(Vm, "vm0").groups == ("new",)


@pytest.mark.parametrize(
    ("data", "mend"),
    [
        ({"vm": "ghost", "host": "h1", "ports": ["p"]}, "PUT /v1/vms/ghost"),
        ({"vm": "vm0", "host": "h9", "ports": ["p"]}, "PUT /v1/hosts/h9"),
    ],
)
def test_an_event_about_the_unknown_tells_what_comes_first(
    defined: Running, data: dict[str, object], mend: str
) -> None:
    answer = post(defined, event("vm.placed", **data))
    assert (answer.status, answer.type) == (404, "unknown-subject")
    assert mend in answer.body["mend"]


def test_what_was_refused_may_be_sent_again_once_it_is_mended(served: Running) -> None:
    placed = event("vm.placed", vm="vm0", host="h1", ports=["p"])
    assert post(served, placed).status == 404
    define(served)
    assert post(served, placed).body["outcome"] == "applied"


def test_the_far_future_is_refused(defined: Running) -> None:
    assert place(defined, "vm0", "h1", at=3_600).type == "event-in-the-future"


def test_a_port_is_given_to_one_vm(defined: Running) -> None:
    post(defined, event("vm.placed", vm="vm0", host="h1", ports=["p"]))
    answer = post(defined, event("vm.placed", vm="vm1", host="h1", ports=["p"]))
    assert answer.type == "duplicate"
    assert "vm vm0" in answer.body["detail"]


def test_a_migration_by_events(defined: Running) -> None:
    place(defined, "vm0", "h1", at=-9)
    with defined.client() as client:
        client.start_migration("m1", "vm0", "h1", "h2", ["q"])
        assert client.vm("vm0").status == "migrating"
        assert client.complete_migration("m1", "vm0").outcome == "applied"
        assert client.get(Placement, "vm0").host == "h2"
        assert [m.id for m in client.list(Migration, vm="vm0")] == ["m1"]
        assert client.remove("vm0", "h1").outcome == "ignored"
        assert client.remove("vm0", "h2").outcome == "applied"


def test_nics_of_an_event_are_checked_like_those_of_a_put(defined: Running) -> None:
    nic = {"mac": "02:00:00:00:00:77", "subnet": "web", "ipv4": "10.9.0.1"}
    answer = post(defined, event("vm.updated", 60, vm="vm0", nics=[nic]))
    assert answer.type == "invalid"
    twin = {"mac": "02:00:00:00:00:02", "subnet": "web"}
    assert post(defined, event("vm.updated", 60, vm="vm0", nics=[twin])).type == "duplicate"


def test_a_bad_event_does_not_disturb_the_good_of_its_batch(defined: Running) -> None:
    batch: list[object] = [
        event("vm.placed", -3, vm="vm0", host="h1", ports=["p"]),
        event("vm.placed", -3, vm="ghost", host="h1", ports=["x"]),
        "nonsense",
        event("vm.placed", -3, vm="vm1", host="h1", ports=["p"]),
        event("vm.migration.completed", -2, migration="m", vm="vm1", target="h2", ports=["p"]),
        event("vm.placed", -2, vm="vm0", host="h2", ports=["p"]),
        event("vm.placed", -1, vm="vm1", host="h3", ports=["p"]),
    ]
    answer = defined.call("POST", "/v1/events", batch, media="application/cloudevents-batch+json")
    results = [r.get("outcome") or r["type"].rpartition(":")[2] for r in answer.body["results"]]
    assert answer.status == 200
    assert results == [
        "applied",
        "unknown-subject",
        "malformed",
        "duplicate",
        "applied",
        "duplicate",
        "applied",
    ]
    with defined.client() as client:
        assert {p.vm: p.host for p in client.list(Placement)} == {"vm0": "h1", "vm1": "h3"}


def test_a_batch_is_an_array_and_bounded(tmp_path: Path) -> None:
    with running(tmp_path / "state", max_batch=2) as served:
        media = "application/cloudevents-batch+json"
        assert served.call("POST", "/v1/events", {}, media=media).type == "malformed"
        three = [event("host.up", n, host="h") for n in range(3)]
        assert served.call("POST", "/v1/events", three, media=media).type == "too-large"


def test_binary_mode(defined: Running) -> None:
    told = event("vm.placed", vm="vm0", host="h1", ports=["p"])
    answer = defined.call(
        "POST",
        "/v1/events",
        told["data"],
        ce_specversion="1.0",
        ce_id="b1",
        ce_source="/test",
        ce_type="vm.placed",
        ce_time=told["time"],
    )
    assert answer.body["outcome"] == "applied"


def test_many_senders_at_once_are_each_answered(defined: Running) -> None:
    outcomes: list[str] = []

    def send(sender: int) -> None:
        with defined.client() as client:
            for n in range(10):
                told = client.send(
                    event("vm.updated", 60 + n, f"{sender}-{n}", vm="vm0", groups=[f"g{n}"])
                )
                outcomes.append(told.outcome)

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 40
    with defined.client() as client:
        assert client.get(Vm, "vm0").groups == ("g9",)


# Bad input


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"nonsense", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"NaN"]
)
@pytest.mark.parametrize("path", ["/v1/events", "/v1/tenants"])
def test_what_is_no_json_is_refused(served: Running, path: str, raw: bytes) -> None:
    answer = served.call("POST", path, raw)
    assert (answer.status, answer.type) == (400, "malformed")


def test_a_body_of_another_shape_is_refused(served: Running) -> None:
    assert served.call("PUT", "/v1/tenants/a", [1, 2]).type == "malformed"
    assert served.call("POST", "/v1/events", [1, 2]).type == "malformed"


def test_a_large_body_is_refused_with_and_without_its_length(tmp_path: Path) -> None:
    with running(tmp_path / "state", max_body_bytes=2_000) as served:
        assert served.call("POST", "/v1/tenants", b"x" * 3_000).type == "too-large"
        head = (
            f"POST /v1/tenants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw:
            raw.sendall(head.encode())
            raw.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
            raw.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
            assert b" 413 " in raw.recv(4_096).split(b"\r\n")[0]


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(served: Running) -> None:
    head = (
        f"POST /v1/tenants HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw:
        raw.sendall(head.encode())
    assert served.call("GET", "/v1/tenants").status == 200


def test_media_types(served: Running) -> None:
    assert served.call("POST", "/v1/tenants", {"id": "a"}, media="text/plain").type == "media-type"
    assert served.call("POST", "/v1/tenants", {"id": "a"}, media=None).type == "media-type"
    utf8 = "application/json; charset=utf-8"
    assert served.call("POST", "/v1/tenants", {"id": "a"}, media=utf8).status == 201


def test_paths_and_methods_that_are_not_there(served: Running) -> None:
    assert served.call("GET", "/v1/nothing").type == "not-found"
    answer = served.call("PATCH", "/v1/tenants")
    assert answer.type == "method-not-allowed"
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=99999"])
def test_wrong_queries_are_told(served: Running, query: str) -> None:
    answer = served.call("GET", f"/v1/tenants?{query}")
    assert answer.type == "invalid"
    assert "limit" in answer.body["detail"]


# Who may


def test_health_needs_no_token_and_all_else_does(served: Running) -> None:
    assert served.call("GET", "/v1/health", token="").status == 200
    for path in ("/v1/ready", "/v1/vms", "/v1/nothing", "/v1/tokens"):
        assert served.call("GET", path, token="").type == "unauthenticated"
        assert served.call("GET", path, token="wrong").type == "unauthenticated"


def test_the_operators_token_is_private_and_made_once(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(state) as served:
        first = served.token
    file = state / OPERATOR_TOKEN_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    with running(state) as served:
        assert served.token == first
        with other_store(served) as store, store.transaction() as transaction:
            assert first not in str(transaction.tokens())


def test_a_viewer_only_reads(defined: Running) -> None:
    with defined.client() as client:
        token = client.create_token(NewToken(name="eye", role=Role.VIEWER)).secret
    assert defined.call("GET", "/v1/vms", token=token).status == 200
    assert defined.call("PUT", "/v1/tenants/x", {}, token=token).type == "forbidden"
    assert defined.call("DELETE", "/v1/vms/vm0", token=token).type == "forbidden"
    assert post(defined, event("host.up", host="h1"), token=token).type == "forbidden"
    assert defined.call("GET", "/v1/tokens", token=token).type == "forbidden"


def test_a_hypervisor_speaks_for_its_own_host_only(defined: Running) -> None:
    with defined.client() as client:
        agent = NewToken(name="agent", role=Role.HYPERVISOR, host="h1")
        token = client.create_token(agent).secret

    def tell(kind: str, at: float, **data: object) -> Answer:
        return post(defined, event(kind, at, **data), token=token)

    assert tell("vm.placed", -9, vm="vm0", host="h2", ports=["p"]).type == "forbidden"
    assert tell("vm.placed", -9, vm="vm0", host="h1", ports=["p"]).status == 200
    assert tell("vm.updated", -8, vm="vm0", ports=["q"]).status == 200
    assert tell("vm.updated", -7, vm="vm0", groups=["admins"]).type == "forbidden"
    assert tell("vm.updated", -7, vm="vm1", ports=["q"]).type == "forbidden"
    assert tell("host.up", -6, host="h2").type == "forbidden"
    move = {"migration": "m", "vm": "vm0"}
    started = {**move, "source": "h1", "target": "h2", "ports": ["z"]}
    assert tell("vm.migration.started", -5, **started).status == 200
    assert tell("vm.migration.failed", -4, **move).status == 200
    foreign = {"migration": "n", "vm": "vm0", "source": "h3", "target": "h2", "ports": ["z"]}
    assert tell("vm.migration.started", -3, **foreign).type == "forbidden"
    assert defined.call("PUT", "/v1/tenants/x", {}, token=token).type == "forbidden"
    assert defined.call("GET", "/v1/vms/vm0", token=token).status == 200


def test_event_ids_of_one_host_cannot_be_used_up_by_another(defined: Running) -> None:
    with defined.client() as client:
        tokens = {
            host: client.create_token(
                NewToken(name=f"a-{host}", role=Role.HYPERVISOR, host=host)
            ).secret
            for host in ("h1", "h2")
        }
    for host, token in tokens.items():
        answer = post(defined, event("host.draining", -1, "same-id", host=host), token=token)
        assert answer.body["outcome"] == "applied"


def test_tokens_are_made_for_known_hosts_and_revoked_at_once(defined: Running) -> None:
    wanted = {"name": "a", "role": "hypervisor", "host": "h9"}
    assert defined.call("POST", "/v1/tokens", wanted).type == "missing-reference"
    assert defined.call("POST", "/v1/tokens", {"name": "a", "role": "king"}).type == "invalid"
    assert defined.call("POST", "/v1/tokens", {**wanted, "role": "viewer"}).type == "invalid"
    with defined.client() as client:
        made = client.create_token(NewToken(name="a", role=Role.VIEWER))
        with defined.client(made.secret) as viewer:
            viewer.topology()
            client.revoke_token("a")
            with pytest.raises(Problem) as refused:
                viewer.topology()
        assert refused.value.status == 401
        assert [token.name for token in client.tokens()] == ["operator"]
    assert defined.call("DELETE", "/v1/tokens/operator").type == "conflict"


def test_an_expired_token_is_refused(served: Running) -> None:
    with served.client() as client:
        made = client.create_token(NewToken(name="a", role=Role.VIEWER, lifetime_s=1e-6))
    answer = served.call("GET", "/v1/vms", token=made.secret)
    assert answer.type == "unauthenticated"
    assert "expired" in answer.body["detail"]


def test_a_token_has_so_many_requests(tmp_path: Path) -> None:
    with running(tmp_path / "state", requests_per_s=0.001, burst=3) as served:
        # One was used to see that the server is ready.
        answers = [served.call("GET", "/v1/tenants") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[-1].type == "too-many-requests"
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert served.call("GET", "/v1/health", token="").status == 200


def test_guessing_tokens_is_slowed_down(tmp_path: Path) -> None:
    with running(tmp_path / "state") as served:
        served.server.brain.auth.guesses = Buckets(0.001, 3)
        statuses = [served.call("GET", "/v1/vms", token=f"guess{n}").status for n in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert served.call("GET", "/v1/vms").status == 200


def test_changes_are_audited(served: Running) -> None:
    served.call("PUT", "/v1/tenants/acme", {})
    served.call("PUT", "/v1/tenants/acme", {})
    served.call("DELETE", "/v1/tenants/acme")
    with other_store(served) as store:
        told = [(entry.actor, entry.action) for entry in store.audit_log(2)]
    assert told == [("operator", "tenant.delete"), ("operator", "tenant.create")]


# When the inside fails


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (StoreFull("pleach.db", "no room", "make room"), 507, "store-full"),
        (StoreBusy("pleach.db", "locked", "try again"), 503, "unavailable"),
        (StoreCorrupt("pleach.db", "damaged", "restore a backup"), 503, "unavailable"),
        (RuntimeError("secret of the inside"), 500, "internal"),
    ],
)
def test_a_store_that_fails_is_told_and_nothing_of_the_inside(
    defined: Running,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    kind: str,
) -> None:
    def fail() -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(defined.server.brain.store, "transaction", fail)
        answers = [defined.call("PUT", "/v1/tenants/x", {}), place(defined, "vm0", "h1")]
        batch = [event("vm.placed", vm="vm0", host="h1", ports=["p"])]
        media = "application/cloudevents-batch+json"
        results = defined.call("POST", "/v1/events", batch, media=media).body["results"]
    assert [(answer.status, answer.type) for answer in answers] == [(status, kind)] * 2
    assert results[0]["status"] == status
    assert b"secret" not in answers[0].raw
    assert place(defined, "vm0", "h1", at=1).status == 200  # works again once it can


# The document


def test_problems_of_all_kinds_have_stable_names() -> None:
    from controller.northbound.problems import TYPES

    names = [type_.name for type_ in TYPES]
    assert len(set(names)) == len(names)
    assert {"duplicate", "unknown-subject", "not-applied", "timeout"} <= set(names)


def test_the_openapi_document_is_whole(served: Running) -> None:
    document = served.call("GET", "/openapi.json", token="").body
    assert document["openapi"].startswith("3.1")
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"]["default"]["content"].keys() == {
                "application/problem+json"
            }
            if method in ("put", "post"):
                content = operation["requestBody"]["content"]
                assert all(body["examples"] for body in content.values()), path


def test_every_example_of_a_record_is_taken(served: Running) -> None:
    document = served.call("GET", "/openapi.json", token="").body
    for path in ("tenants", "subnets", "vms", "hosts", "access-rules", "tokens"):
        content = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
        for example in content["application/json"]["examples"].values():
            answer = served.call("POST", f"/v1/{path}", example["value"])
            assert answer.status == 201, answer.raw


def test_every_example_of_an_event_is_taken(served: Running) -> None:
    document = served.call("GET", "/openapi.json", token="").body
    for path in ("tenants", "subnets", "vms", "hosts"):
        served.call("POST", f"/v1/{path}", RECORD_EXAMPLES[path])
    served.call("PUT", "/v1/hosts/hv2", {"datapath": "0x102"})
    content = document["paths"]["/v1/events"]["post"]["requestBody"]["content"]
    examples = [
        (media, example["value"])
        for media, body in content.items()
        for example in body["examples"].values()
    ]
    assert len(examples) > len(EventType)
    for n, (media, value) in enumerate(examples):
        at = 10.0 + n  # later than the definitions, so that none is late
        post(served, event("vm.placed", at - 0.5, vm="web-1", host="hv1", ports=["vnet7"]))
        for k, told in enumerate(value if isinstance(value, list) else [value]):
            told.update(id=f"example-{n}-{k}", time=event("host.up", at)["time"])
        answer = served.call("POST", "/v1/events", value, media=media)
        results = answer.body.get("results", [answer.body])
        assert all("outcome" in result for result in results), answer.raw


def test_a_subnet_is_validated_on_its_own(served: Running) -> None:
    with served.client() as client:
        client.put(Tenant(id="acme"))
        made = client.put(
            Subnet.model_validate({"id": "s", "tenant": "acme", "cidr": "10.0.0.0/24"})
        )
    assert str(made.gateway) == "10.0.0.1"
    for cidr in ("10.0.0.1/24", "10.0.0.0/31", "nonsense"):
        assert served.call("PUT", "/v1/subnets/x", {"tenant": "acme", "cidr": cidr}).status == 422
