"""From scores to smaller models: order, prepare, slice, export, prove."""
