"""What is a link to those who choose paths? Light to import: who only tells of links computes
nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FabricLink:
    """One direction between two switches: `capacity_bps` in bit/s, `latency_s` in seconds one
    way as measured, `cost` as shortest-path routing sees it (a hop, unless told otherwise)."""

    source: str
    target: str
    capacity_bps: float
    latency_s: float = 0.0
    cost: float = 1.0

    @property
    def name(self) -> str:
        """The link as operators read it."""
        return f"{self.source}->{self.target}"
