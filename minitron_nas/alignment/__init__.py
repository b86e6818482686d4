"""Alignment: from a student that knows language to one that answers, on conversations and preferences."""
