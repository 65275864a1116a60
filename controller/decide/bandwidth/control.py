"""What does a VM want right now? The forecast, corrected by what its meter was seen to pass.

The rule is run at every control interval before allocation. A VM at its meter's limit wants
more than can be seen, so its demand is taken as a multiple of what passed: within one interval
it has what it needs, its fair share, or that multiple, whichever is least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.decide.bandwidth.allocate import Allocation
from controller.decide.bandwidth.records import BandwidthError, Claim, Direction


@dataclass(frozen=True, slots=True)
class Control:
    """The rule's numbers."""

    #: A meter that passes this share of its rate is at its limit: with a burst of one second,
    #: Open vSwitch's meters pass 0.83 (TCP) to 1.07 (UDP) of their rate when they are.
    limit: float = 0.8
    #: Demand of a VM at its limit, in multiples of what passed.
    growth: float = 2.0
    #: What usage may do within an interval without coming to the limit.
    headroom: float = 1.25
    #: Demand falls by no more than this share of itself an interval, so that a pause in a
    #: burst does not cost what was given.
    decay: float = 0.5


CONTROL = Control()

#: bit/s by VM and direction.
Rates = dict[tuple[str, Direction], float]


def demands(
    claims: tuple[Claim, ...] | list[Claim],
    passed: Rates,
    allocation: Allocation | None,
    before: Rates,
    control: Control = CONTROL,
) -> tuple[Claim, ...]:
    """The claims with the demand of the coming interval in place of the forecast's.

    `passed` is what each meter let through in the last interval, as counted; who is not in it
    was not measured. `allocation` are the rates of that interval, `before` the demands that
    this rule gave for it. BandwidthError names usage that cannot be.
    """
    wrong = [
        f"usage of {vm} {direction} is {value} bit/s: counters were reset or read wrong; leave "
        "it out for this interval"
        for (vm, direction), value in passed.items()
        if not 0 <= value < float("inf")
    ]
    if wrong:
        raise BandwidthError(*wrong)
    rates = allocation.rates() if allocation else {}
    return tuple(
        replace(claim, demand_bps=_demand(claim, passed, rates, before, control))
        for claim in claims
    )


def missed(passed: Rates, allocation: Allocation, control: Control = CONTROL) -> tuple[str, ...]:
    """VMs with a meter that was at its limit, by name."""
    rates = allocation.rates()
    found = {
        vm for (vm, way), bps in passed.items() if _at_limit(bps, rates.get((vm, way)), control)
    }
    return tuple(sorted(found))


def _demand(claim: Claim, passed: Rates, rates: Rates, before: Rates, control: Control) -> float:
    key = (claim.vm, claim.direction)
    used = passed.get(key)
    if used is None:
        return claim.demand_bps
    factor = control.growth if _at_limit(used, rates.get(key), control) else control.headroom
    falling = (1.0 - control.decay) * before.get(key, 0.0)
    return max(claim.demand_bps, used * factor, falling)


def _at_limit(used: float, rate: float | None, control: Control) -> bool:
    return rate is not None and used >= control.limit * rate and used > 0
