"""What is minimised, and what is measured: from hidden states and output heads to losses and gradients."""
