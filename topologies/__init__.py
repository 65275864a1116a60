"""Fabrics: what they are made of, how they are described, checked, drawn and built."""

from topologies.load import Problem, TopologyError, validate
from topologies.model import Cable, Fabric, Hypervisor, Switch

__all__ = ["Cable", "Fabric", "Hypervisor", "Problem", "Switch", "TopologyError", "validate"]
