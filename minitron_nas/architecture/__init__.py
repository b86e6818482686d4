"""Shapes as values: specification, layout grammar, costs and rules; no torch."""
