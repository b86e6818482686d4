"""The public single steps, which need no run."""
