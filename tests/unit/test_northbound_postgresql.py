"""REST on a store in PostgreSQL: what is taken is kept, and what cannot be is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from databases import Databases
from northbound_server import Answer, Running, define, other_store, running

from controller.api import NewToken, Role
from controller.model.nouns import Tenant
from mininet_labs.deployment import wait_until
from tests.postgres import PostgresServer

NOW = datetime.now(UTC).isoformat()


@pytest.fixture
def served(postgres: PostgresServer, databases: Databases, tmp_path: Path) -> Iterator[Running]:
    name = databases.take()
    url = postgres.url(name).replace("pleach@", "pleach:s3cret@")
    with running(tmp_path / "state", store_url=url) as found:
        define(found)
        yield found
    databases.give_back(name)


def placed(vm: str, id_: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id_,
        "source": "/test",
        "type": "vm.placed",
        "time": NOW,
        "data": {"vm": vm, "host": "h1", "ports": [vm]},
    }


def post(served: Running, event: dict[str, Any]) -> Answer:
    return served.call("POST", "/v1/events", event, media="application/cloudevents+json")


def test_what_is_taken_is_kept(served: Running) -> None:
    told = post(served, placed("vm0", "e0"))
    assert told.status == 200
    with other_store(served) as store:
        assert store.snapshot().placements["vm0"].host == "h1"
        assert store.revision == told.body["revision"]
        # What another process writes is seen here.
        with store.transaction() as transaction:
            transaction.put(Tenant(id="elsewhere"))
    again = post(served, placed("vm0", "e0"))
    assert (again.status, again.body["revision"]) == (200, told.body["revision"])

    def seen() -> bool:
        return served.call("GET", "/v1/tenants/elsewhere").status == 200

    wait_until(seen, "the other process's tenant is seen")


def test_a_server_that_is_away_is_told_and_ridden_out(
    served: Running, postgres: PostgresServer
) -> None:
    with served.client() as client:
        viewer = client.create_token(NewToken(name="v", role=Role.VIEWER)).secret
    postgres.stop()
    try:
        refused = post(served, placed("vm0", "e0"))
        assert (refused.status, refused.type) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert f":{postgres.port}/" in refused.body["detail"]
        assert "goes on by itself" in refused.body["mend"]
        assert b"s3cret" not in refused.raw
        # Who calls for the first time now cannot be known either.
        unknown = served.call("GET", "/v1/tenants", token=viewer)
        assert (unknown.status, unknown.type) == (503, "unavailable")
        batch = served.call(
            "POST",
            "/v1/events",
            [placed("vm0", "e0"), placed("vm1", "e1")],
            media="application/cloudevents-batch+json",
        )
        assert [result["status"] for result in batch.body["results"]] == [503, 503]
    finally:
        postgres.start()
    wait_until(lambda: post(served, placed("vm0", "e0")).status == 200, "events are taken again")
    with other_store(served) as store:
        assert list(store.snapshot().placements) == ["vm0"]
        store.check()


def test_what_was_acknowledged_survives_kills_of_the_server(
    served: Running, postgres: PostgresServer
) -> None:
    acknowledged = set()
    for round_ in range(3):
        for n in range(10):
            name = f"t{round_}-{n}"
            if served.call("PUT", f"/v1/tenants/{name}", {"id": name}).status < 300:
                acknowledged.add(name)
            if n == 4:
                postgres.kill()
            if n == 7:
                postgres.start()

        def writable(name: str = f"after{round_}") -> bool:
            return served.call("PUT", f"/v1/tenants/{name}", {"id": name}).status < 300

        wait_until(writable, "the store can be written again")
    with other_store(served) as store:
        assert acknowledged <= store.snapshot().tenants.keys()
        store.check()
    assert len(acknowledged) >= 3 * 5
