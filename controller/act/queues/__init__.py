"""Queues on the ports of a switch: which there are to be (`plan`), and making it so (`tc`)."""
