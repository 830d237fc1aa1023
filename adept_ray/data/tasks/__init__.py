"""Benchmark tasks for lm-eval, which reads this folder: a .yaml each, their data in ``questions``."""
