"""What is an application called, to which category does it belong, and what does a port suggest?

Plain values without a file behind them, so that they can be sent to the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .records import UNKNOWN

#: nDPI's own word for what it cannot tell.
NDPI_UNKNOWN = "Unknown"
OTHER = "other"
#: Protocols after which nDPI names what was asked about, not what answers.
_ASKED = frozenset({"DNS", "MDNS", "LLMNR", "NetBIOS", "DHCP", "OCSP", "ICMP", "ICMPV6"})


def spoken(label: str) -> str:
    """What answers, of "master.application": DNS where it is asked for Facebook's address."""
    master = label.partition(".")[0]
    return master if master in _ASKED else label


@dataclass(frozen=True, slots=True)
class Naming:
    """The policy's tables: applications and nDPI's categories to ours, ports to applications."""

    applications: Mapping[str, str] = field(default_factory=dict)
    ndpi: Mapping[str, str] = field(default_factory=dict)
    #: "tcp/5432" to "PostgreSQL".
    ports: Mapping[str, str] = field(default_factory=dict)
    #: Protocols that hide what they carry, so that behaviour may tell more of the category,
    #: and the least probability of what it says.
    opaque: frozenset[str] = frozenset()
    answer_from: float = 0.8

    def category(self, label: str, ndpi: str = "") -> str:
        """The category of "master.application": by the application, the master, or nDPI's own."""
        if not label or label == UNKNOWN:
            return UNKNOWN
        master, _, application = spoken(label).partition(".")
        for name in (application, master):
            found = self.applications.get(name)
            if found is not None:
                return found
        return self.ndpi.get(ndpi, OTHER)

    def suggested(self, protocol: str, port: int) -> str | None:
        """The application that usually answers at a port."""
        return self.ports.get(f"{protocol}/{port}")

    def serves(self, protocol: str, port: int) -> bool:
        """Whether a port is one at which services answer rather than one that clients get:
        those that the system reserves (RFC 6335, section 6), and those of the policy."""
        return 0 < port < 1024 or f"{protocol}/{port}" in self.ports

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "applications": dict(self.applications),
            "ndpi": dict(self.ndpi),
            "ports": dict(self.ports),
            "opaque": sorted(self.opaque),
            "answer_from": self.answer_from,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Naming:
        """What `to_json` gave."""
        return cls(
            value["applications"],
            value["ndpi"],
            value["ports"],
            frozenset(value["opaque"]),
            value["answer_from"],
        )
