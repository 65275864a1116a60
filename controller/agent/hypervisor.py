"""What does libvirt say? A connection to it that comes back by itself.

The events of domains say that there is something to look at; what it is, is looked up. So a
libvirtd that was restarted has hidden nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from controller.agent.domains import Domain, arriving, basic, parse, raw, starting
from controller.agent.records import Machine, Raw, SourceAway

log = logging.getLogger(__name__)

#: Seconds between two questions whether libvirtd is there, and how many may go unanswered.
KEEPALIVE_S = 5
KEEPALIVES = 3
#: Milliseconds after which libvirt's loop looks whether it is to end.
_TURN_MS = 500


class Libvirt:
    """libvirt at `uri`; `changed` is called when there is something to look at, from a thread
    of its own. A domain's VM is found by `vm_of`, which is given its name, uuid and MACs."""

    name = "libvirt"

    def __init__(
        self,
        uri: str,
        vm_of: Callable[[str, str, Iterable[str]], str | None],
        changed: Callable[[], None],
    ) -> None:
        self._uri = uri
        self._vm_of = vm_of
        self._changed = changed
        self._api: Any = None
        self._connection: Any = None
        self._lock = threading.RLock()
        self._domains: dict[str, Domain] = {}
        #: Domains whose description may have changed since it was read.
        self._stale: set[str] = set()
        self._closed = threading.Event()

    def machines(self) -> tuple[Machine, ...]:
        """The VMs that are here. Raises SourceAway."""
        with self._lock, self._asked() as (api, connection):
            found, domains = [], {}
            stale, self._stale = self._stale, set()
            for uuid in stale:
                self._domains.pop(uuid, None)
            active = connection.listAllDomains(api.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            for handle in active:
                described = self._described(api, handle)
                if described is None:
                    continue
                domain, state, reason = described
                domains[domain.uuid] = domain
                vm = self._vm(domain)
                if vm is not None and not starting(state, reason):
                    found.append(domain.machine(vm, state, reason))
            self._domains = domains
            return tuple(found)

    def measure(self) -> dict[str, Raw]:
        """What each VM that runs here uses. Raises SourceAway."""
        with self._lock, self._asked() as (api, connection):
            wanted = (
                api.VIR_DOMAIN_STATS_STATE
                | api.VIR_DOMAIN_STATS_CPU_TOTAL
                | api.VIR_DOMAIN_STATS_BALLOON
                | api.VIR_DOMAIN_STATS_VCPU
                | api.VIR_DOMAIN_STATS_INTERFACE
                | api.VIR_DOMAIN_STATS_BLOCK
            )
            # Those that are busy with something else are left out, and hold nobody up.
            how = (
                api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
                | api.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            )
            found = {}
            for handle, stats in connection.getAllDomainStats(wanted, how):
                domain = self._domains.get(handle.UUIDString())
                vm = None if domain is None else self._vm(domain)
                if domain is None or vm is None or arriving(*_state(stats)):
                    continue
                told = stats if "cpu.time" in stats else _basic(api, handle, domain)
                if told is not None:
                    found[vm] = raw(told)
            return found

    def run(self, stopping: threading.Event) -> None:
        """Serve libvirt's events, which its connection needs all the time."""
        api = self._module()
        api.virEventAddTimeout(_TURN_MS, lambda _timer, _nothing: None, None)
        while not stopping.is_set():
            api.virEventRunDefaultImpl()
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # Helpers

    def _asked(self) -> _Asking:
        return _Asking(self)

    def _module(self) -> Any:
        """Libvirt's Python module, set up once. Raises SourceAway where it is not there."""
        if self._api is None:
            try:
                import libvirt as api
            except ImportError as error:
                raise SourceAway(
                    "libvirt",
                    f"its Python module is missing: {error}",
                    "Run `make setup` with Debian's python3-libvirt, or `pip install "
                    "pleach[libvirt]`; or set agent.libvirt to an empty text.",
                ) from None
            _set_up(api)
            self._api = api
        return self._api

    def _connected(self) -> tuple[Any, Any]:
        api = self._module()
        if self._closed.is_set():
            self._closed.clear()
            self.close()
        if self._connection is None:
            connection = api.openReadOnly(self._uri)
            try:
                self._follow(api, connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            log.info("connected to libvirt", extra={"uri": self._uri})
        return api, self._connection

    def _follow(self, api: Any, connection: Any) -> None:
        # Drivers within this process have no connection that could break.
        _where_supported(api, lambda: connection.setKeepAlive(KEEPALIVE_S, KEEPALIVES))
        _where_supported(api, lambda: connection.registerCloseCallback(self._lost, None))
        for event in (
            api.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            api.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            api.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            api.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
            api.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
        ):
            connection.domainEventRegisterAny(None, event, self._seen, None)

    def _seen(self, _connection: Any, handle: Any, *_more: object) -> None:
        self._stale.add(handle.UUIDString())
        self._changed()

    def _lost(self, _connection: Any, reason: int, _nothing: object) -> None:
        log.warning("libvirt is gone", extra={"uri": self._uri, "reason": reason})
        self._closed.set()
        self._changed()

    def _described(self, api: Any, handle: Any) -> tuple[Domain, int, int] | None:
        """A domain and its state; None where it has ended meanwhile."""
        try:
            state, reason = handle.state()
            known = self._domains.get(handle.UUIDString())
            return known or parse(handle.XMLDesc()), state, reason
        except api.libvirtError as error:
            if error.get_error_code() in (api.VIR_ERR_NO_DOMAIN, api.VIR_ERR_OPERATION_INVALID):
                return None
            raise

    def _vm(self, domain: Domain) -> str | None:
        return self._vm_of(domain.name, domain.uuid, [mac for _, mac in domain.nics])


class _Asking:
    """One question to libvirt: its errors become SourceAway, and the connection is made anew
    for the next where it is broken."""

    def __init__(self, source: Libvirt) -> None:
        self._source = source

    def __enter__(self) -> tuple[Any, Any]:
        source = self._source
        api = source._module()
        try:
            return source._connected()
        except api.libvirtError as error:
            raise self._away(error) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        source = self._source
        if error is None or not isinstance(error, source._api.libvirtError):
            return
        if source._connection is not None and not _alive(source._api, source._connection):
            source._closed.set()
        raise self._away(error) from error

    def _away(self, error: BaseException) -> SourceAway:
        return SourceAway(
            f"libvirt at {self._source._uri}",
            str(error),
            "See that libvirtd runs, that this user may use its read-only socket, and that "
            "agent.libvirt is right.",
        )


_SET_UP = threading.Lock()
_done: set[int] = set()


def _set_up(api: Any) -> None:
    """Once in a process: libvirt's own loop, and no words of it on stderr."""
    with _SET_UP:
        if id(api) not in _done:
            api.registerErrorHandler(lambda _context, _error: None, None)
            api.virEventRegisterDefaultImpl()
            _done.add(id(api))


def _where_supported(api: Any, call: Callable[[], object]) -> None:
    try:
        call()
    except api.libvirtError as error:
        if error.get_error_code() != api.VIR_ERR_NO_SUPPORT:
            raise


def _alive(api: Any, connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except api.libvirtError:
        return False


def _state(stats: dict[str, object]) -> tuple[int, int]:
    state, reason = stats.get("state.state", 0), stats.get("state.reason", 0)
    assert isinstance(state, int)
    assert isinstance(reason, int)
    return state, reason


def _basic(api: Any, handle: Any, domain: Domain) -> dict[str, object] | None:
    """Statistics of a driver that tells none in bulk; None where the domain has ended."""
    try:
        nics = {port: tuple(handle.interfaceStats(port)) for port, _ in domain.nics}
        return basic(tuple(handle.info()), nics)
    except api.libvirtError:
        return None
