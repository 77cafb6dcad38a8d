"""The engine of `jobs.train`: data-parallel training through Ray Train."""
