"""From whatever text the user names to packed sequences of tokens."""
