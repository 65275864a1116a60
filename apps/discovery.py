"""The app that discovers links, by LLDP frames that name their sender and are sealed.

Frames say that a link is there; that it is gone is said by port status first, and by silence
only in the end. A frame that a VM made up, or that comes in by a VM's port, says nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.context import Southbound
from apps.framework import MAIN, App, PacketInEvent, hub, on, spawn
from controller.act.dataplane import lldp
from controller.act.dataplane.openflow.fields import IN_PORT
from controller.act.dataplane.pipeline import Owner, owner_of
from controller.model.addresses import format_dpid
from controller.model.nouns import Link
from controller.settings import safe_directory
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Turns into which one round of frames is spread.
TURNS = 10
#: Rounds that a port without a link waits between two frames, at most. Most of such ports are
#: those of VMs not yet placed, and there may be a thousand of them.
MAX_PATIENCE = 12


class Discovery(App):
    """Frames out of every port that no VM has; links from those that come in elsewhere."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self.secret = _secret(southbound.settings.state_dir)
        #: When a frame last came over each link, by the monotonic clock.
        self._seen: dict[str, float] = {}
        self._began = time.monotonic()
        self._turn = 0
        #: For each port the turn of its next frame, and the turns from that to the one after.
        self._due: dict[tuple[str, int], tuple[int, int]] = {}
        spawn(southbound.forever, self._send)
        spawn(southbound.forever, self._expire)

    def _ports(self) -> Iterator[tuple[str, int]]:
        view = self.southbound.view
        for port in list(view.state.ports.values()):
            where = (port.datapath, port.number)
            if port.up and where not in view.plugged and port.datapath in self.southbound.sessions:
                yield where

    def _send(self) -> None:
        ttl = max(1, round(self.southbound.settings.southbound.link_timeout_s))
        linked = {(link.datapath, link.port) for link in self.southbound.view.state.links.values()}
        due: dict[tuple[str, int], tuple[int, int]] = {}
        for datapath, number in self._ports():
            # A port that is new is tried at once, soon again, and then ever less often.
            at, wait = self._due.get((datapath, number), (self._turn, 1))
            if at <= self._turn:
                frame = lldp.build(datapath, number, self.secret, ttl_s=ttl)
                self.southbound.sessions[datapath].packet_out(number, frame)
                at = self._turn + (TURNS if (datapath, number) in linked else wait)
                wait = min(2 * wait, MAX_PATIENCE * TURNS)
            due[datapath, number] = (at, wait)
        self._due = due
        self._turn += 1
        hub.sleep(self.southbound.settings.southbound.lldp_s / TURNS)

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """A frame came in: the link is there."""
        packet = event.msg.packet
        if owner_of(packet.cookie) is not Owner.DISCOVERY:
            return
        sender = lldp.parse(packet.data, self.secret)
        if sender is None:
            return
        datapath, port = format_dpid(event.msg.datapath.id), packet.fields.get(IN_PORT, 0)
        view = self.southbound.view
        if sender in view.plugged or (datapath, port) in view.plugged:
            return
        if sender[0] == datapath:
            return  # sent back, or a cable of a switch to itself: nothing is reached by it
        link = Link(datapath=sender[0], port=sender[1], to_datapath=datapath, to_port=port)
        self._seen[link.key] = time.monotonic()
        if f"{datapath}:{port}" not in view.state.links:
            self._due.pop((datapath, port), None)  # there is somebody: answer without delay
        known = view.state.links.get(link.key)
        if known is None or (known.to_datapath, known.to_port) != (datapath, port):
            log.info("a link was discovered", extra={"link": link.key, "to": f"{datapath}:{port}"})
            self.southbound.write(lambda tx: _note(tx, link))
        elif not known.up:
            log.info("a link is back", extra={"link": link.key, "to": f"{datapath}:{port}"})
            self.southbound.write(lambda tx: _note(tx, known.model_copy(update={"up": True})))

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
                self.southbound.write(
                    lambda tx, x=link: _note(tx, x.model_copy(update={"up": False}))  # type: ignore[misc]
                )


def _note(tx: Transaction, link: Link) -> None:
    tx.put(link)


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
