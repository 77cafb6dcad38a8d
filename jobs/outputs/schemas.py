"""Arrow schemas of all rows that pass between the steps of a job or to its users.

`captionlib.features.files.feature_schema` defines the rows of features.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

CAPTIONS_VERSION = 2
"""An output never mixes rows of different schema versions. Version 2 added `finish_reason` and
`confidence`."""
FEATURES_VERSION = 1
"""The same for rows of features."""

# A manifest may have another column, `columns`: a struct of the values that are copied to the output.
MANIFEST = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("size", pa.int64()),  # in bytes; null if the listing does not state it
        ("shard", pa.string()),  # tar or Parquet file that contains the image; null for an image file
        ("offset", pa.int64()),  # position of the first byte in a tar file
        ("row", pa.int64()),  # row number in a Parquet file
    ]
)

CAPTIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("caption", pa.string()),
        ("log_prob", pa.float32()),  # natural logarithm, summed over the tokens; null if a server does not report it
        ("num_tokens", pa.int16()),
        ("finish_reason", pa.string()),  # `end`, or `length` if the caption was cut off at the largest number of tokens
        ("confidence", pa.float32()),  # probability that the caption is right; null for models without calibration
        ("low_confidence", pa.bool_()),  # confidence is below --min-confidence; null if either is missing
        ("captions", pa.list_(pa.struct([("text", pa.string()), ("log_prob", pa.float32())]))),  # best first
        ("width", pa.int32()),  # of the stored image, after applying the EXIF orientation
        ("height", pa.int32()),
        ("error", pa.string()),  # null if there is a caption; otherwise "Kind: message"
    ]
)

DEFERRED = "Deferred: "
"""Prefix of the error of an image that could not be fetched and will be retried. A finished output has none."""

# A chunk of images, as Ray Data receives it.
CHUNK = pa.schema(
    [
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("redo", pa.string()),  # "": process all images; "errors" or "deferred": only images whose row has this state
        ("canaries", pa.list_(pa.string())),  # URLs whose servers have already answered this job
        ("pause", pa.float32()),  # seconds since the first attempt, where this is the planned second one
    ]
)

# The chunk with its decoded images (copied columns are in `images`). A chunk remains a single row in all stages, so
# that Ray cannot split it or merge two.
DECODED = pa.schema(
    [
        *CHUNK,
        ("status", pa.string()),  # ready, deferred, denied or nothing: no second attempt is needed
        ("reason", pa.string()),
        ("step", pa.string()),  # step that failed with an unexpected exception
        ("trace", pa.string()),  # traceback of this exception
        ("node", pa.string()),  # machine, for a chunk that is not ready
        ("deferred", pa.int32()),  # number of images that could not be fetched
        ("answered", pa.string()),  # URL of an image that could be fetched
        ("warnings", pa.list_(pa.string())),  # of this stage, for the user
        (
            "images",
            pa.list_(
                pa.struct(
                    [
                        ("image_id", pa.int64()),
                        ("path", pa.string()),
                        ("width", pa.int32()),
                        ("height", pa.int32()),
                        ("error", pa.string()),
                    ]
                )
            ),
        ),
        ("heights", pa.list_(pa.int32())),  # heights of the B images without an error, in the order of `pixels`
        ("widths", pa.list_(pa.int32())),
        ("side", pa.int32()),  # side S if all images are squares of the same size
        ("pixels", pa.large_binary()),  # uint8 HWC images, one after another; (B, S, S, 3) if they have a side S
        ("read_seconds", pa.float32()),  # summed over threads, like decode_seconds
        ("decode_seconds", pa.float32()),
    ]
)

# The result of a chunk.
RECEIPT = pa.schema(
    [
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("pause", pa.float32()),  # as the chunk has it
        ("done", pa.int32()),
        ("failed", pa.int32()),
        ("deferred", pa.int32()),  # number of committed rows whose images could not be fetched
        ("answered", pa.string()),  # URL of an image that could be fetched
        ("status", pa.string()),  # committed, deferred, denied or nothing
        ("reason", pa.string()),  # why the chunk is not committed, or why some images are deferred
        ("step", pa.string()),  # step that failed with an unexpected exception: decoding, the model or writing
        ("trace", pa.string()),  # traceback of this exception
        ("node", pa.string()),
        ("warnings", pa.list_(pa.string())),  # of decoding this chunk, and of the actor since its last receipt
        ("read_seconds", pa.float32()),
        ("decode_seconds", pa.float32()),
        ("model_seconds", pa.float32()),  # wall-clock time
        ("write_seconds", pa.float32()),
    ]
)


def with_metadata(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema with metadata under the project's own keys, `captionlib.<name>`."""
    own = {f"captionlib.{name}": value for name, value in metadata.items()}
    return schema.with_metadata({**(schema.metadata or {}), **own})
