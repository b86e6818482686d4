"""One declarative layout per model family."""
