"""Pleach: a controller suite for networks of virtual machines."""

__version__ = "0.1.0"
