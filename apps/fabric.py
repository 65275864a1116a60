"""The app that keeps every switch as it is to be: connections, replies, ports, audits."""

from __future__ import annotations

import logging
import time
from typing import Any

from apps.context import Southbound
from apps.framework import (
    DEAD,
    HANDSHAKE,
    MAIN,
    VERSION,
    App,
    Connection,
    HelloEvent,
    PortEvent,
    StateEvent,
    close,
    hub,
    on,
    replies_to,
    spawn,
)
from controller.model.addresses import format_dpid
from controller.model.nouns import Migration, Phase
from controller.observe.migrations import advance
from controller.store.errors import StoreError
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

TICK_S = 0.25


class Fabric(App):
    """Connections in, entries out."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._changed_ports: set[str] = set()
        self._ports_changed = hub.Event()
        #: Revision at which each migration was seen to be activated.
        self._activated: dict[str, int] = {}
        replies_to(self.replied)
        spawn(southbound.forever, self._tick)
        spawn(southbound.forever, self._follow_ports)

    @on(HelloEvent, HANDSHAKE)
    def hello(self, event: Any) -> None:
        """Say what is wrong with a switch that cannot speak our version; the framework then
        ends the connection."""
        message = event.msg
        offered = {v for e in getattr(message, "elements", ()) for v in e.versions}
        if VERSION not in (offered or range(message.version + 1)):
            log.error(
                "a switch does not speak OpenFlow 1.5 and cannot be used: allow it, on Open "
                "vSwitch by `ovs-vsctl set bridge BRIDGE protocols=OpenFlow15`",
                extra={
                    "address": message.datapath.address,
                    "offered": sorted(offered) or [message.version],
                },
            )

    @on(StateEvent, MAIN, DEAD)
    def state_changed(self, event: Any) -> None:
        """A switch has come or gone."""
        if event.state == MAIN:
            try:
                self.southbound.connect(event.datapath)
            except StoreError as cause:
                log.error(
                    "a switch is sent away, to connect again: the store cannot be used: %s",
                    cause,
                    extra={"address": event.datapath.address},
                )
                close(event.datapath)
            except Exception:
                # Connected and yet kept by nobody, it would stay as it is for ever.
                log.exception(
                    "a switch is sent away, to connect again: it could not be taken in",
                    extra={"address": event.datapath.address},
                )
                close(event.datapath)
        else:
            self.southbound.disconnect(event.datapath)

    def replied(self, connection: Connection, kind: int, data: bytes) -> None:
        """A switch answered, or complains."""
        session = self.southbound.sessions.get(format_dpid(connection.id))
        if session is not None and session.connection is connection:
            session.received(kind, data)

    @on(PortEvent, MAIN)
    def port_changed(self, event: Any) -> None:
        """A port came, went, or changed its state."""
        self._changed_ports.add(format_dpid(event.datapath.id))
        self._ports_changed.set()

    def _follow_ports(self) -> None:
        """Ports often come in dozens: each turn takes what has gathered by then."""
        self._ports_changed.wait()
        self._ports_changed.clear()
        gathered, self._changed_ports = self._changed_ports, set()
        try:
            for datapath in sorted(gathered):
                self.southbound.ports_changed(datapath)
        except Exception:
            self._changed_ports |= gathered
            self._ports_changed.set()
            raise

    def _tick(self) -> None:
        hub.sleep(TICK_S)
        now = time.monotonic()
        for session in list(self.southbound.sessions.values()):
            deadline = session.channel.deadline()
            if deadline is not None and now > deadline:
                session.close("it did not answer in time")
        self._audit(now)
        for migration in list(self.southbound.view.moving.values()):
            self._advance(migration)

    def _audit(self, now: float) -> None:
        """Go on with the audits that are due: each switch's takes `reconcile_s` in all."""
        interval = self.southbound.settings.southbound.reconcile_s
        for session in list(self.southbound.sessions.values()):
            if now >= session.audit_at:
                session.audit_at = now + interval / session.channel.parts
                session.audit()

    def _advance(self, migration: Migration) -> None:
        """Let a migration go on by time. Its source is not drained before every connected edge
        that the VM's tenant is at has confirmed that it sends to the target; others send it
        nothing, and one of them that is stuck must hold up nobody."""
        settings = self.southbound.settings.migration
        view = self.southbound.view
        vm = view.state.vms.get(migration.vm)
        if migration.phase is Phase.ACTIVATED and vm is not None:
            flipped = self._activated.setdefault(migration.id, view.state.revision)
            senders = view.edges_of_tenant(vm.tenant)
            sessions = self.southbound.sessions.items()
            if any(s.channel.confirmed < flipped for d, s in sessions if d in senders):
                return
        later = advance(migration, time.time(), settings.drain_s, settings.grace_s)
        if later is migration:
            return

        def change(tx: Transaction) -> None:
            if tx.get(Migration, migration.id) == migration:
                tx.put(later)

        self.southbound.write(change)
        self._activated.pop(migration.id, None)
