"""Measures the steps of captioning, and predicts the duration of a job."""
