"""The one place that imports Mininet, which changes what all of a process logs.

Its log module makes itself the class of every logger that is made from then on, each with a
handler and a level of its own: what our modules say would be lost or said twice.
"""

from __future__ import annotations

import logging

_before = logging.getLoggerClass()
try:
    from mininet.link import TCIntf, TCLink
    from mininet.log import setLogLevel
    from mininet.net import Mininet
    from mininet.node import OVSSwitch
    from mininet.topo import Topo
finally:
    logging.setLoggerClass(_before)

__all__ = ["Mininet", "OVSSwitch", "TCIntf", "TCLink", "Topo", "setLogLevel"]
