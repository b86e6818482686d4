"""Where a model comes from, whether it is what it says, and how it is loaded, whole or layer by layer."""
