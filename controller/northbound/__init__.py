"""The REST door: what hypervisors, operators and other tools ask for and are told."""
