"""Reads captions and references, and writes the report of `jobs.evaluate`."""
