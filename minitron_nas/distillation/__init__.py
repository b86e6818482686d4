"""Text, teacher signals, losses and the one training loop."""
