"""The engine behind `merge.py`."""
