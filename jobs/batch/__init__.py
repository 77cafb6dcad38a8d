"""The engine of `jobs.caption` and `jobs.extract_features`: takes images through Ray Data in chunks."""
