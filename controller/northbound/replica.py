"""What is the state of record now, in memory? Kept up by the change feed.

All methods run in the event loop; the state is replaced or changed only between awaits, so
whoever reads it without awaiting sees one revision.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress

from controller.model.nouns import Port
from controller.model.state import Change, State
from controller.store import Bell, FeedCompacted, Progress, Store, StoreError

log = logging.getLogger(__name__)

#: Seconds between two looks at the store where no bell rings: a lost ring loses nothing.
SAFETY_POLL_S = 1.0
#: Seconds for which rings are gathered while nobody waits for what they tell of: to follow
#: every commit at once would take the processor from the commits.
GATHER_S = 0.05
_LIMIT = 5_000


class Replica:
    """The state of record and the switches' progress, following the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.state = State()
        self.progress: dict[str, Progress] = {}
        self._port_names: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._asked = 0
        self._done = 0
        self._lock = asyncio.Lock()
        self._poked = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiters = 0
        self._waited_for = asyncio.Event()
        self._bell: Bell | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read everything, and follow from there."""
        self._bell = self._store.bell("brain")
        asyncio.get_running_loop().add_reader(self._bell.fileno(), self._rang, self._bell)
        await self._reload()
        await self.refresh()
        self._task = asyncio.create_task(self._follow(), name="replica")

    async def stop(self) -> None:
        """Follow no more; whoever waits for a change is woken."""
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell.fileno())
            self._bell.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._notify()

    def poke(self) -> None:
        """Look at the store soon."""
        self._poked.set()

    def committed(self, changes: list[Change]) -> None:
        """This process has written `changes`, in one commit or in several: they are taken over
        as they are up to where something of others lies between, and the rest is read from the
        store soon."""
        for change in changes:
            if change.revision > self.state.revision + 1:
                self.poke()
                break
            if change.revision > self.state.revision:
                self._apply(change)
        if changes:
            self._notify()

    async def reach(self, revision: int) -> None:
        """Return once `state` holds `revision`, which is committed. Raises StoreError."""
        if self.state.revision < revision:
            await self.refresh()

    def port_number(self, datapath: str, name: str) -> int | None:
        """The number of the port with this name at this datapath."""
        return self._port_names[datapath].get(name) if datapath in self._port_names else None

    async def refresh(self) -> None:
        """Return once `state` holds all that was committed before the call, and `progress`
        what was reported. Raises StoreError."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._done >= mine:  # somebody else has looked since
                return
            seen = self._asked
            self._poked.clear()  # whatever was rung for until now is seen by this look
            await self._look()
            self._done = seen
        self._notify()

    async def changed(self, timeout_s: float) -> None:
        """Return at the next look at the store, or after `timeout_s` seconds."""
        event = self._changed
        self._waiters += 1
        self._waited_for.set()
        try:
            await _within(timeout_s, event)
        finally:
            self._waiters -= 1

    async def _look(self) -> None:
        more = True
        while more:
            try:
                changes, self.progress = await asyncio.to_thread(self._read, self.state.revision)
            except FeedCompacted:
                await self._reload()
                continue
            for change in changes:
                if change.revision > self.state.revision:  # not taken over meanwhile
                    self._apply(change)
            more = len(changes) >= _LIMIT

    def _read(self, after: int) -> tuple[list[Change], dict[str, Progress]]:
        return self._store.news(after, _LIMIT)

    async def _reload(self) -> None:
        self.state = await asyncio.to_thread(self._store.snapshot)
        self._port_names.clear()
        for port in self.state.ports.values():
            self._port_names[port.datapath][port.name] = port.number

    def _apply(self, change: Change) -> None:
        before = self.state.apply(change)
        if isinstance(before, Port):
            self._port_names[before.datapath].pop(before.name, None)
        if isinstance(change.record, Port):
            self._port_names[change.record.datapath][change.record.name] = change.record.number

    def _rang(self, bell: Bell) -> None:
        bell.drain()
        self._poked.set()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _follow(self) -> None:
        while True:
            # Where no ring comes, look all the same.
            await _within(SAFETY_POLL_S, self._poked)
            if not self._waiters:
                self._waited_for.clear()
                await _within(GATHER_S, self._waited_for)
            try:
                await self.refresh()
            except StoreError as error:
                log.error("the store cannot be read", extra={"cause": str(error)})
                await asyncio.sleep(SAFETY_POLL_S)


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for `event`, at most for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
