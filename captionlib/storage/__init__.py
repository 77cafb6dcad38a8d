"""Reads and writes whole files, on a disk or behind a URL, with retries."""
