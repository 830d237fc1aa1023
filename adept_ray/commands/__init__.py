"""The commands, one file a script."""
