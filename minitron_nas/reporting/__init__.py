"""How a run is told: figures, one HTML file, a model card per student."""
