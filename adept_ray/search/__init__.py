"""Ranges, trials, choosing k, Optuna's study, Tune, growth."""
