"""What every long-lived process of Pleach sets up for itself."""

from __future__ import annotations

import ctypes
import gc
import os
import signal

#: The records that a fabric is made of live long and refer to nothing that refers back. To look
#: through all of them for cycles as often as Python does by itself would stop a process for
#: tenths of a second; the young ones are looked through in some 3 ms.
GARBAGE_THRESHOLDS = (5_000, 5, 1_000)
#: `prctl` option: the signal that a child gets when its parent dies (linux/prctl.h).
_PR_SET_PDEATHSIG = 1
#: Found before a fork: afterwards little may be done in the child.
_LIBC = ctypes.CDLL(None, use_errno=True)


def seldom_collect() -> None:
    """Look for cyclic garbage among long-lived objects seldom."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """In a child of process `parent`: be sent the signal `number` when that ends, however it
    ends, so that no child is left."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the line above
        os.kill(os.getpid(), number)
