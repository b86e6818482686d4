"""From candidates to one chosen shape: screen, tournament, Pareto front."""
