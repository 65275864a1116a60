"""Which application answers at a service? Told from the first packets of its flows."""
