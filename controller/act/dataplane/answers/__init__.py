"""Which frame answers the frame that a VM sent up to the controller?

Every function takes the whole Ethernet frame as the VM sent it, and returns the whole frame
to send out of the VM's port, or None where nothing may be answered. None of them raises on
what a VM can send: frames that are truncated, contradict themselves or carry a wrong
checksum stay without an answer. Tagged frames do too: a NIC speaks untagged.
"""

from controller.act.dataplane.answers.dhcpv4 import dhcp
from controller.act.dataplane.answers.icmp import Why, time_exceeded, unreachable
from controller.act.dataplane.answers.neighbours import neighbour
from controller.act.dataplane.answers.packets import destination

__all__ = ["Why", "destination", "dhcp", "neighbour", "time_exceeded", "unreachable"]
