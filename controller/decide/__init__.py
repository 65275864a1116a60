"""Third floor: what should be? Pure functions from what is known and foreseen to decisions."""
