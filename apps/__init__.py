"""Southbound: the apps that speak OpenFlow, under os-ken."""
