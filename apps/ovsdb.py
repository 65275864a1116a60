"""The databases of Open vSwitch that we may reach: which interface is which port of which
datapath, and how BFD does on it (ovs-vswitchd.conf.db(5), RFC 7047)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ovs import poller
from ovs.db import idl

from apps.framework import hub, spawn
from controller.ovsdb import schema

log = logging.getLogger(__name__)

_COLUMNS = {
    "Bridge": ["datapath_id", "ports"],
    "Port": ["interfaces"],
    "Interface": ["name", "ofport", "bfd", "bfd_status", "external_ids"],
}
#: Marks interfaces whose BFD is ours, so that nobody else's is ever touched.
_MARK = "pleach-bfd"
_RETRY_S = 5.0
#: Milliseconds after which we look whether something is to be set, at the latest.
_LOOK_MS = 200

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Interface:
    """One port, as its database describes it. `up` is what the BFD session says."""

    remote: str
    name: str
    enabled: bool
    up: bool
    ours: bool


class Ovsdb:
    """One server and what it tells. `changed` is called after every change of that."""

    def __init__(self, remote: str, changed: Callable[[], None]) -> None:
        self.remote = remote
        #: By datapath and port number; empty while the server cannot be reached.
        self.interfaces: dict[Place, Interface] = {}
        self._changed = changed
        self._closed = False
        self._wanted: dict[str, int | None] = {}
        spawn(self._run)

    def close(self) -> None:
        """Follow the server no more."""
        self._closed = True

    def watch(self, names: Mapping[str, int | None]) -> None:
        """Have BFD sent on the interfaces `names` every so many milliseconds, or not at all.
        What comes of it shows in `interfaces`, soon."""
        self._wanted.update(names)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._follow()
            except OSError as error:
                log.warning(
                    "an OVSDB server cannot be reached; links are watched by port status: %s",
                    error,
                    extra={"ovsdb": self.remote},
                )
            except Exception:
                log.exception("an OVSDB server could not be followed", extra={"ovsdb": self.remote})
            self.interfaces = {}
            self._wanted.clear()
            self._changed()
            hub.sleep(_RETRY_S)

    def _follow(self) -> None:
        helper = idl.SchemaHelper(schema_json=schema(self.remote))
        for table, columns in _COLUMNS.items():
            helper.register_columns(table, columns)
        replica = idl.Idl(self.remote, helper)
        try:
            seen = replica.change_seqno
            while not self._closed:
                replica.run()
                if replica.change_seqno != seen:
                    seen = replica.change_seqno
                    self.interfaces = _read(self.remote, replica)
                    self._changed()
                if self._wanted:
                    wanted, self._wanted = self._wanted, {}
                    self._set(replica, wanted)
                _wait(replica)
        finally:
            replica.close()

    def _set(self, replica: Any, wanted: Mapping[str, int | None]) -> None:
        change = idl.Transaction(replica)
        for row in replica.tables["Interface"].rows.values():
            if row.name in wanted:
                _configure(row, wanted[row.name])
        status = change.commit_block()
        if status not in (change.SUCCESS, change.UNCHANGED):
            log.error(
                "BFD could not be set up: %s",
                change.get_error() or change.status_to_string(status),
                extra={"ovsdb": self.remote},
            )


def _configure(row: Any, interval_ms: int | None) -> None:
    settings = {"enable": "true", "min_tx": str(interval_ms), "min_rx": str(interval_ms)}
    if interval_ms is None:
        for key in settings:
            row.delkey("bfd", key)
        row.delkey("external_ids", _MARK)
        return
    for key, value in settings.items():
        row.setkey("bfd", key, value)
    row.setkey("external_ids", _MARK, "true")


def _wait(replica: Any) -> None:
    waiting = poller.Poller()
    replica.wait(waiting)
    waiting.timer_wait(_LOOK_MS)
    waiting.block()


def _read(remote: str, replica: Any) -> dict[Place, Interface]:
    found: dict[Place, Interface] = {}
    for bridge in replica.tables["Bridge"].rows.values():
        for port in bridge.ports if bridge.datapath_id else ():
            for row in port.interfaces:
                if row.ofport and row.ofport[0] > 0:
                    found[bridge.datapath_id[0], row.ofport[0]] = Interface(
                        remote=remote,
                        name=row.name,
                        enabled=row.bfd.get("enable") == "true",
                        up=row.bfd_status.get("state") == "up",
                        ours=_MARK in row.external_ids,
                    )
    return found
