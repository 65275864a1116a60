"""What happens at the same time in the brain, and beside it, loses nothing."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from controller.history.errors import HistoryError
from controller.model.nouns import Datapath, Subnet, Tenant
from controller.model.state import Change
from controller.northbound import timeseries
from controller.northbound.auth import Authenticator, digest
from controller.northbound.problems import Problem
from controller.northbound.replica import Replica
from controller.northbound.writer import Writer, _Job
from controller.settings import load
from controller.store import Store, Token, Transaction


def store_in(directory: Path) -> Store:
    return Store.open(f"sqlite:///{directory}/pleach.db")


def test_what_another_process_writes_between_two_of_ours_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of which one is refused are committed one by one, and others may come between."""
    alone = Writer._do_alone

    def slowly(self: Writer, job: _Job) -> list[Change]:
        done = alone(self, job)
        with theirs.transaction() as tx:
            if tx.get(Datapath, f"{7:016x}") is None:
                tx.put(Datapath(dpid=f"{7:016x}"))
        return done

    def refused(tx: Transaction) -> None:
        tx.put(Subnet.model_validate({"id": "x", "tenant": "nobody", "cidr": "10.0.0.0/24"}))

    async def run() -> None:
        replica = Replica(ours)
        await replica.start()
        writer = Writer(ours, replica.committed)
        writer._loop = asyncio.get_running_loop()
        jobs = [
            writer.submit(lambda tx: tx.put(Tenant(id="a"))),
            writer.submit(refused),
            writer.submit(lambda tx: tx.put(Tenant(id="b"))),
        ]
        writer._thread.start()  # only now, so that they wait together
        await asyncio.gather(*jobs, return_exceptions=True)
        await replica.refresh()
        known = ours.snapshot()
        assert replica.state.revision == known.revision
        assert replica.state.datapaths == known.datapaths != {}
        assert set(replica.state.tenants) == {"a", "b"}
        await writer.stop()
        await replica.stop()

    monkeypatch.setattr(Writer, "_do_alone", slowly)
    with closing(store_in(tmp_path)) as ours, closing(store_in(tmp_path)) as theirs:
        asyncio.run(run())


def test_a_token_that_is_revoked_while_it_is_looked_up_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(store_in(tmp_path)) as store:
        with store.transaction() as tx:
            tx.put_token(Token("t", "operator", None, digest("secret"), 0.0))
        read, was_read, go_on = store.token, threading.Event(), threading.Event()

        def late(key: str) -> Token | None:
            found = read(key)
            was_read.set()
            assert go_on.wait(30)
            return found

        async def run() -> None:
            auth = Authenticator(store)
            monkeypatch.setattr(store, "token", late)
            first = asyncio.create_task(auth.principal("Bearer secret", "a"))
            await asyncio.to_thread(was_read.wait, 30)
            with store.transaction() as tx:
                tx.revoke_token("t")
            auth.forget()
            go_on.set()
            await first  # it came before
            with pytest.raises(Problem, match="revoked"):
                await auth.principal("Bearer secret", "a")

        asyncio.run(run())


def test_a_history_that_cannot_be_loaded_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def loading(name: str) -> ModuleType:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ImportError("half of it is missing")
        return import_module(name)

    import_module = timeseries.import_module
    monkeypatch.setattr(timeseries, "import_module", loading)
    monkeypatch.setattr(timeseries, "AGAIN_S", 0.01)

    async def run() -> None:
        series = timeseries.Timeseries(load(None, {"PLEACH_STATE_DIR": str(tmp_path)}))
        series.start()
        told: list[str] = []
        async with asyncio.timeout(60):
            while not told or told[-1]:
                try:
                    await series.history()
                    told.append("")
                except HistoryError as error:
                    told.append(str(error))
                    await asyncio.sleep(0.01)
        assert all("half of it is missing" in words for words in told[:-1])
        await series.stop()
        assert tries == 2

    asyncio.run(run())
