"""What the commands share: terminal, sources, preparing, context, resuming, the run's record."""
