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

# A manifest may have one column more, `columns`: a struct of what is carried along into the output.
MANIFEST = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("size", pa.int64()),  # bytes; null where the listing does not say
        ("shard", pa.string()),  # the tar or Parquet file that the image is in; null for a file of its own
        ("offset", pa.int64()),  # of its first byte, in a tar
        ("row", pa.int64()),  # in a Parquet file
    ]
)

CAPTIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("caption", pa.string()),
        ("log_prob", pa.float32()),  # natural, summed over the tokens; null where a server does not say
        ("num_tokens", pa.int16()),
        ("finish_reason", pa.string()),  # end, or length where the largest number of tokens cut it off
        ("confidence", pa.float32()),  # probability that the caption is right; null where the model does not say
        ("low_confidence", pa.bool_()),  # confidence below --min-confidence; null where either is missing
        ("captions", pa.list_(pa.struct([("text", pa.string()), ("log_prob", pa.float32())]))),  # best first
        ("width", pa.int32()),  # as stored, after the EXIF turn
        ("height", pa.int32()),
        ("error", pa.string()),  # null when captioned; otherwise "Kind: message"
    ]
)

DEFERRED = "Deferred: "
"""Prefix of the error of an image that could not be fetched and will be retried. A finished output has none."""

# A chunk of the job as Ray gets it.
CHUNK = pa.schema(
    [
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("redo", pa.string()),  # "" for all images; "errors" or "deferred" for those with such a row
        ("canaries", pa.list_(pa.string())),  # URLs of the inputs whose servers have answered this job
        ("pause", pa.float32()),  # seconds since the first attempt, where this is the planned second one
    ]
)

# The same chunk with its images decoded (and what is carried along, in `images`). A chunk is one row from end to end,
# so that Ray cannot cut it or join two.
DECODED = pa.schema(
    [
        *CHUNK,
        ("status", pa.string()),  # ready, deferred, denied or nothing: no second attempt is needed
        ("reason", pa.string()),
        ("step", pa.string()),  # what failed, where nobody foresaw it, …
        ("trace", pa.string()),  # … and the traceback of that
        ("node", pa.string()),  # of a chunk that is not ready
        ("deferred", pa.int32()),  # images that could not be fetched
        ("answered", pa.string()),  # the URL of one that could
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
        ("heights", pa.list_(pa.int32())),  # of the B images without an error, as they are in `pixels`, …
        ("widths", pa.list_(pa.int32())),
        ("side", pa.int32()),  # … S, where all are squares of this side
        ("pixels", pa.large_binary()),  # uint8 HWC of these images, one after another: (B, S, S, 3) where S is there
        ("read_seconds", pa.float32()),  # summed over threads, as decode_seconds
        ("decode_seconds", pa.float32()),
    ]
)

# What became of it.
RECEIPT = pa.schema(
    [
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("pause", pa.float32()),  # as the chunk has it
        ("done", pa.int32()),
        ("failed", pa.int32()),
        ("deferred", pa.int32()),  # rows that are committed, but whose images could not be fetched
        ("answered", pa.string()),  # the URL of one that could
        ("status", pa.string()),  # committed, deferred, denied or nothing
        ("reason", pa.string()),  # why it is not committed, or why images of it are deferred
        ("step", pa.string()),  # what failed, where nobody foresaw it: decoding, the model or writing; …
        ("trace", pa.string()),  # … and the traceback of that
        ("node", pa.string()),
        ("warnings", pa.list_(pa.string())),  # of decoding this chunk, and of the actor since its last receipt
        ("read_seconds", pa.float32()),
        ("decode_seconds", pa.float32()),
        ("model_seconds", pa.float32()),  # wall clock
        ("write_seconds", pa.float32()),
    ]
)


def with_metadata(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema with metadata under the project's own keys, `captionlib.<name>`."""
    own = {f"captionlib.{name}": value for name, value in metadata.items()}
    return schema.with_metadata({**(schema.metadata or {}), **own})
