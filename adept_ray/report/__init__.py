"""A results folder, read and drawn: evidence, figures, pages, the model card."""
