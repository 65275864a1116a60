"""Loops take turns, tell what is wrong with them, and compute in a process of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from typing import Literal, cast

import pytest

from controller.loops import Ground, Loops, Pool
from controller.settings import LogSettings
from controller.store import StoreUnavailable


class Counting:
    """Fails in its first turn, and says when it has had three."""

    def __init__(self, name: str) -> None:
        self.name, self.every_s = name, 0.01
        self.turns = 0
        self.had_three = asyncio.Event()

    async def turn(self, ground: Ground) -> None:
        self.turns += 1
        if self.turns == 1:
            raise ValueError("nothing to see yet")
        if self.turns == 3:
            self.had_three.set()


class Stranded:
    """Its store is away."""

    name, every_s = "stranded", 3_600.0

    async def turn(self, ground: Ground) -> None:
        raise StoreUnavailable("the store", "nobody answers", "see that the server runs")


class Endless:
    name, every_s = "endless", 1.0

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def turn(self, ground: Ground) -> None:
        self.begun.set()
        await asyncio.Event().wait()


class Standing:
    """What a loop stands on here: the pools alone."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.slow = Pool()


def ground() -> Ground:
    return cast("Ground", Standing())


def test_a_store_that_is_away_is_told_in_a_line_and_a_fault_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        faulty = Counting("faulty")
        faulty.every_s = 3_600
        loops = Loops([Stranded(), faulty], ground())
        loops.start()
        while not all(found.turns for found in loops.status()):
            await asyncio.sleep(0.01)
        await loops.stop()

    asyncio.run(run())
    told = {record.__dict__["loop"]: record for record in caplog.records}
    assert told["stranded"].exc_info is None
    assert "nobody answers" in told["stranded"].__dict__["cause"]
    assert told["faulty"].exc_info is not None


def test_a_turn_that_fails_ends_nobody() -> None:
    async def run() -> None:
        first, second, endless = Counting("first"), Counting("second"), Endless()
        loops = Loops([first, second, endless], ground())
        loops.start()
        for event in (first.had_three, second.had_three, endless.begun):
            await asyncio.wait_for(event.wait(), 30)
        await loops.stop()
        status = {found.name: found for found in loops.status()}
        assert status["first"].turns >= 2
        assert status["first"].failures == 1
        assert status["first"].trouble == ""
        assert status["endless"].turns == 0

    asyncio.run(run())


def test_the_trouble_of_the_last_turn_is_told() -> None:
    async def run() -> None:
        once = Counting("once")
        once.every_s = 3_600
        loops = Loops([once], ground())
        loops.start()
        while not loops.status()[0].turns:
            await asyncio.sleep(0)
        await loops.stop()
        assert loops.status()[0].trouble == "ValueError: nothing to see yet"

    asyncio.run(run())


def test_two_loops_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Loops([Endless(), Endless()], ground())


def test_the_pool_computes_elsewhere_and_passes_errors_on() -> None:
    async def run() -> None:
        pool = Pool()
        try:
            assert await pool.run(os.getpid) != os.getpid()
            with pytest.raises(ZeroDivisionError):
                await pool.run(divmod, 1, 0)
        finally:
            pool.stop()

    asyncio.run(run())


def _tell() -> None:
    logging.getLogger("computing").info("no new model is taken", extra={"family": "cpu"})
    logging.getLogger("computing").debug("this is not asked for")


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_the_pool_logs_has_the_form_of_the_logs(
    form: Literal["json", "text"], capfd: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        pool = Pool(LogSettings(format=form))
        try:
            await pool.run(_tell)
        finally:
            pool.stop()

    asyncio.run(run())
    (line,) = capfd.readouterr().err.splitlines()
    if form == "json":
        told = json.loads(line)
        assert (told["level"], told["event"]) == ("info", "no new model is taken")
        assert told["family"] == "cpu"
        assert told["time"]
    else:
        assert line.endswith("no new model is taken family=cpu")


def test_a_pool_that_dies_is_made_again() -> None:
    async def run() -> None:
        pool = Pool()
        try:
            first = await pool.run(os.getpid)
            os.kill(first, signal.SIGKILL)
            assert await pool.run(os.getpid) != first
            with pytest.raises(BrokenProcessPool):
                await pool.run(os._exit, 1)
            assert await pool.run(abs, -1) == 1
        finally:
            pool.stop()

    asyncio.run(run())


def die_in_the_middle_of_a_result() -> None:
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    # The length of a message, and nothing after it.
    os.write(frame.f_locals["result_queue"]._writer.fileno(), (1_000).to_bytes(4, "big"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_in_the_middle_of_a_result_is_noticed() -> None:
    async def run() -> None:
        pool = Pool()
        try:
            with pytest.raises(BrokenProcessPool):
                await asyncio.wait_for(pool.run(die_in_the_middle_of_a_result), 60)
            assert await pool.run(abs, -1) == 1
        finally:
            pool.stop()

    asyncio.run(run())


def test_a_pool_that_was_stopped_begins_nothing() -> None:
    async def run() -> None:
        pool = Pool()
        pool.stop()
        with pytest.raises(BrokenProcessPool, match="stopped"):
            await pool.run(abs, -1)

    asyncio.run(run())


def test_what_is_computed_ends_with_the_pool() -> None:
    async def run() -> None:
        pool = Pool()
        worker = await pool.run(os.getpid)
        endless = asyncio.ensure_future(pool.run(signal.pause))
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.stop)
        with pytest.raises((BrokenProcessPool, asyncio.CancelledError)):
            await endless
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        pool.stop()

    asyncio.run(run())


STOPPED_IN_THE_MIDDLE = """
import asyncio, time
from controller.loops.base import Pool

async def main():
    pool = Pool()
    busy = [asyncio.ensure_future(pool.run(time.sleep, 600))]
    # More than fits into a pipe waits behind it.
    busy += [asyncio.ensure_future(pool.run(len, bytes(1_000_000))) for _ in range(3)]
    while not (pool._executor and pool._executor._processes):
        await asyncio.sleep(0.01)
    await asyncio.to_thread(pool.stop)
    await asyncio.gather(*busy, return_exceptions=True)

asyncio.run(main())
print("ended")
"""


def test_a_process_ends_whose_pool_was_stopped_with_work_on_its_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_THE_MIDDLE], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr
