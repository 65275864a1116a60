"""How are the two processes kept running? Started, restarted when one dies, and ended together.

A process that dies is started again after a pause that doubles up to 30 s and is short again
once it has run for a minute. One that says at its very first start that settings or store
cannot be used (exit code 2) ends the whole, because trying again would not help.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.commands.common import Exit
from controller.process import die_with_parent

log = logging.getLogger("controller.supervise")

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
#: Seconds of running after which a process counts as sound.
SOUND_S = 60.0
#: Seconds that a process has to end by itself after SIGTERM.
GRACE_S = 10.0


@dataclass(slots=True)
class _Child:
    name: str
    command: Sequence[str]
    pause_s: float = FIRST_PAUSE_S
    starts: int = 0
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[int] | None = field(default=None)


def supervise(commands: Mapping[str, Sequence[str]]) -> int:
    """Run `commands` by their names until SIGTERM or SIGINT; returns the exit code."""
    return asyncio.run(_Supervisor(commands).run())


class _Supervisor:
    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._children = [_Child(name, command) for name, command in commands.items()]
        self._stopping = asyncio.Event()
        self._code = int(Exit.DONE)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        tasks = [asyncio.create_task(self._keep(child)) for child in self._children]
        await self._stopping.wait()
        await asyncio.gather(*(self._end(child) for child in self._children))
        await asyncio.gather(*tasks)
        return self._code

    async def _keep(self, child: _Child) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._once(child)
            if self._stopping.is_set():
                return
            ran_s = time.monotonic() - began
            fields = {"program": child.name, "code": code, "ran_s": round(ran_s, 1)}
            if code == Exit.WRONG and child.starts == 1:
                log.error("process cannot start", extra=fields)
                self._code = int(Exit.WRONG)
                self._stopping.set()
                return
            if ran_s >= SOUND_S:
                child.pause_s = FIRST_PAUSE_S
            log.error("process died", extra={**fields, "again_in_s": child.pause_s})
            await self._pause(child.pause_s)
            child.pause_s = min(child.pause_s * 2, LONGEST_PAUSE_S)

    async def _once(self, child: _Child) -> int:
        child.process = await asyncio.create_subprocess_exec(
            *child.command,
            # Of its own, so that a Ctrl-C at the terminal reaches the children by us alone.
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
        child.starts += 1
        log.info("process started", extra={"program": child.name, "pid": child.process.pid})
        if self._stopping.is_set():
            await self._end(child)
        return await child.process.wait()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _end(self, child: _Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(GRACE_S):
                await process.wait()
        except TimeoutError:
            log.error("process does not end and is killed", extra={"program": child.name})
            process.kill()
            await process.wait()
        log.info("process ended", extra={"program": child.name, "code": process.returncode})
