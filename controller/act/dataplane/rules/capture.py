"""Which packets of a VM are copied for an alert? All that access lets through, both ways.

A copy goes up to the controller through a meter of its own; the packet itself goes on. While it
lasts, what answers at the VM's ports is not told from these packets.
"""

from __future__ import annotations

from controller.act.dataplane.openflow import fields as f
from controller.act.dataplane.openflow.records import CONTROLLER, Clone, Output, ToMeter
from controller.act.dataplane.pipeline import MeterId, Owner, TableId, after
from controller.act.dataplane.rules.base import Entries, Writer
from controller.act.dataplane.view import FabricView
from controller.model.addresses import mac_to_int

#: Above all that is copied to tell what answers.
_PRIORITY = 400


def capture(view: FabricView, key: str, datapath: str) -> Entries:
    """The copies of the VM `key`, where it is plugged in at `datapath`."""
    if key not in view.state.captures:
        return
    w = Writer.of(Owner.CAPTURE, key)
    copy = (Clone((ToMeter(MeterId.CAPTURE), Output(CONTROLLER))),)
    for mac in sorted({mac_to_int(p.nic.mac) for p in view.places_at(datapath, key)}):
        for table, field in ((TableId.TAP_OUT, f.ETH_SRC), (TableId.TAP_IN, f.ETH_DST)):
            yield w.flow(table, _PRIORITY, (field, mac), do=copy, goto=after(table))
