"""One declarative layout per model family, and the loading of teachers."""
