"""What the apps share: the store, the compiled fabric, and the sessions of the switches.

Everything that is decided is in the store first. A change made here too, such as a port that
appeared, is written there and comes back by the feed, like everybody else's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from apps.framework import Connection, close, hub, spawn
from apps.session import Session
from controller.act.dataplane.channel import Channel, Stage
from controller.act.dataplane.compiler import Compiler, Desired, Key
from controller.act.dataplane.rollout import Rollout, Step
from controller.act.dataplane.view import FabricView
from controller.model.addresses import format_dpid
from controller.model.nouns import Datapath, Link, Port, Record
from controller.model.state import Change
from controller.observe.signatures.book import observed_of
from controller.settings import CONFIG, Settings, load
from controller.store import signatures
from controller.store.errors import FeedCompacted, StoreError
from controller.store.records import Progress
from controller.store.store import Store
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Greatest number of a port that is no reserved one (OFPP_MAX, OpenFlow 1.5.1, 7.2.1.2).
MAX_PORT = 0xFFFFFF00
#: Changes taken in at a time.
FEED_LIMIT = 1_000
#: Longest that news of progress is gathered before it is told, in seconds.
REPORT_S = 0.02
#: Seconds without news after which it is looked whether the store still has the last.
REREAD_S = 2.0
#: Into how many phases of an interval the first audits are spread.
PHASES = 16
#: Bits of a port's configuration and state (OFPPC_PORT_DOWN, OFPPS_LINK_DOWN, OFPPS_LIVE).
#: Open vSwitch says LIVE of what fast failover takes for alive, so BFD's word is in it.
PORT_DOWN, LINK_DOWN, LIVE = 1, 1, 4
#: Seconds that packets may be under way by labels that are not given any more, that one step of
#: a change of paths is waited for, and between two looks at how far the switches are.
DRAIN_S, PATIENCE_S, ROLL_S = 1.0, 3.0, 0.01


def settings_of_process() -> Settings:
    """The settings that the environment of this process names."""
    path = os.environ.get(CONFIG)
    return load(Path(path) if path else None, os.environ)


class Southbound:
    """The state that all apps of the southbound process work on."""

    def __init__(self) -> None:
        self.settings = settings_of_process()
        self.store = Store.open(
            self.settings.store.url,
            busy_timeout_s=self.settings.store.busy_timeout_s,
            feed_keep=self.settings.store.feed_keep,
        )
        self.sessions: dict[str, Session] = {}
        self._disconnect_all()
        with self.store.reading() as connection:
            #: How far the counters of signatures had counted when this process began.
            self.readings = signatures.readings(connection)
        observed = observed_of(self.readings, self.settings.signatures)
        tapping = self.settings.dpi.tap
        self.compiler = Compiler(self.store.snapshot(), observed, tapping=tapping)
        self._following = hub.Semaphore(1)
        self._bell = self.store.bell("southbound")
        #: Who is told of links and ports that differ, by what was and what is; from within a
        #: change of the store, so that they must not change it themselves.
        self.watchers: list[Callable[[Record | None, Record | None], None]] = []
        self._rollout = Rollout(DRAIN_S, PATIENCE_S)
        self._rolling = hub.Event()
        self._reported: dict[str, Progress] = {}
        self._report = hub.Event()
        #: Switches that have gone, which the store does not know yet.
        self._gone: set[str] = set()
        spawn(self.forever, self._follow_bell)
        spawn(self.forever, self._report_progress)
        spawn(self.forever, self._roll)

    @property
    def view(self) -> FabricView:
        """The fabric as of the newest change followed."""
        return self.compiler.view

    def forever(self, step: Callable[[], None]) -> None:
        """Repeat a step for the life of the process. A store that cannot be used now is
        waited for: the switches keep what they have meanwhile."""
        while True:
            try:
                step()
            except StoreError as cause:
                log.error("the store cannot be used: %s", cause)
                hub.sleep(1.0)
            except Exception:
                log.exception("a loop of the southbound process failed; it goes on")
                hub.sleep(1.0)

    def close(self) -> None:
        """The process ends: switches go on with the rules that they have."""
        for session in self.sessions.values():
            session.end()
        self._bell.close()
        self.store.close()

    # --- The feed ----------------------------------------------------------------------

    def _follow_bell(self) -> None:
        self.follow()
        self._bell.wait(1.0)

    def follow(self) -> None:
        """Take in everything that the store has by now, and tell the sessions."""
        with self._following:
            while self._follow_once():
                pass

    def _follow_once(self) -> bool:
        """Take in what one look at the feed shows; whether there may be more."""
        at = self.view.state.revision
        more = False
        news: list[tuple[Record | None, Record | None]] = []
        try:
            changes = self.store.changes(at, FEED_LIMIT)
            more = len(changes) >= FEED_LIMIT
            news = self._news(changes)
            applied = self.compiler.apply(changes)
        except FeedCompacted:
            log.warning("the feed no longer has what came after revision %d; reading all", at)
            applied = self.compiler.reload(self.store.snapshot())
        except StoreError:
            raise
        except Exception:
            # What was taken in of these changes, and what not, is not known any more.
            log.exception("changes after revision %d were not understood; reading all", at)
            applied = self.compiler.reload(self.store.snapshot())
        if applied.paths:
            for session in self.sessions.values():
                session.channel.allow(Step.LAY)
            self._rolling.set()
        revision = self.view.state.revision
        if revision != at:
            for datapath, session in list(self.sessions.items()):
                keys = applied.changed.get(datapath, set[Key]())
                session.changed(keys, revision, applied.zones.get(datapath, set()))
        for before, after in news:
            for watcher in self.watchers:
                watcher(before, after)
        return more

    def _news(self, changes: list[Change]) -> list[tuple[Record | None, Record | None]]:
        """What links and ports were, and what they become."""
        return [
            (self.view.state.table(change.kind).get(change.key), change.record)
            for change in changes
            if change.kind in (Link.kind, Port.kind)
        ]

    def _roll(self) -> None:
        """Lead all switches through a change of paths, step by step."""
        self._rolling.wait()
        self._rolling.clear()
        while True:
            sessions = list(self.sessions.values())
            ready = [s for s in sessions if s.channel.stage is Stage.READY]
            steps = {s.channel.lowest for s in ready} - {Step.FREE}
            limit = self._rollout.look(min(steps, default=Step.FREE), time.monotonic())
            for session in ready:
                session.allow(limit)
            if not steps and len(ready) == len(sessions):
                return
            hub.sleep(ROLL_S)

    def write(self, change: Callable[[Transaction], None]) -> None:
        """Change the store in one transaction, and take the change in at once."""
        with self.store.transaction() as tx:
            change(tx)
        self.follow()

    # --- Progress ------------------------------------------------------------------------

    def report(self) -> None:
        """Something that the brain waits for may have changed."""
        self._report.set()

    def _report_progress(self) -> None:
        if not self._report.wait(REREAD_S):
            # It is written without waiting for the disk: a database that fell may have lost it.
            self._reported = self.store.progress()
        # What one change means for a dozen switches is told once, when the last has confirmed
        # it; a switch that takes long holds up the news of the others only this much.
        until = time.monotonic() + REPORT_S
        while self._unsettled() and (left := until - time.monotonic()) > 0:
            self._report.clear()
            self._report.wait(left)
        self._report.clear()
        try:
            self._tell_gone()
        except StoreError:
            self._report.set()  # it is still to be told
            raise
        rows = {d: self._progress(s) for d, s in list(self.sessions.items())}
        for datapath, last in self._reported.items():
            if datapath not in rows and last.connected:
                rows[datapath] = Progress(
                    datapath, last.revision, last.confirmed_at, False, last.pending, last.error
                )
        changed = [row for row in rows.values() if row != self._reported.get(row.datapath)]
        if changed:
            try:
                self.store.set_progress(changed)
            except StoreError:
                self._report.set()  # it is still to be told
                raise
            self._reported.update((row.datapath, row) for row in changed)

    def _unsettled(self) -> bool:
        revision = self.view.state.revision
        return any(s.channel.confirmed < revision for s in self.sessions.values())

    def _progress(self, session: Session) -> Progress:
        channel = session.channel
        return Progress(
            session.datapath,
            channel.confirmed,
            session.confirmed_at,
            not session.closed,
            channel.pending,
            session.error,
        )

    # --- Switches ------------------------------------------------------------------------

    def _disconnect_all(self) -> None:
        """Nobody is connected to a process that has just begun."""
        with self.store.transaction() as tx:
            for datapath in tx.all(Datapath):
                if datapath.connected:
                    tx.put(datapath.model_copy(update={"connected": False}))
        self.store.set_progress(
            Progress(p.datapath, p.revision, p.confirmed_at, False, p.pending, p.error)
            for p in list(self.store.progress().values())
        )

    def connect(self, connection: Connection) -> None:
        """A switch has said who it is, and which ports it has."""
        if not connection.id:
            log.error(
                "a switch has no datapath id and cannot be used: give it one, on Open vSwitch by "
                "`ovs-vsctl set bridge BRIDGE other-config:datapath-id=ID`",
                extra={"address": connection.address},
            )
            close(connection)
            return
        datapath = format_dpid(connection.id)
        earlier = self.sessions.pop(datapath, None)
        if earlier is not None:
            earlier.close("the switch has connected again")
        self._gone.discard(datapath)
        ports = ports_of(datapath, connection)

        def change(tx: Transaction) -> None:
            known = tx.get(Datapath, datapath) or Datapath(dpid=datapath)
            tx.put(known.model_copy(update={"connected": True}))
            _put_ports(tx, datapath, ports)

        self.write(change)
        desired = self.compiler.desired.get(datapath, Desired())
        window = self.settings.southbound.window
        channel = Channel(desired, self.view.state.revision, window=window)
        channel.allow(Step.LAY)  # until it is known what the others lack
        session = Session(datapath, connection, channel, self.report)
        # Switches that connect together are not to be audited together for ever.
        turn = 1 + len(self.sessions) % PHASES / PHASES
        session.audit_at = time.monotonic() + turn * self.settings.southbound.reconcile_s
        self.sessions[datapath] = session
        session.start()
        self._rolling.set()
        log.info(
            "a switch is connected",
            extra={"datapath": datapath, "address": connection.address, "ports": len(ports)},
        )

    def disconnect(self, connection: Connection) -> None:
        """The connection is gone; the switch keeps its rules."""
        for datapath, session in list(self.sessions.items()):
            if session.connection is connection:
                session.end()
                del self.sessions[datapath]
                log.warning("a switch is disconnected", extra={"datapath": datapath})
                self.report()
                self._gone.add(datapath)
                try:
                    self._tell_gone()
                except StoreError as cause:  # it is told with the next report
                    log.error("the store cannot be used: %s", cause)

    def _tell_gone(self) -> None:
        """Have the store know which switches have gone."""
        gone = set(self._gone)
        if gone:
            # One that has come back meanwhile is no longer among them.
            self.write(lambda tx: _mark_disconnected(tx, gone & self._gone))
        self._gone -= gone

    def ports_changed(self, datapath: str) -> None:
        """The ports of a connected switch differ from what the store has."""
        session = self.sessions.get(datapath)
        if session is not None:
            ports = ports_of(datapath, session.connection)
            self.write(lambda tx: _put_ports(tx, datapath, ports))


def _mark_disconnected(tx: Transaction, datapaths: set[str]) -> None:
    for datapath in datapaths:
        known = tx.get(Datapath, datapath)
        if known is not None:
            tx.put(known.model_copy(update={"connected": False}))


def ports_of(datapath: str, connection: Connection) -> dict[int, Port]:
    """The ports of a switch, by number, as it described them last."""
    ports = {}
    described = list(connection.ports.items())
    tells = any(desc.state & LIVE for _, desc in described)
    for number, desc in described:
        if number > MAX_PORT:
            continue
        up = not (desc.config & PORT_DOWN or desc.state & LINK_DOWN)
        live = up and bool(desc.state & LIVE or not tells)
        speed = max((p.curr_speed for p in desc.properties if hasattr(p, "curr_speed")), default=0)
        name = desc.name.decode("utf-8", "replace").rstrip("\0")
        try:
            ports[number] = Port(
                datapath=datapath, number=number, name=name, up=up, live=live, speed=speed * 1000
            )
        except ValidationError as error:
            log.warning(
                "a port is left out, for no VM could be told to be there: %s; rename it",
                error.errors()[0]["msg"],
                extra={"datapath": datapath, "port": number, "port_name": name},
            )
    return ports


def _put_ports(tx: Transaction, datapath: str, ports: dict[int, Port]) -> None:
    """Make the store's ports of a datapath those given. Links of ports through which nothing
    gets are down, those of ports that are gone are forgotten: in both directions, for the other
    end may not have noticed yet."""
    for known in tx.where(Port, datapath=datapath):
        if known.number not in ports:
            tx.delete(Port, known.key)
    for port in ports.values():
        tx.put(port)
    for link in tx.all(Link):
        for dpid, number in ((link.datapath, link.port), (link.to_datapath, link.to_port)):
            if dpid != datapath:
                continue
            port_now = ports.get(number)
            if port_now is None:
                tx.delete(Link, link.key)
                break
            if link.up and not port_now.live:
                tx.put(link.model_copy(update={"up": False}))
                break
