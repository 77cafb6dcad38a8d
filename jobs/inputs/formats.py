"""The kinds of inputs: one table row for each.

To add one, write a class with the three functions of `jobs.inputs.listing.InputFormat`, and add a row.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobs.inputs.image_files import ImageFiles, ImageFolder
from jobs.inputs.listing import InputFormat
from jobs.inputs.manifests import Manifests
from jobs.inputs.parquet import ParquetWithImages
from jobs.inputs.webdataset import WebDataset

INPUT_FORMATS: Mapping[str, InputFormat] = {
    "webdataset": WebDataset(),
    "parquet": ParquetWithImages(),
    "manifest": Manifests(),
    "imagefolder": ImageFolder(),
    "images": ImageFiles(),
}
"""By the name for `--input-format`, in the order in which an input is compared with them if none is given."""
