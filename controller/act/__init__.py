"""Fourth floor: make it so."""
