"""Which links are watched by BFD? Those between two ports whose databases can be reached.

A session that begins takes its port out of service until both ends have answered, a second or
so. So a link that is new is not used before, and links that are in use are taken one at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from apps.context import Southbound
from apps.framework import hub, spawn
from apps.ovsdb import Interface, Ovsdb, Place
from controller.model.nouns import Link, Watch
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)

#: Seconds for which both ends may take to find each other. A link over which LLDP passes, but
#: not BFD, is watched by LLDP.
PATIENCE_S = 10.0
#: Seconds after which a session that has come up watches at its full rate: both ends begin with
#: a packet a second, and agree on more by an exchange of such packets (RFC 5880, 6.8.3).
SETTLE_S = 2.5


class Bfd:
    """Sets sessions up and takes them down."""

    def __init__(self, southbound: Southbound) -> None:
        self.southbound = southbound
        self._look = hub.Event()
        settings = southbound.settings.southbound
        self._interval = settings.bfd_ms
        self._servers = {r: Ovsdb(r, self._look.set) for r in settings.ovsdb_remotes}
        #: When the session of each link was asked for, and links that go without one.
        self._asked: dict[str, float] = {}
        self._without: set[str] = set()
        #: Since when the session of each link is up.
        self._up: dict[str, float] = {}
        if self._servers:
            southbound.watchers.append(lambda before, after: self._look.set())
            spawn(southbound.forever, self._keep)

    def awaited(self, link: Link) -> bool:
        """Whether a link is about to be watched, but is not yet."""
        ends = self._ends(link)
        if ends is None:
            return _cable(link) not in self._without and self._told_soon(link)
        since = self._up.get(_cable(link))
        up = all(end.enabled and end.up for end in ends)
        return not up or since is None or time.monotonic() - since < SETTLE_S

    def _told_soon(self, link: Link) -> bool:
        """Whether the databases know both switches, and so will tell of their new ports."""
        known = {datapath for s in self._servers.values() for datapath, _ in s.interfaces}
        return {link.datapath, link.to_datapath} <= known

    def _ends(self, link: Link) -> tuple[Interface, Interface] | None:
        """Both ends in the databases; None where BFD cannot watch the link."""
        if _cable(link) in self._without:
            return None
        one = self._at((link.datapath, link.port))
        other = self._at((link.to_datapath, link.to_port))
        return None if one is None or other is None else (one, other)

    def _at(self, place: Place) -> Interface | None:
        return next(
            (s.interfaces[place] for s in self._servers.values() if place in s.interfaces), None
        )

    def _keep(self) -> None:
        self._look.wait(1.0)
        self._look.clear()
        now = time.monotonic()
        links = {_cable(link): link for link in self._cables()}
        for cable, link in links.items():
            self._follow(cable, link, now)
        for known in (self._asked, self._up):
            for gone in known.keys() - links.keys():
                del known[gone]
        self._clear(links)
        self._tell(links)

    def _cables(self) -> Iterator[Link]:
        """One direction of every link that is known in both, and that no VM is plugged into."""
        view = self.southbound.view
        for link in list(view.state.links.values()):
            back = view.state.links.get(f"{link.to_datapath}:{link.to_port}")
            ends = {(link.datapath, link.port), (link.to_datapath, link.to_port)}
            if (
                back is not None
                and f"{back.to_datapath}:{back.to_port}" == link.key
                and link.key < back.key
                and ends.isdisjoint(view.plugged)
            ):
                yield link

    def _follow(self, cable: str, link: Link, now: float) -> None:
        """Bring the session of one link forward."""
        ends = self._ends(link)
        if ends is None or all(end.enabled and end.up for end in ends):
            self._asked.pop(cable, None)
            self._up.setdefault(cable, now)
            return
        self._up.pop(cable, None)
        asked = self._asked.get(cable)
        late = asked is not None and now - asked > PATIENCE_S
        if all(end.enabled for end in ends):
            if late:  # and not one that did begin, and failed since
                log.warning(
                    "a link carries no BFD, and is watched by LLDP", extra={"link": link.key}
                )
                self._without.add(cable)
                self._set(ends, None)
            return
        if late or (asked is None and not (link.up and self._asked)):
            self._asked[cable] = now
            self._set(ends, self._interval)

    def _set(self, ends: tuple[Interface, Interface], interval: int | None) -> None:
        for end in ends:
            self._servers[end.remote].watch({end.name: interval})

    def _clear(self, links: dict[str, Link]) -> None:
        """End sessions of ours on ports that are ends of no link any more."""
        ends = {
            end
            for link in links.values()
            for end in ((link.datapath, link.port), (link.to_datapath, link.to_port))
        }
        for server in self._servers.values():
            stale = {i.name: None for p, i in server.interfaces.items() if i.ours and p not in ends}
            if stale:
                server.watch(stale)

    def _tell(self, links: dict[str, Link]) -> None:
        """Put on record how each link is watched, where that is known."""
        wanted: dict[str, Watch] = {}
        for cable, link in links.items():
            ends = self._ends(link)
            if ends is None and cable not in self._without:
                continue
            watched = ends is not None and all(end.enabled for end in ends)
            for key in (link.key, f"{link.to_datapath}:{link.to_port}"):
                wanted[key] = Watch.BFD if watched else Watch.PORT
        known = self.southbound.view.state.links
        news = {k: w for k, w in wanted.items() if k in known and known[k].watch is not w}
        if news:
            self.southbound.write(lambda tx: _put(tx, news))


def _cable(link: Link) -> str:
    """A name that both directions share."""
    return min(link.key, f"{link.to_datapath}:{link.to_port}")


def _put(tx: Transaction, watches: dict[str, Watch]) -> None:
    for key, watch in watches.items():
        link = tx.get(Link, key)
        if link is not None:
            tx.put(link.model_copy(update={"watch": watch}))
