"""The app that reads what the meters of VMs passed, and writes it to the store for whoever shares
out bandwidth.

All edges are asked together, twice in a control interval, so that what nobody foresaw is seen
early enough to be answered within one.
"""

from __future__ import annotations

import time
from typing import Any

from apps.context import Southbound
from apps.framework import App, hub, spawn
from apps.survey import Survey
from controller.act.dataplane.openflow import counters, encode
from controller.act.dataplane.usage import Counts
from controller.store.usage import Metered, Usage, write_usage

#: Transaction id of the questions: none that a channel comes to in the life of a connection.
XID = 0xFFFF_0002


class UsageApp(App):
    """Readings of the meters of VMs."""

    _CONTEXTS = {"southbound": Southbound}  # noqa: RUF012 - the framework's own name and form

    def __init__(self, *args: Any, southbound: Southbound, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.southbound = southbound
        self._survey = Survey(
            southbound, XID, encode.meter_stats_request, counters.meter_stats, Counts
        )
        spawn(southbound.forever, self._measure)

    def _measure(self) -> None:
        every_s = self.southbound.settings.bandwidth.interval_s / 2
        hub.sleep(every_s - time.time() % every_s)
        at = time.time()
        metered = [datapath for datapath in self.southbound.sessions if self._metered(datapath)]
        answered = self._survey.ask(metered, every_s / 2)
        now = time.monotonic()
        rows = []
        for datapath, counts in answered.items():
            found = counts.flowed(self.southbound.view, datapath, now)
            if found is not None:
                rows.append(Usage(datapath, at, tuple(Metered(*flowed) for flowed in found)))
        write_usage(self.southbound.store, rows)

    def _metered(self, datapath: str) -> bool:
        """Whether a switch may have a meter of a VM."""
        view = self.southbound.view
        limits, decided = view.state.rate_limits, view.state.bandwidths
        return any(vm in decided or vm in limits for vm in view.vms_at.get(datapath, ()))
