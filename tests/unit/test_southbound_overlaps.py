"""What overlaps in the southbound process, or fails in it, leaves no switch and no link behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apps import fabric
from apps.context import Southbound, _put_ports
from apps.discovery import Discovery, _apply, _raised
from apps.fabric import Fabric
from apps.framework import MAIN
from controller.model.nouns import Datapath, Link, Port
from controller.store import Store, StoreUnavailable, Transaction

A, B = f"{1:016x}", f"{2:016x}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two switches with a cable between them, over which nothing has come for a while."""
    with closing(Store.open(f"sqlite:///{tmp_path}/pleach.db")) as opened:
        with opened.transaction() as tx:
            for dpid in (A, B):
                tx.put(Datapath(dpid=dpid, connected=True))
                _put_ports(tx, dpid, port(dpid, live=True))
            tx.put(Link(datapath=A, port=1, to_datapath=B, to_port=1, up=False))
        yield opened


def port(dpid: str, *, live: bool) -> dict[int, Port]:
    return {1: Port(datapath=dpid, number=1, name=f"x{dpid[-1]}", up=live, live=live)}


def away(_: Callable[[Transaction], None]) -> None:
    raise StoreUnavailable("the store", "nobody answers", "see that the server runs")


@pytest.mark.parametrize("dead", [A, B])
@pytest.mark.parametrize("known", [True, False])
def test_a_link_whose_port_died_before_it_was_written_is_not_up(
    store: Store, dead: str, known: bool
) -> None:
    link = store.snapshot().links[f"{A}:1"]
    with store.transaction() as tx:
        if not known:
            tx.delete(Link, link.key)
        _put_ports(tx, dead, port(dead, live=False))
    with store.transaction() as tx:
        if known:
            _apply(tx, {}, {link.key: [_raised]})
        else:
            _apply(tx, {link.key: link.model_copy(update={"up": True})}, {})
    assert not store.snapshot().links[link.key].up
    with store.transaction() as tx:
        _put_ports(tx, dead, port(dead, live=True))
        _apply(tx, {}, {link.key: [_raised]})
    assert store.snapshot().links[link.key].up


def test_what_frames_told_is_written_when_the_store_is_back(store: Store) -> None:
    link = store.snapshot().links[f"{A}:1"]
    other = Link(datapath=B, port=1, to_datapath=A, to_port=1)
    news: list[bool] = []
    here = SimpleNamespace(
        _found={other.key: other},
        _edits={link.key: [_raised]},
        _news=SimpleNamespace(wait=lambda: None, clear=news.clear, set=lambda: news.append(True)),
        southbound=SimpleNamespace(write=away),
    )
    with pytest.raises(StoreUnavailable):
        Discovery._write(cast("Discovery", here))
    assert news == [True]

    def write(change: Callable[[Transaction], None]) -> None:
        with store.transaction() as tx:
            change(tx)

    here.southbound.write = write
    Discovery._write(cast("Discovery", here))
    links = store.snapshot().links
    assert (links[link.key].up, links[other.key].up) == (True, other.up)
    assert (here._found, here._edits) == ({}, {})


@pytest.mark.parametrize(
    "error", [RuntimeError("a fault of ours"), StoreUnavailable("s", "c", "m")]
)
def test_a_switch_that_cannot_be_taken_in_is_sent_away(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It connects again; if it stayed, nobody would ever tell it anything."""
    closed: list[Any] = []

    def connect(_: object) -> None:
        raise error

    monkeypatch.setattr(fabric, "close", closed.append)
    connection = SimpleNamespace(address=("127.0.0.1", 1))
    here = SimpleNamespace(southbound=SimpleNamespace(connect=connect))
    Fabric.state_changed(cast("Fabric", here), SimpleNamespace(state=MAIN, datapath=connection))
    assert closed == [connection]


def test_a_switch_that_goes_while_the_store_is_away_is_known_to_have_gone(store: Store) -> None:
    session = SimpleNamespace(connection=object(), end=lambda: None)
    here = SimpleNamespace(sessions={A: session}, _gone=set(), report=lambda: None, write=away)
    here._tell_gone = lambda: Southbound._tell_gone(cast("Southbound", here))
    Southbound.disconnect(cast("Southbound", here), session.connection)
    assert here.sessions == {}
    assert store.snapshot().datapaths[A].connected

    def write(change: Callable[[Transaction], None]) -> None:
        with store.transaction() as tx:
            change(tx)

    here.write = write
    here._tell_gone()
    assert not store.snapshot().datapaths[A].connected
    assert store.snapshot().datapaths[B].connected
    assert here._gone == set()
