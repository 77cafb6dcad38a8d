"""Slow tests: the caption job against a real object store, a bad network, and processes that are killed.

    python -m pytest -m slow tests/faults -s

`-s` shows the log of what was killed, when, and what it cost. FAULT_PHOTOS (5,000), FAULT_KILLS (24) and FAULT_SEED
(0) set the size of the tests; `FAULT_PHOTOS=600 FAULT_KILLS=6` takes some minutes.
"""
