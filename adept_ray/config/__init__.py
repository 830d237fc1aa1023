"""Errors, validation, specifications of a run and a training, the grammar of search spaces."""
