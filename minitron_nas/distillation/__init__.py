"""Teacher signals, losses and the one training loop."""
