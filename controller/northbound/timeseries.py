"""Where do the routes find the history? Opened beside the server, so that neither waits.

Events go on where the history cannot be used; requests that need it are told why, and it is
tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from importlib import import_module

from controller.history.errors import HistoryError, HistoryUnavailable
from controller.history.history import History
from controller.settings import Settings, SettingsError

log = logging.getLogger(__name__)

#: Seconds between two attempts to open it.
AGAIN_S = 10.0
#: Seconds that a request waits while it is being opened.
PATIENCE_S = 5.0


class Timeseries:
    """The history of `settings`, once it is open. Used in the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._history: History | None = None
        self._trouble: Exception | None = None
        self._told = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to open it."""
        self._task = asyncio.create_task(self._run(), name="timeseries")

    async def stop(self) -> None:
        """Close it, after what was taken is handed on."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def history(self) -> History:
        """The history. Raises HistoryError where it cannot be used."""
        if self._history is None and self._trouble is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._told.wait()
        if self._history is not None:
            return self._history
        if isinstance(self._trouble, HistoryError):
            raise self._trouble
        cause = str(self._trouble) if self._trouble else "it is being opened"
        raise HistoryUnavailable(cause, "see the log of the brain, and try again")

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                # Here, because the engines are slow to import, and events need nothing of them.
                opening = await asyncio.to_thread(import_module, "controller.history.opening")
                with contextlib.ExitStack() as stack:
                    context = opening.opened(self._settings)
                    self._history = await asyncio.to_thread(stack.enter_context, context)
                    log.info("history is open", extra={"url": self._settings.history.url})
                    self._trouble = None
                    self._told.set()
                    await self._stopping.wait()
                    self._history = None
                    await asyncio.to_thread(stack.close)
            except Exception as error:  # whatever it is: events go on
                if str(error) != str(self._trouble):
                    foreseen = isinstance(error, HistoryError | SettingsError)
                    log.error(
                        "history cannot be used",
                        extra={"cause": str(error)},
                        exc_info=None if foreseen else error,
                    )
                self._trouble = error
                self._told.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S):
                        await self._stopping.wait()
