"""OpenFlow 1.5 as Open vSwitch speaks it: typed records, and their bytes on the wire."""
