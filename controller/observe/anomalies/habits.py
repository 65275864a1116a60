"""Which sources do what they never did? Their habits, kept over restarts.

Habits move on by whole hours. What has been of the present hour is judged too, as if the hour
were over, and learned only once it is. A file holds the habits as of the last hour.

The functions below are called by name in a process that computes, which keeps what it opened.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from controller.observe.anomalies.detector import StaleError
from controller.observe.anomalies.signatures import Deviation, Habit, Talk, judge

log = logging.getLogger(__name__)

HOUR_S = 3_600.0


@dataclass(frozen=True, slots=True)
class Learned:
    """Up to which hour (of those since 1970-01-01) habits are known, None for not at all."""

    hour: int | None
    token: int


@dataclass(slots=True)
class _Opened:
    habits: Mapping[str, Habit]
    hour: int | None
    token: int


#: What this process has opened, by file.
_OPENED: dict[Path, _Opened] = {}


def learned(file: Path) -> Learned:
    """Where the habits of `file` stand."""
    held = _OPENED.get(file)
    if held is None:
        habits, hour = _read(file)
        held = _OPENED[file] = _Opened(habits, hour, time.monotonic_ns())
    return Learned(held.hour, held.token)


def look(file: Path, token: int, talks: Sequence[Talk]) -> tuple[Deviation, ...]:
    """What is out of the ordinary in an hour that is not over. Raises StaleError."""
    return judge(_opened(file, token).habits, talks)[1]


def learn(
    file: Path, token: int, hour: int, talks: Sequence[Talk], vms: Sequence[str]
) -> tuple[Deviation, ...]:
    """What was out of the ordinary in an hour, which is a habit from now on; of VMs that are not
    among `vms` all is forgotten. Raises StaleError."""
    held = _opened(file, token)
    after, found = judge(held.habits, talks)
    there = frozenset(vms)
    held.habits = {vm: habit for vm, habit in after.items() if vm in there}
    held.hour = hour
    return found


def save(file: Path, token: int) -> None:
    """Write the habits as they are now. Raises StaleError and OSError."""
    held = _opened(file, token)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rows = [
        (vm, habit.since, sorted(habit.peers), _packed(habit.tried), _packed(habit.sent))
        for vm, habit in held.habits.items()
    ]
    beside = file.with_suffix(".new")
    with beside.open("wb") as out:
        out.write(msgpack.packb({"hour": held.hour, "habits": rows}))
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def _opened(file: Path, token: int) -> _Opened:
    held = _OPENED.get(file)
    if held is None or held.token != token:
        raise StaleError(f"{file} was opened anew")
    return held


def _read(file: Path) -> tuple[dict[str, Habit], int | None]:
    try:
        data = msgpack.unpackb(file.read_bytes())
        habits = {
            vm: Habit(
                float(since),
                frozenset((peer, protocol, port) for peer, protocol, port in peers),
                _unpacked(tried),
                _unpacked(sent),
            )
            for vm, since, peers, tried, sent in data["habits"]
        }
        return habits, int(data["hour"])
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        log.error("a checkpoint cannot be used", extra={"file": str(file), "cause": str(error)})
        return {}, None


def _packed(values: Sequence[float]) -> bytes:
    return np.asarray(values, "<f8").tobytes()


def _unpacked(packed: bytes) -> tuple[float, ...]:
    return tuple(np.frombuffer(packed, "<f8").tolist())
