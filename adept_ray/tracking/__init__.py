"""Experiment trackers, fed from the events of a run: W&B, MLflow, TensorBoard, trackio."""
