"""Labs: real Open vSwitch fabrics in private namespaces, for people and for the tests."""
