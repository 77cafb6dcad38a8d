"""Writes what a batch job produces: rows, exports, sidecar files and the run record."""
