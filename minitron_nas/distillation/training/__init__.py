"""The one training loop: how many steps, what it is told, what it keeps, and what it costs."""
