"""The app that discovers links, by LLDP frames that name their sender and are sealed, and says
which of them may be used.

Frames say that a link is there, and how long it takes. That it is gone is said by the switches
first, whose ports lose their carrier or their BFD session, and by silence only in the end. A
frame that a VM made up, or that comes in by a VM's port, says nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apps.bfd import Bfd
from apps.context import Southbound
from apps.flaps import Flaps
from apps.framework import MAIN, App, PacketInEvent, hub, on, spawn
from controller.act.dataplane import lldp
from controller.act.dataplane.openflow.fields import IN_PORT
from controller.act.dataplane.openflow.records import CONTROLLER
from controller.act.dataplane.pipeline import LLDP, Owner, owner_of
from controller.model.addresses import format_dpid
from controller.model.nouns import Link, Port, Record
from controller.observe.latency import Latencies, is_news
from controller.settings import safe_directory
from controller.store import StoreError
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Turns into which one round of frames is spread.
TURNS = 10
#: Rounds that a port without a link waits between two frames, at most. Most of such ports are
#: those of VMs not yet placed, and there may be a thousand of them.
MAX_PATIENCE = 12

Place = tuple[str, int]
#: What to make of a link as it is known.
Edit = Callable[[Link], Link]


class Discovery(App):
    """Frames out of every port that no VM has; links from those that come in elsewhere."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self.secret = _secret(southbound.settings.state_dir)
        self.latencies = Latencies()
        self.bfd = Bfd(southbound)
        self.flaps = Flaps(southbound)
        #: When a frame last came over each link, by the monotonic clock.
        self._seen: dict[str, float] = {}
        self._began = time.monotonic()
        self._turn = 0
        #: For each port the turn of its next frame, and the turns from that to the one after.
        self._due: dict[Place, tuple[int, int]] = {}
        #: Links that were not known as they are now, and how known ones differ.
        self._found: dict[str, Link] = {}
        self._edits: dict[str, list[Edit]] = {}
        self._news = hub.Event()
        southbound.watchers.append(self._changed)
        spawn(southbound.forever, self._send)
        spawn(southbound.forever, self._expire)
        spawn(southbound.forever, self._write)

    # --- Frames out ------------------------------------------------------------------------

    def _ports(self) -> Iterator[Place]:
        view = self.southbound.view
        for port in list(view.state.ports.values()):
            where = (port.datapath, port.number)
            if port.up and where not in view.plugged and port.datapath in self.southbound.sessions:
                yield where

    def _send(self) -> None:
        links = {(k.datapath, k.port): k.up for k in self.southbound.view.state.links.values()}
        due: dict[Place, tuple[int, int]] = {}
        for datapath, number in self._ports():
            # A port that is new is tried at once, soon again, and then ever less often.
            at, wait = self._due.get((datapath, number), (self._turn, 1))
            if at <= self._turn:
                self._probe(datapath, number)
                up = links.get((datapath, number))
                at = self._turn + (wait if up is None else TURNS if up else 1)
                wait = min(2 * wait, MAX_PATIENCE * TURNS)
            due[datapath, number] = (at, wait)
        self._due = due
        if self._turn % TURNS == 0:
            for datapath in list(self.southbound.sessions):
                self._probe(datapath, None)
        self._turn += 1
        hub.sleep(self.southbound.settings.southbound.lldp_s / TURNS)

    def _probe(self, datapath: str, port: int | None) -> None:
        """Send a frame out of a port; without one, to the switch and back."""
        ttl = max(1, round(self.southbound.settings.southbound.link_timeout_s))
        now = time.monotonic_ns()
        frame = lldp.build(datapath, port or lldp.MAX_PORT, self.secret, ttl_s=ttl, sent_ns=now)
        self.southbound.sessions[datapath].packet_out(port or CONTROLLER, frame)

    # --- Frames in -------------------------------------------------------------------------

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """A frame came in: the link is there."""
        packet = event.msg.packet
        datapath, port = format_dpid(event.msg.datapath.id), packet.fields.get(IN_PORT, 0)
        returned = port == CONTROLLER
        if not returned and owner_of(packet.cookie) is not Owner.DISCOVERY:
            return
        if packet.data[12:14] != LLDP.to_bytes(2, "big"):
            return
        sender = lldp.parse(packet.data, self.secret)
        if sender is None:
            return
        took_s = (time.monotonic_ns() - sender.sent_ns) / 1e9
        if not 0 <= took_s <= self.southbound.settings.southbound.link_timeout_s:
            return  # a copy, made long ago
        if sender.datapath == datapath:
            # Handed back, or a cable of a switch to itself: nothing is reached by that.
            if returned:
                self.latencies.returned(datapath, took_s)
            return
        plugged = self.southbound.view.plugged
        if (sender.datapath, sender.port) in plugged or (datapath, port) in plugged:
            return
        link = Link(datapath=sender.datapath, port=sender.port, to_datapath=datapath, to_port=port)
        self.latencies.crossed(link.key, took_s)
        self._arrived(link)

    def _arrived(self, link: Link) -> None:
        """A frame came over `link`."""
        links = self.southbound.view.state.links
        self._seen[link.key] = time.monotonic()
        back = f"{link.to_datapath}:{link.to_port}"
        if back not in links:
            self._due.pop((link.to_datapath, link.to_port), None)  # answer without delay
        known = links.get(link.key)
        if known is None or (known.to_datapath, known.to_port) != (link.to_datapath, link.to_port):
            usable = self._usable(link)
            self.latencies.forget(link.key)
            self._found[link.key] = link.model_copy(update={"up": usable})
            self._news.set()
            return
        if not known.up and self._usable(known):
            self._edit(link.key, _raised)
        estimate = self.latencies.estimate(link.key, link.datapath, link.to_datapath)
        if estimate is not None and is_news(known.latency_s, estimate):
            self._edit(link.key, lambda k: k.model_copy(update={"latency_s": estimate}))

    def _usable(self, link: Link) -> bool:
        """Whether a link over which frames come may carry packets."""
        ports = self.southbound.view.state.ports
        ends = (link.key, f"{link.to_datapath}:{link.to_port}")
        live = all(end not in ports or ports[end].live for end in ends)
        if live:
            self.flaps.recovered(link)
        return live and not link.damped and not self.bfd.awaited(link)

    # --- What it means ---------------------------------------------------------------------

    def _changed(self, before: Record | None, after: Record | None) -> None:
        """A port that lives again is tried at once; one that died may have been a link's."""
        if not isinstance(before, Port) or not isinstance(after, Port):
            return
        if after.live and not before.live:
            self._due.pop((after.datapath, after.number), None)

    def _edit(self, key: str, edit: Edit) -> None:
        self._edits.setdefault(key, []).append(edit)
        self._news.set()

    def _write(self) -> None:
        """Frames come in by the dozen: each turn writes what has gathered by then."""
        self._news.wait()
        self._news.clear()
        found, self._found = self._found, {}
        edits, self._edits = self._edits, {}
        try:
            self.southbound.write(lambda tx: _apply(tx, found, edits))
        except StoreError:
            # Frames over a link that is not known come ever less often: keep what they told.
            self._found = found | self._found
            self._edits = {
                key: edits.get(key, []) + self._edits.get(key, []) for key in {*edits, *self._edits}
            }
            self._news.set()
            raise

    def _expire(self) -> None:
        """Take down links over which nothing came for long, though both ends could speak."""
        hub.sleep(1.0)
        timeout = self.southbound.settings.southbound.link_timeout_s
        now = time.monotonic()
        sessions = self.southbound.sessions
        for link in list(self.southbound.view.state.links.values()):
            if link.datapath not in sessions or link.to_datapath not in sessions:
                # Nobody could have spoken: the silence counts from when both can again.
                self._seen[link.key] = now
            elif link.up and now - self._seen.get(link.key, self._began) > timeout:
                log.warning("a link is silent and taken for lost", extra={"link": link.key})
                self._edit(link.key, _lowered)


