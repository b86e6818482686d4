"""Forward-only importance scores of channels, neurons, heads and layers."""
