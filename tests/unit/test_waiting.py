"""What waits together is done together."""

from __future__ import annotations

import queue

from hypothesis import given
from hypothesis import strategies as st

from controller.waiting import groups


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
