"""The app that knows who talks to whom: it hears of what begins, has it counted, and writes what
was counted into the store, hour by hour.

A switch makes its counters itself, so nothing here is in a hurry; what goes up says what the
counters began with, and is news at once.
"""

from __future__ import annotations

import logging
import time
from ipaddress import ip_network
from typing import Any, NamedTuple

from apps.context import Southbound
from apps.counters import Counters
from apps.framework import MAIN, App, PacketInEvent, hub, on, spawn
from controller.act.dataplane.counting import Counted
from controller.act.dataplane.openflow.decode import PacketIn
from controller.act.dataplane.openflow.fields import IN_PORT
from controller.act.dataplane.pipeline import Owner, TableId, owner_of
from controller.act.dataplane.rules.signatures import DENIED_IDLE_S
from controller.model.addresses import format_dpid
from controller.model.signatures import (
    OTHERS,
    Counter,
    Counts,
    Denied,
    Reading,
    Refused,
    Signature,
    Talked,
    protocol_name,
)
from controller.observe.signatures.book import Directory, Met, expire, meet
from controller.observe.signatures.heads import Head, head
from controller.observe.signatures.ledger import Ledger, counted
from controller.observe.signatures.tally import Tally, hour_of
from controller.store import signatures
from controller.store.errors import StoreError

log = logging.getLogger(__name__)

#: Seconds for which what begins is gathered before it is taken in.
GATHER_S = 0.02
#: First packets that wait to be taken in, at most: more come than a meter lets through only where
#: this process was stopped.
WAITING = 5_000
#: Seconds between two rounds of giving up what is not used, and of forgetting what is old.
TIDY_S, FORGET_S = 30.0, 3_600.0
#: VMs that are looked at before others have their turn.
TIDIED = 100


class _First(NamedTuple):
    """The first packet of a connection that had no counter."""

    datapath: str
    signature: Signature
    bytes: int
    at: float


