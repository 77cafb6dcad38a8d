"""Reads the objects in each image from a JSON file: `{"dog.jpg": ["dog", "frisbee"]}`."""

from __future__ import annotations

from captionlib.datasets.files import read_json_object
from captionlib.datasets.records import DatasetError


def read_objects(path: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the objects in each image, by the image's file name.

    An empty list means that the image shows none of the objects of the file.

    Raises:
        DatasetError: there is no such file, it is not a JSON object, or a value is not a list of names.
    """
    found = {}
    for image, names in read_json_object(path).items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise DatasetError(f"{path}: {image!r}: expected a list of names, got {str(names)[:80]}")
        found[image] = tuple(names)
    return found
