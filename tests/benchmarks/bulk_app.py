"""The southbound half of the benchmark `bulk`, with the words FLOWS OPENFLOW_PORT CONTROL_PORT.
Eventlet has patched everything before this is imported.

It waits for one switch, and hands entries to its session when it is told to by a line on the
control connection: "rest" (groups and meters), "flows", "nothing". Each is answered by a line
with the seconds from the hand-over until the switch has confirmed all of it.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

from apps import door
from apps.framework import MAIN, App, Connection, StateEvent, hub, on, replies_to, run, spawn
from apps.session import Session
from controller.act.dataplane.channel import Channel
from controller.act.dataplane.compiler import Desired, Entry, Key, key_of
from controller.act.dataplane.openflow.records import Flow
from controller.process import seldom_collect
from tests.benchmarks.large_edge import entries


class Bulk(App):
    """One session, without store and fabric."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        count, control = int(sys.argv[1]), int(sys.argv[3])
        self._entries: dict[Key, Entry] = {key_of(e): e for e in entries(count)}
        self._session: Session | None = None
        self._turned = hub.Event()
        self._control = socket.create_connection(("127.0.0.1", control))
        replies_to(self.replied)
        spawn(self._obey)

    @on(StateEvent, MAIN)
    def connected(self, event: Any) -> None:
        """The switch is here."""
        self._session = Session("switch", event.datapath, Channel(Desired(), 1), self._turned.set)
        self._session.start()

    def replied(self, _: Connection, kind: int, data: bytes) -> None:
        """It answers."""
        assert self._session is not None
        self._session.received(kind, data)

    def _obey(self) -> None:
        words = self._control.makefile("rw")
        self._wait(1)
        words.write("ready\n")
        words.flush()
        for revision, word in enumerate(words, 2):
            words.write(f"{self._hand_over(word.strip(), revision)}\n")
            words.flush()

    def _hand_over(self, what: str, revision: int) -> float:
        wanted = {
            key: entry
            for key, entry in self._entries.items()
            if what != "nothing" and (what == "flows" or not isinstance(entry, Flow))
        }
        assert self._session is not None
        channel = self._session.channel
        differing = {k for k in self._entries if channel.desired.entries.get(k) != wanted.get(k)}
        begin = time.perf_counter()
        channel.desired.entries = wanted
        self._session.changed(differing, revision, set())
        self._wait(revision)
        return time.perf_counter() - begin

    def _wait(self, revision: int) -> None:
        while self._session is None or self._session.channel.confirmed < revision:
            self._turned.wait(1.0)
            self._turned.clear()


def main() -> None:
    """Serve until killed."""
    bound = door.bind("127.0.0.1", int(sys.argv[2]))
    seldom_collect()
    run(["tests.benchmarks.bulk_app"], bound, None)
