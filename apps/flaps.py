"""Links that fail again and again are damped: not used until they have been quiet for a while."""

from __future__ import annotations

import logging
import time

from apps.context import Southbound
from apps.framework import hub, spawn
from controller.model.nouns import Link, Port, Record
from controller.observe.flapping import Damping, Flapping
from controller.store.transaction import Transaction

log = logging.getLogger(__name__)


class Flaps:
    """Counts failures; a link's two directions fail and are damped together."""

    def __init__(self, southbound: Southbound) -> None:
        self.southbound = southbound
        settings = southbound.settings.southbound.damping
        self._rule = Damping(settings.cutoff, settings.reuse, settings.half_life_s, settings.max_s)
        self._flapping: dict[frozenset[str], Flapping] = {}
        #: Links that have failed and not recovered: what else is told of them is the same failure.
        self._failed: set[frozenset[str]] = set()
        self._due = hub.Event()
        now = time.monotonic()
        for link in southbound.view.state.links.values():
            if link.damped:  # since before this process: as if it had only just been
                self._flapping[_ends(link)] = Flapping(self._rule.cutoff, now, damped=True)
        southbound.watchers.append(self._changed)
        spawn(southbound.forever, self._keep)

    def recovered(self, link: Link) -> None:
        """Frames come over `link`, and its ports live."""
        self._failed.discard(_ends(link))

    def _changed(self, before: Record | None, after: Record | None) -> None:
        links = self.southbound.view.state.links
        if isinstance(before, Link) and before.up and not (isinstance(after, Link) and after.up):
            self._fail(before)
        elif isinstance(before, Port) and before.live:
            link = links.get(before.key)
            if link is not None and not (isinstance(after, Port) and after.live):
                self._fail(link)

    def _fail(self, link: Link) -> None:
        ends = _ends(link)
        if ends in self._failed:
            return
        self._failed.add(ends)
        known = self._flapping.get(ends, Flapping())
        self._flapping[ends] = known.failed(time.monotonic(), self._rule)
        if self._flapping[ends].damped != known.damped:
            log.warning(
                "a link is damped: it fails too often",
                extra={"link": link.key, "penalty": round(self._flapping[ends].penalty, 2)},
            )
            self._due.set()

    def _keep(self) -> None:
        """Put on record which links are damped, and let go of those that were quiet."""
        self._due.wait(1.0)
        self._due.clear()
        now = time.monotonic()
        for ends, known in list(self._flapping.items()):
            aged = known.now(now, self._rule)
            if known.damped and not aged.damped:
                log.info("a link is not damped any more", extra={"link": min(ends)})
            self._flapping[ends] = aged
            if aged.penalty < self._rule.reuse / 2 and not aged.damped:
                del self._flapping[ends]
        damped = {key for ends, f in self._flapping.items() if f.damped for key in ends}
        differ = {
            link.key
            for link in self.southbound.view.state.links.values()
            if link.damped != (link.key in damped)
        }
        if differ:
            self.southbound.write(lambda tx: _put(tx, differ, damped))


def _ends(link: Link) -> frozenset[str]:
    return frozenset((link.key, f"{link.to_datapath}:{link.to_port}"))


def _put(tx: Transaction, keys: set[str], damped: set[str]) -> None:
    for key in keys:
        link = tx.get(Link, key)
        if link is not None:
            kept = key in damped
            tx.put(link.model_copy(update={"damped": kept, "up": link.up and not kept}))
