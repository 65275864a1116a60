"""A real northbound server in a thread, on a port of its own, for tests."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.client import Client
from controller.model.nouns import RECORDS, Datapath, Host, Port, Subnet, Tenant, Vm
from controller.northbound.auth import OPERATOR_TOKEN_FILE, make_operator_token
from controller.northbound.server import Server, listen, open_store, server
from controller.settings import Settings, load
from controller.store import Progress, Store

EDGES = {"h1": f"{1:016x}", "h2": f"{2:016x}", "h3": f"{3:016x}"}
CORE = f"{0x99:016x}"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def type(self) -> str:
        """The kind of problem that this is; fails where it is none."""
        assert self.headers["content-type"] == "application/problem+json", self.raw
        assert self.body["status"] == self.status
        assert self.body["mend"]
        return str(self.body["type"]).removeprefix("urn:pleach:problem:")


@dataclass
class Running:
    settings: Settings
    server: Server
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token or self.token)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        media: str | None = "application/json",
        **headers: str,
    ) -> Answer:
        """One request as given: bytes go out as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if token != "":
            named["authorization"] = f"Bearer {token or self.token}"
        if body is not None and media is not None:
            named["content-type"] = media
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with closing(connection):
            connection.request(method, path, content, named)
            answer = connection.getresponse()
            return Answer(
                answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            )


@contextmanager
def running(
    state_dir: Path,
    store_url: str | None = None,
    history: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    **northbound: object,
) -> Iterator[Running]:
    """A server with settings of `northbound` and `history` changed, and others by `environ`,
    stopped at the end."""
    settings = load(
        None,
        {
            "PLEACH_STATE_DIR": str(state_dir),
            "PLEACH_NORTHBOUND__PORT": "0",
            **({} if store_url is None else {"PLEACH_STORE__URL": store_url}),
            **{f"PLEACH_NORTHBOUND__{k.upper()}": str(v) for k, v in northbound.items()},
            **{f"PLEACH_HISTORY__{k.upper()}": str(v) for k, v in (history or {}).items()},
            **(environ or {}),
        },
    )
    with (
        closing(listen(settings, plain=False)) as listening,
        closing(open_store(settings)) as store,
    ):
        make_operator_token(store, state_dir, time.time())
        serving = server(settings, store)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]})
        thread.start()
        token = (state_dir / OPERATOR_TOKEN_FILE).read_text().strip()
        found = Running(settings, serving, listening.getsockname()[1], token)
        try:
            # The socket listens only once the application has started: connecting waits for that.
            with found.client() as client:
                client.ready()
            yield found
        finally:
            serving.stop()
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def other_store(served: Running) -> Iterator[Store]:
    """The same store as another process sees it."""
    with closing(open_store(served.settings)) as store:
        yield store


def wipe(served: Running) -> None:
    """Forget everything but the operator's token, so that the next test begins anew."""
    with other_store(served) as store, store.transaction() as transaction:
        for cls in reversed(RECORDS):
            for record in transaction.all(cls):
                transaction.delete(cls, record.key)
        for token in transaction.tokens():
            if token.name != "operator":
                transaction.revoke_token(token.name)
    with closing(sqlite3.connect(served.settings.state_dir / "pleach.db")) as database:
        for table in ("event", "event_time", "progress"):
            database.execute(f"DELETE FROM {table}")
        database.commit()


def define(served: Running, vms: int = 2) -> None:
    """One tenant with `vms` VMs `vm0`…, and three hosts."""
    with served.client() as client:
        client.put(Tenant(id="acme"))
        client.put(Subnet.model_validate({"id": "web", "tenant": "acme", "cidr": "10.1.0.0/24"}))
        for host, dpid in EDGES.items():
            client.put(Host(id=host, datapath=dpid))
        for n in range(vms):
            client.put(vm(n))


def vm(n: int, **more: object) -> Vm:
    nic = {"mac": f"02:00:00:00:00:{n + 1:02x}", "subnet": "web", "ipv4": f"10.1.0.{n + 10}"}
    return Vm.model_validate({"id": f"vm{n}", "tenant": "acme", "nics": [nic], **more})


def connect(store: Store, *ports: tuple[str, str]) -> None:
    """Discover the three edges and a core as connected, with `ports` (datapath, name)."""
    with store.transaction() as transaction:
        for dpid in (*EDGES.values(), CORE):
            transaction.put(Datapath(dpid=dpid, connected=True))
        for number, (dpid, name) in enumerate(ports, 1):
            transaction.put(Port(datapath=dpid, number=number, name=name))


def confirm(store: Store, revision: int, **more: Any) -> None:
    """Report that every switch has confirmed `revision`; `more` by datapath, as `d<dpid>`."""
    rows = []
    for dpid in (*EDGES.values(), CORE):
        fields = {"connected": True, "pending": 0, "error": None, **more.get(f"d{dpid}", {})}
        rows.append(Progress(dpid, **{"revision": revision, "confirmed_at": 1e9, **fields}))
    store.set_progress(rows)
