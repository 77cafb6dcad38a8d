"""Files that hold many images, as img2dataset and WebDataset make them: tars, and Parquet with the images' bytes.

A shard is indexed once, when the input is listed; each of its images is then read by itself, on any machine: a tar's by
the range of its bytes, a Parquet file's by its row.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.fetch import InputFault, filesystem, is_local
from jobs.listing import IMAGE_EXTENSIONS, Listed

TAR_EXTENSIONS = (".tar",)
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img", "bytes", "image_bytes", "image_data", "content")
"""Where the images' bytes are, if nobody says."""
KEY = "key"
"""A column of every tar: the name that the members of one sample share."""
BLOCK_BYTES = 2**22
"""Read ahead in a remote tar: members are small, so it is read from end to end."""
LARGEST_TEXT = 2**20
"""Bytes of a member that is carried along as a column."""
ROWS_AT_ONCE = 1_000


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[IO[bytes]]:
    """A shard for random access, on a disk or behind a URL."""
    if is_local(path):
        with open(path, "rb") as local:
            yield local
        return
    with filesystem(path).open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead") as remote:
        yield remote


# --- tars -------------------------------------------------------------------------------------------------------


def list_tar(path: str, columns: Sequence[str] = ()) -> Iterator[Listed]:
    """The images of a tar, in its order. Where it is damaged, a last entry without an offset stands for the rest.

    Args:
        columns: of each sample: `key`, an extension of its members (such as `txt`: the member's text), or a field of
            its `json` member. None where a sample has no such thing.
    """
    with open_shard(path) as stream:
        try:
            # Not tarfile's "r": a compressed tar cannot be read from its middle.
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for key, members in _samples(tar):
                    images = [member for member in members if member.name.lower().endswith(IMAGE_EXTENSIONS)]
                    values = _texts(tar, key, members, columns) if images and columns else (None,) * len(columns)
                    for member in images:
                        yield Listed(
                            f"{path}/{printable_name(member.name)}", member.size, path, member.offset_data, None, values
                        )
                stream.seek(tar.offset)
                if stream.read(512) != bytes(512):
                    raise tarfile.ReadError("it does not end as a tar does")
        except tarfile.TarError:
            yield Listed(path, None, path, None, None, (None,) * len(columns))


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Files that follow one another and share their name up to the first dot of its last part."""
    key = ""
    members: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
        folder, _, name = member.name.rpartition("/")
        if not member.isreg() or name.startswith("."):
            continue
        here = f"{folder}/{name.partition('.')[0]}".removeprefix("/")
        if here != key and members:
            yield key, members
            members = []
        key = here
        members.append(member)
    if members:
        yield key, members


def _texts(tar: tarfile.TarFile, key: str, members: Sequence[tarfile.TarInfo], columns: Sequence[str]) -> tuple:
    by_extension = {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in members}

    def text(extension: str) -> str | None:
        member = by_extension.get(extension)
        file = tar.extractfile(member) if member is not None and member.size <= LARGEST_TEXT else None
        return file.read().decode("utf-8", "replace") if file is not None else None

    fields: dict[str, Any] | None = None
    values: list[str | None] = []
    for name in columns:
        if name == KEY:
            values.append(key)
        elif name in by_extension:
            values.append(text(name))
        else:
            if fields is None:
                fields = _json_object(text("json"))
            value = fields.get(name)
            values.append(value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return tuple(values)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def printable_name(name: str) -> str:
    """A member's name as Parquet can hold it."""
    return name.removeprefix("./").encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- Parquet ----------------------------------------------------------------------------------------------------


def image_column(schema: pa.Schema, wanted: str | None) -> str | None:
    """The column that holds images as bytes, or as a struct with `bytes`; None if there is none.

    Args:
        wanted: as the user named it; None to look for a usual name.
    """
    for name in IMAGE_COLUMNS if wanted is None else (wanted,):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            kind = kind.field(index).type if index >= 0 else kind
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
    return None


def list_parquet(path: str, columns: Sequence[str] = ()) -> Iterator[Listed]:
    """The rows of a Parquet file with images; no image is looked at."""
    with open_shard(path) as stream:
        file = pq.ParquetFile(stream)
        for row, values in enumerate(read_columns(file, columns)):
            yield Listed(f"{path}/{row}", None, path, None, row, values)


def read_columns(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns row by row; None for a column that is not there."""
    here = [name for name in columns if name in file.schema_arrow.names]
    if not here:
        for _ in range(file.metadata.num_rows):
            yield (None,) * len(columns)
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=here):
        read = {name: batch.column(name).to_pylist() for name in here}
        nothing = [None] * batch.num_rows
        yield from zip(*(read.get(name, nothing) for name in columns), strict=True)


class ParquetImages:
    """The images of one file, read by row. Cheap while the rows ascend: what lies before a row has to be passed.

    Args:
        column: as `image_column` found it.
    """

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path, self.column = path, column
        self._open = contextlib.ExitStack()
        self._batches: Iterator[tuple[int, pa.Array]] | None = None
        self._now: tuple[int, pa.Array] = (0, pa.array([], pa.binary()))

    def read(self, row: int) -> bytes:
        """The bytes of an image; none where the row has none.

        Raises:
            InputFault: kind DamagedShard: the file is not what it was when it was listed, or cannot be decoded here.
        """
        try:
            first, images = self._now
            if self._batches is None or row < first:
                self.close()
                self._batches = self._from(row)
                first, images = 0, pa.array([], pa.binary())
            while not first <= row < first + len(images):
                try:
                    first, images = self._now = next(self._batches)
                except (StopIteration, pa.ArrowInvalid) as error:
                    text = f"{self.path} cannot be read at row {row}"
                    raise InputFault("DamagedShard", f"{text}: {error}" if str(error) else text) from error
            return images[row - first].as_py() or b""
        except BaseException:
            self.close()  # after a fault of the network, the next call begins anew
            raise

    def close(self) -> None:
        """Close the file, if it is open."""
        self._open.close()
        self._batches = None

    def _from(self, row: int) -> Iterator[tuple[int, pa.Array]]:
        """Batches (first row, images) from the row group of `row` on, decoded page by page."""
        stream = self._open.enter_context(open_shard(self.path))
        file = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        name = image_column(file.schema_arrow, self.column)
        if name is None:
            raise InputFault("DamagedShard", f"{self.path} has no column of images any more")
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows <= row:
                first += rows
                continue
            for batch in file.iter_batches(16, row_groups=[group], columns=[name], use_threads=False):
                images = batch.column(0)
                yield first, images.field("bytes") if pa.types.is_struct(images.type) else images
                first += batch.num_rows
