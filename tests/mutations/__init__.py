"""Small image files of every format that is read, and damage of every kind to them: to bytes, and to structure."""

from tests.mutations.damage import mutate
from tests.mutations.originals import large_originals, originals
from tests.mutations.structure import mutate_structure

__all__ = ["large_originals", "mutate", "mutate_structure", "originals"]
