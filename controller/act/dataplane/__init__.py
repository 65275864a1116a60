"""Desired state to OpenFlow and back: pure functions, no socket and no clock."""
