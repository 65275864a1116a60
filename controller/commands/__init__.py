"""The commands of `pleach`, a module for each group."""
