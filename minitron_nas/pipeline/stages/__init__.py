"""The stages of a run, each of which the engine runs once."""
