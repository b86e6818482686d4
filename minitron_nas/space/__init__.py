"""What may change: search spaces and the enumeration of their candidates; no torch."""