def _raised(link: Link) -> Link:
    return link.model_copy(update={"up": not link.damped})


def _lowered(link: Link) -> Link:
    return link.model_copy(update={"up": False})


def _apply(tx: Transaction, found: dict[str, Link], edits: dict[str, list[Edit]]) -> None:
    for link in found.values():
        log.info(
            "a link was discovered",
            extra={"link": link.key, "to": f"{link.to_datapath}:{link.to_port}"},
        )
        tx.put(_if_alive(tx, link))
    for key, changes in edits.items():
        known = tx.get(Link, key)
        if known is None:
            continue
        link = known
        for change in changes:
            link = change(link)
        link = _if_alive(tx, link)
        if link.up and not known.up:
            log.info(
                "a link is up",
                extra={"link": link.key, "to": f"{link.to_datapath}:{link.to_port}"},
            )
        tx.put(link)


def _if_alive(tx: Transaction, link: Link) -> Link:
    """The link, and down where one of its ports has died since a frame came over it."""
    ends = (link.key, f"{link.to_datapath}:{link.to_port}")
    ports = [port for end in ends if (port := tx.get(Port, end)) is not None]
    if all(port.live for port in ports):
        return link
    return link.model_copy(update={"up": False})


def _secret(state_dir: Path) -> bytes:
    """The key that frames are sealed with, made at the first start and kept."""
    path = safe_directory(state_dir) / "lldp.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
    return path.read_bytes()
