"""What waits together is done together: one transaction, one flush."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def groups(jobs: queue.SimpleQueue[T | None], most: int) -> Iterator[list[T]]:
    """What waits in `jobs`, in its order and up to `most` at once, as soon as anything does.
    None in it is the end, which comes after all that was put before it."""
    job = jobs.get()
    while job is not None:
        group = [job]
        last = False
        while len(group) < most:
            try:
                another = jobs.get_nowait()
            except queue.Empty:
                break
            if another is None:
                last = True
                break
            group.append(another)
        yield group
        job = None if last else jobs.get()
