"""What waits together is done together."""

from __future__ import annotations

import fcntl
import os
import queue
import resource

from hypothesis import given
from hypothesis import strategies as st

from controller.waiting import groups, readable


@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_all_come_in_their_order_up_to_the_end(put: list[int], most: int) -> None:
    jobs: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for job in [*put, None, 7]:
        jobs.put(job)
    found = list(groups(jobs, most))
    assert [job for group in found for job in group] == put
    assert [len(group) for group in found[:-1]] == [most] * (len(found) - 1)
    assert jobs.get_nowait() == 7


def test_what_comes_meanwhile_is_the_next_group() -> None:
    jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    jobs.put("a")
    found = groups(jobs, 8)
    assert next(found) == ["a"]
    for job in ("b", "c", None):
        jobs.put(job)
    assert list(found) == [["b", "c"]]


def test_descriptors_past_what_select_knows_are_waited_for() -> None:
    """A process with a thousand connections waits as any other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD, 2000)
    try:
        assert high >= 2000
        assert readable([high], 0) == []
        os.write(writing, b"!")
        assert readable([high], None) == [high]
    finally:
        for descriptor in (reading, writing, high):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
