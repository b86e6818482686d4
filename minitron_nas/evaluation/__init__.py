"""Loss, KL divergence, speed, memory and benchmark scores of a model."""
