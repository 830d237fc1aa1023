"""Files behind a path or URI, the results folder, checkpoints."""
