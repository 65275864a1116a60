"""Making the queues of ports what a plan says: HTB and u32 filters by netlink, in the namespace of
this process, as root.

What is there is read first, and only what differs is changed: a rate in place, which loses
nothing. Another's queues are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from controller.act.queues.plan import ROOT, Filter, Plan, Queue, filter_of

#: Handle of our HTB, by which it is known; "PL".
MAJOR = 0x504C
_HANDLE = MAJOR << 16
_ROOT_PARENT = 0xFFFF_FFFF
#: What the kernel puts there by itself.
_OWN_OF_KERNEL = frozenset({"noqueue", "pfifo_fast", "fq_codel", "mq", "noop", "pfifo"})


class QueueError(Exception):
    """Queues that cannot be made or read; `mend` says what helps."""

    def __init__(self, port: str, cause: str, mend: str) -> None:
        super().__init__(f"port {port}: {cause}")
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Counted:
    """What one queue of a port has done since it was made."""

    minor: int
    rate: int
    ceil: int
    bytes: int
    packets: int
    dropped: int
    waiting: int


def apply(port: str, wanted: Plan) -> bool:
    """Make the queues of a port those of `wanted`; whether anything was changed. Raises
    QueueError."""
    with _port(port) as (route, index):
        kind, handle, default = _root(route, index)
        if kind == "htb" and handle == _HANDLE:
            if default != wanted.default:
                route.tc("del", "htb", index, handle=_HANDLE)
                return _make(route, index, wanted)
            return _repair(route, index, wanted)
        if kind not in _OWN_OF_KERNEL:
            raise QueueError(
                port,
                f"it has a {kind} that is not ours",
                f"Remove it (tc qdisc del dev {port} root), or leave the port out.",
            )
        return _make(route, index, wanted)


def clear(port: str) -> bool:
    """Take our queues off a port; False where it has none. Raises QueueError."""
    with _port(port) as (route, index):
        kind, handle, _ = _root(route, index)
        if kind != "htb" or handle != _HANDLE:
            return False
        route.tc("del", "htb", index, handle=_HANDLE)
        return True


def show(port: str) -> list[Counted]:
    """Our queues on a port, by number; none where it has none. Raises QueueError."""
    with _port(port) as (route, index):
        if _root(route, index)[:2] != ("htb", _HANDLE):
            return []
        found = []
        for message in route.get_classes(index):
            made = _queue_of(message)
            number = message["handle"] & 0xFFFF
            if made is None or number == ROOT:
                continue
            stats = _stats(message)
            found.append(
                Counted(
                    number, made.rate, made.ceil, stats["bytes"], stats["packets"],
                    stats["drop"], stats["qlen"],
                )
            )  # fmt: skip
        return sorted(found, key=lambda counted: counted.minor)


@contextmanager
def _port(port: str) -> Iterator[tuple[Any, int]]:
    """A way to the kernel, and the number of an interface."""
    with IPRoute() as route:
        found = route.link_lookup(ifname=port)
        if not found:
            raise QueueError(
                port, "there is no such interface here", "Name a port of this machine's switch."
            )
        try:
            yield route, found[0]
        except NetlinkError as error:
            mend = "Run this as root." if error.code == 1 else "See the kernel's log (dmesg)."
            raise QueueError(port, f"the kernel refuses: {error.args[-1]}", mend) from error


def _root(route: Any, index: int) -> tuple[str, int, int]:
    """Kind, handle and default class of the root queue."""
    for message in route.get_qdiscs(index):
        if message["parent"] == _ROOT_PARENT:
            options = message.get_attr("TCA_OPTIONS")
            init = options.get_attr("TCA_HTB_INIT") if hasattr(options, "get_attr") else None
            return (
                message.get_attr("TCA_KIND"),
                message["handle"],
                init["defcls"] if init else 0,
            )
    return "noqueue", 0, 0


def _make(route: Any, index: int, wanted: Plan) -> bool:
    route.tc("add", "htb", index, handle=_HANDLE, default=wanted.default)
    whole = _whole(wanted)
    _class(route, "add-class", index, whole, _HANDLE)
    for queue in wanted.queues:
        _class(route, "add-class", index, queue, _HANDLE | ROOT)
        _leaf(route, index, queue)
    for made in wanted.filters:
        _filter(route, index, made)
    return True


def _repair(route: Any, index: int, wanted: Plan) -> bool:
    present = {
        message["handle"] & 0xFFFF: _queue_of(message) for message in route.get_classes(index)
    }
    leaves = {
        message["parent"] & 0xFFFF: message.get_attr("TCA_OPTIONS")
        for message in route.get_qdiscs(index)
        if message["parent"] >> 16 == MAJOR
    }
    changed = False
    numbers = {queue.minor for queue in wanted.queues}
    for queue in (_whole(wanted), *wanted.queues):
        parent = _HANDLE if queue.minor == ROOT else _HANDLE | ROOT
        found = present.get(queue.minor)
        if found is None:
            _class(route, "add-class", index, queue, parent)
            changed = True
        elif (found.rate, found.ceil, found.priority) != (queue.rate, queue.ceil, queue.priority):
            _class(route, "change-class", index, queue, parent)
            changed = True
        leaf = leaves.get(queue.minor)
        if queue.minor != ROOT and _depth(leaf) != queue.depth:
            if leaf is not None:
                route.tc("del", "pfifo", index, parent=_HANDLE | queue.minor)
            _leaf(route, index, queue)
            changed = True
    changed |= _sort(route, index, wanted.filters)
    for number in present.keys() - numbers - {ROOT}:
        route.tc("del-class", None, index, handle=_HANDLE | number)
        changed = True
    return changed


def _sort(route: Any, index: int, wanted: tuple[Filter, ...]) -> bool:
    """Make the filters those that are wanted, one by one; whether any was not."""
    found = _filters(route, index)
    stale = found.keys() - set(wanted)
    for made in sorted(stale):
        route.tc("del-filter", None, index, parent=_HANDLE, info=found[made])
    missing = [made for made in wanted if made not in found]
    for made in missing:
        _filter(route, index, made)
    return bool(stale or missing)


def _whole(wanted: Plan) -> Queue:
    burst = max(queue.burst for queue in wanted.queues)
    return Queue(ROOT, wanted.rate, wanted.rate, 0, 0, burst)


def _class(route: Any, command: str, index: int, queue: Queue, parent: int) -> None:
    route.tc(
        command, "htb", index, parent=parent, handle=_HANDLE | queue.minor, rate=queue.rate,
        ceil=queue.ceil, prio=queue.priority, burst=queue.burst, cburst=queue.burst,
        # Bytes that a class sends at its turn among those that borrow: two frames.
        quantum=3_052,
    )  # fmt: skip


def _leaf(route: Any, index: int, queue: Queue) -> None:
    route.tc("add", "pfifo", index, parent=_HANDLE | queue.minor, limit=queue.depth)


def _filter(route: Any, index: int, made: Filter) -> None:
    # A mask of eight digits is what pyroute2 places right, and one of nothing is written so.
    value, mask = made.bits
    key = f"{value:#010x}/{mask:#010x}+0" if mask else "0x0/0x0+0"
    route.tc(
        "add-filter", "u32", index, parent=_HANDLE, prio=made.priority, protocol=made.protocol,
        target=_HANDLE | made.minor, keys=[key],
    )  # fmt: skip


def _queue_of(message: Any) -> Queue | None:
    options = message.get_attr("TCA_OPTIONS")
    parms = options.get_attr("TCA_HTB_PARMS") if hasattr(options, "get_attr") else None
    if parms is None:
        return None
    rate = options.get_attr("TCA_HTB_RATE64") or parms["rate"]
    ceil = options.get_attr("TCA_HTB_CEIL64") or parms["ceil"]
    return Queue(message["handle"] & 0xFFFF, rate, ceil, parms["prio"], 0, 0)


def _filters(route: Any, index: int) -> dict[Filter, int]:
    """Our filters as they are, and what the kernel calls each."""
    found = {}
    for message in route.get_filters(index, parent=_HANDLE):
        options = message.get_attr("TCA_OPTIONS")
        target = options.get_attr("TCA_U32_CLASSID") if hasattr(options, "get_attr") else None
        made = filter_of(message["info"] >> 16, target & 0xFFFF) if target else None
        if made is not None:
            found[made] = message["info"]
    return found


def _depth(options: Any) -> int | None:
    return None if options is None else options.get("limit") if hasattr(options, "get") else None


def _stats(message: Any) -> dict[str, int]:
    told = message.get_attr("TCA_STATS2")
    basic = told.get_attr("TCA_STATS_BASIC") if told else None
    queue = told.get_attr("TCA_STATS_QUEUE") if told else None
    return {
        "bytes": basic["bytes"] if basic else 0,
        "packets": basic["packets"] if basic else 0,
        "drop": queue["drops"] if queue else 0,
        "qlen": queue["qlen"] if queue else 0,
    }
