"""ADEPT and its rivals as plain torch, never Ray."""
