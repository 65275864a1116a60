"""Waiting for jobs, of which those that wait together are done together: one transaction, one
flush; and waiting for descriptors."""

from __future__ import annotations

import queue
import select
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


def readable(descriptors: list[int], timeout: float | None) -> list[int]:
    """Those of `descriptors` that can be read, after at most `timeout` seconds (None: for ever).
    Other greenthreads go on meanwhile."""
    # eventlet replaces `select` and takes `poll` away; where there is `poll`, it is used
    # because `select` fails with descriptors past 1023.
    if not hasattr(select, "poll"):
        return select.select(descriptors, [], [], timeout)[0]
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [found for found, _ in poll.poll(None if timeout is None else timeout * 1000)]
