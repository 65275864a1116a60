"""What every long-lived process of Pleach sets up for itself."""

from __future__ import annotations

import gc

#: The records that a fabric is made of live long and refer to nothing that refers back. To look
#: through all of them for cycles as often as Python does by itself would stop a process for
#: tenths of a second; the young ones are looked through in some 3 ms.
GARBAGE_THRESHOLDS = (5_000, 5, 1_000)


def seldom_collect() -> None:
    """Look for cyclic garbage among long-lived objects seldom."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