class Signatures(App):
    """First packets up, counters down, and what they counted into the store."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self.settings = southbound.settings.signatures
        self.ledger = Ledger()
        self.tally = Tally(southbound.readings)
        self._vms = {reading.counter.mac: reading.vm for reading in southbound.readings}
        view = southbound.view
        self._directory = Directory(view.state, view.observed)
        self._first: list[_First] = []
        self._begun = hub.Event()
        #: Signatures that were taken over before their first packet was heard of, and whether that
        #: was a whole reading ago.
        self._unheard: dict[Signature, bool] = {}
        #: How far denials were counted, by datapath.
        self._denied: dict[str, dict[Denied, tuple[int, int, float]]] = {}
        #: When the first packet of each denial went up, of the last minute.
        self._heard: dict[Denied, float] = {}
        self._denied_hour: tuple[int, dict[str, set[tuple[str, str, int]]]] = (0, {})
        self._readings: dict[tuple[str, Counter], Reading] = {}
        self._gone: set[tuple[str, Counter]] = set()
        self._began = time.monotonic()
        self._forget_at = 0.0
        self.counters = Counters(southbound, self._taken)
        spawn(southbound.forever, self._take_over)
        spawn(southbound.forever, self.counters.poll)
        spawn(southbound.forever, self._tidy)

    @property
    def directory(self) -> Directory:
        """Who has which address now."""
        self._directory.follow(self.southbound.view.state)
        return self._directory

    # --- What begins ---------------------------------------------------------------------------

    @on(PacketInEvent, MAIN)
    def packet_in(self, event: Any) -> None:
        """One packet that a rule sent up; its cookie says why."""
        packet: PacketIn = event.msg.packet
        owner = owner_of(packet.cookie)
        if owner not in (Owner.FIRST, Owner.DENIAL):
            return
        read = head(packet.data)
        if read is None:
            return
        size = max(packet.size, len(packet.data))
        if owner is Owner.DENIAL:
            mac = read.sender if packet.table == TableId.DENIED_OUT else read.receiver
            self._denied_first(
                Denied(mac, read.source, read.target, read.protocol, read.port), size
            )
            return
        datapath = format_dpid(event.msg.datapath.id)
        place = self.southbound.view.plugged.get((datapath, packet.fields.get(IN_PORT, 0)))
        if place is None or len(self._first) >= WAITING or self._is_late_reply(place.vm, read):
            return
        counter = Counter(read.sender, ip_network(read.target), read.protocol, read.port)
        signature = self._signature(place.vm, counter)
        self._first.append(_First(datapath, signature, size, time.time()))
        self._begun.set()

    def _is_late_reply(self, vm: str, read: Head) -> bool:
        """Whether a packet answers somebody whose connection conntrack has forgotten."""
        view = self.southbound.view
        asker = self.directory.vm(self.directory.tenant(vm), read.target)
        if asker is None or not read.source_port:
            return False
        return any(
            s.port == read.source_port and s.protocol == read.protocol and read.source in s.peer
            for s in view.observed.signatures.get(asker, ())
        )

    def _signature(self, vm: str, counter: Counter) -> Signature:
        """What a counter that a switch has learned, of a single address or a prefix, stands for."""
        peer = self.directory.peer(self.directory.tenant(vm), counter.peer).network
        assert peer is not None
        return Signature(vm, counter.mac, peer, counter.protocol, counter.port)

    def _take_over(self) -> None:
        self._begun.wait()
        hub.sleep(GATHER_S)
        self._begun.clear()
        first, self._first = self._first, []
        met = self._meet([one.signature for one in first])
        fresh = set(met.new)
        for one in first:
            if one.signature in fresh:
                self._note_kept(one.datapath, one.signature, one.at)
            # What else goes up of a signature has gone through its counter.
            unheard = self._unheard.pop(one.signature, None) is not None
            if one.signature in fresh or unheard or self._in_crowd(one.signature):
                fresh.discard(one.signature)
                counts = Counts(begun=1, begun_bytes=one.bytes)
                self._talked(one.signature.vm, Counter(*one.signature[1:]), counts, one.at)
        self._keep_and_count(met)

    def _in_crowd(self, signature: Signature) -> bool:
        """Whether a signature is one too many, and not told apart."""
        observed = self.southbound.view.observed
        known = observed.signatures.get(signature.vm, ())
        return signature.vm in observed.crowded and signature not in known

    def _meet(self, found: list[Signature]) -> Met:
        """Take in signatures, which `_keep_and_count` is to be called for."""
        return meet(self.southbound.view.observed, found, self.settings.most_per_vm)

    def _keep_and_count(self, met: Met) -> None:
        """Have what was met counted from now on, once the store knows of it: should this process
        die in between, the switch has its own counters still, and none that nobody wants."""
        try:
            if met.new:
                self._keep()
        finally:
            self._changed({*met.crowded, *(signature.vm for signature in met.new)})
            for vm in met.crowded:
                self._tell_crowded(vm)

    def _changed(self, vms: set[str]) -> None:
        """Have the switches count what is to be counted of `vms`."""
        revision = self.southbound.view.state.revision
        for datapath, keys in self.southbound.compiler.observe(vms).items():
            session = self.southbound.sessions.get(datapath)
            if session is not None and keys:
                session.changed(keys, revision, set())

    def _tell_crowded(self, vm: str) -> None:
        most = self.settings.most_per_vm
        log.warning(
            "a VM begins connections to more than are told apart: it may be scanning; the rest "
            "is counted as one",
            extra={"vm": vm, "most": most},
        )
        now = time.time()
        self.southbound.write(
            lambda tx: tx.audit(now, "southbound", "signatures.crowded", vm, {"most": most})
        )

    # --- What was counted ------------------------------------------------------------------------

    def _taken(self, datapath: str, read: Counted) -> None:
        """A switch has told its counters."""
        now = time.time()
        news = self.tally.take(datapath, read.talks, now)
        for counter, counts in news.counted.items():
            vm = self._vm(counter.mac)
            if vm is not None:
                self._talked(vm, counter, counts, now)
        self._note(datapath, read, [*news.counted, *news.found], now)
        for counter in news.gone:
            self._readings.pop((datapath, counter), None)
            self._gone.add((datapath, counter))
        met = self._adopt(datapath, read, now)
        self._take_denials(datapath, read, now)
        self._keep_and_count(met)
        self._keep()

    def _note_kept(self, datapath: str, signature: Signature, at: float) -> None:
        counter = Counter(*signature[1:])
        counts = self.tally.counts(datapath, counter)
        reading = Reading(datapath, counter, signature.vm, True, counts, at)
        self._readings[datapath, counter] = reading
        self._gone.discard((datapath, counter))

    def _note(self, datapath: str, read: Counted, counters: list[Counter], now: float) -> None:
        for counter in counters:
            vm = self._vm(counter.mac)
            if vm is None:
                continue
            kept = counter in read.kept
            counts = self.tally.counts(datapath, counter)
            reading = Reading(datapath, counter, vm, kept, counts, now)
            self._readings[datapath, counter] = reading
            self._gone.discard((datapath, counter))

    def _adopt(self, datapath: str, read: Counted, now: float) -> Met:
        """Take over what a switch has learned and whose first packet was not heard of, because a
        meter dropped it, or nobody was there."""
        for signature, waited in list(self._unheard.items()):
            if waited:
                del self._unheard[signature]
                self._talked(signature.vm, Counter(*signature[1:]), Counts(begun=1), now)
            else:
                self._unheard[signature] = True
        heard = {one.signature for one in self._first}
        learned = [
            self._signature(vm, counter)
            for counter in read.talks
            if counter not in read.kept
            and counter.peer is not None
            and (vm := self._vm(counter.mac)) is not None
        ]
        met = self._meet([signature for signature in learned if signature not in heard])
        self._unheard.update(dict.fromkeys(met.new, False))
        for signature in met.new:
            self._note_kept(datapath, signature, now)
        return met

    def _vm(self, mac: str) -> str | None:
        """Whose NIC it is, or was."""
        owner = self.directory.owner(mac)
        if owner is not None:
            self._vms[mac] = owner
        return self._vms.get(mac)

    def _talked(self, vm: str, counter: Counter, counts: Counts, at: float) -> None:
        directory = self.directory
        tenant = directory.tenant(vm)
        crowd = counter.peer is None or self._in_crowd(self._signature(vm, counter))
        peer = directory.peer(tenant, None if crowd else counter.peer)
        others = peer.name == OTHERS
        self.ledger.talked(
            Talked(
                vm=vm,
                peer=peer.name,
                protocol="any" if others else protocol_name(counter.protocol),
                port=0 if others else counter.port,
                hour=hour_of(at),
                tenant=tenant,
                external=peer.external,
                first_at=at,
                last_at=at,
                **counted(counts),
            )
        )

    # --- What was denied -------------------------------------------------------------------------

    def _denied_first(self, denied: Denied, size: int) -> None:
        """A packet that was denied and had no counter. Others that came with it may go up too, and
        go through the counter all the same."""
        now = time.time()
        if now - self._heard.get(denied, -DENIED_IDLE_S) >= DENIED_IDLE_S:
            self._heard[denied] = now
            self._refused(denied, 1, size, now)

    def _take_denials(self, datapath: str, read: Counted, now: float) -> None:
        before = self._denied.get(datapath)
        up_s = time.monotonic() - self._began
        for denied, (packets, octets, age_s) in read.denials.items():
            known = (before or {}).get(denied)
            if known is None:
                # What was counted before this process began may have been told by the last one.
                known = (packets, octets, age_s) if before is None and age_s > up_s else (0, 0, 0.0)
            more, bytes_ = packets - known[0], octets - known[1]
            if more < 0 or age_s < known[2]:
                more, bytes_ = packets, octets
            if more:
                self._refused(denied, more, bytes_, now)
        self._denied[datapath] = read.denials
        for denied, at in list(self._heard.items()):
            if now - at >= DENIED_IDLE_S:
                del self._heard[denied]

    def _refused(self, denied: Denied, packets: int, octets: int, at: float) -> None:
        directory = self.directory
        owner = self._vm(denied.mac)
        tenant = directory.tenant(owner or "")
        source = directory.vm(tenant, denied.source) or str(denied.source)
        peer = directory.peer(tenant, ip_network(denied.target))
        key = (peer.name, protocol_name(denied.protocol), denied.port)
        if self._too_many(source, key, hour_of(at)):
            key = (OTHERS, "any", 0)
        self.ledger.refused(
            Refused(
                vm=source,
                peer=key[0],
                protocol=key[1],
                port=key[2],
                hour=hour_of(at),
                tenant=tenant,
                external=peer.external,
                packets=packets,
                bytes=octets,
                first_at=at,
                last_at=at,
            )
        )

    def _too_many(self, source: str, key: tuple[str, str, int], hour: int) -> bool:
        """Whether more was denied to one source in an hour than is told apart."""
        if self._denied_hour[0] != hour:
            self._denied_hour = (hour, {})
        known = self._denied_hour[1].setdefault(source, set())
        if key in known:
            return False
        if len(known) >= self.settings.most_per_vm:
            return True
        known.add(key)
        return False

    # --- What is kept ----------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write what was counted, and how far the counters are, in one transaction: so each packet
        is counted once, whatever ends when."""
        rows = self.ledger.take()
        readings, gone = list(self._readings.values()), set(self._gone)
        if not (rows or readings or gone):
            return
        try:
            with self.southbound.store.transaction(durable=False) as tx:
                signatures.add(tx, rows)
                signatures.remember(tx, readings, gone)
        except StoreError:
            self.ledger.put_back(rows)
            raise
        for reading in readings:
            if self._readings.get((reading.datapath, reading.counter)) is reading:
                del self._readings[reading.datapath, reading.counter]
        self._gone -= gone

    def _tidy(self) -> None:
        hub.sleep(min(TIDY_S, self.settings.idle_s))
        view = self.southbound.view
        before = time.time() - self.settings.idle_s
        vms = [*view.observed.signatures.keys() | view.observed.crowded]
        for start in range(0, len(vms), TIDIED):
            some = vms[start : start + TIDIED]
            most = self.settings.most_per_vm
            used = self.tally.used
            self._changed(expire(view.observed, view.state, some, used, before, most))
            hub.sleep(0)
        self._forget()

    def _forget(self) -> None:
        now = time.time()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_S
            oldest = hour_of(now - self.settings.keep_days * 86_400)
            with self.southbound.store.transaction(durable=False) as tx:
                signatures.forget(tx, oldest)
