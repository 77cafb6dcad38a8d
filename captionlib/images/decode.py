"""Decodes the bytes of an image file to an upright RGB image.

Whatever the bytes are, `decode_image` returns an image or raises one `ImageDecodeError`, whose `kind` can be counted.
`captionlib.images.formats` lists what is read: formats whose decoders are libraries, most of them inside Pillow.
Formats for which Pillow starts another program, such as PostScript, are rejected by name.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from captionlib.errors import ImageError
from captionlib.images.cut_jpegs import END_MARKER, MAX_MISSING, missing_share
from captionlib.images.formats import FORMATS, Format, Size, find_format, rejected_format
from captionlib.images.jpeg_segments import is_ordinary, max_scans, num_scans, without_excess_exif
from captionlib.images.png_chunks import without_damaged_metadata
from captionlib.images.reduced_tiffs import reduced_copy

ErrorKind = Literal[
    "EmptyFile",  # the file has no bytes
    "NotAnImage",  # the bytes are something else, such as text, HTML or an archive
    "UnsupportedImage",  # an image in a format, or a variant of a format, that is not supported
    "TruncatedImage",  # the file ends before the end of the image
    "CorruptImage",  # the file is damaged in another way
    "ImageTooLarge",  # more pixels than the limit, or made to need far more work or memory than its pixels do
    "DecodeTimeout",  # decoding takes longer than a job allows
]

MAX_PIXELS = 2**26
"""Largest image that is decoded: 67 million pixels, such as 8192 × 8192. Decoding and converting an image needs 4 to 16
bytes per pixel, depending on its format, so a worker needs at most about 1 GiB."""

# A JPEG that is reduced while it is decoded may be stored larger than `max_pixels`, up to these multiples.
# Reading a pixel costs only about 10 ns; but the scans of a progressive JPEG are kept until the last
# is read, as coefficients of 3 to 8 bytes per stored pixel.
_STORED_IN_ONE_SCAN = 16
_STORED_IN_SCANS = 2

# Pillow's messages for a file that ends early, and for an unknown variant of a known format.
_TRUNCATED = (
    "truncated|unpack_from requires|no more images|cannot load this image|buffer is not large enough|end of file|"
    "expected to read"
)
_UNSUPPORTED = "unsupported|unknown pixel mode|cannot handle|not available|not installed"

_PILLOW = re.compile(r"PIL\.")

# EXIF orientation → operation that makes the image upright (EXIF 2.32, tag 0x0112). From 5 on, width and height swap.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageDecodeError(ImageError):
    """The bytes cannot be decoded to an image; `kind` is an `ErrorKind`."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(kind, message)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and the size stated in its file."""

    image: Image.Image
    """Mode RGB, upright; smaller than `width` × `height` if it was reduced during decoding."""
    width: int
    """Stored width in pixels, after applying the EXIF orientation."""
    height: int
    """Stored height in pixels, after applying the EXIF orientation."""


def decode_image(data: bytes, *, target_side: int | None = None, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file of one of the `captionlib.images.formats`; of an animation or several pages, the first.

    The EXIF orientation is applied, transparency becomes white, 16-bit and float channels are scaled to 8 bits.
    Damaged metadata does not matter as long as the image itself is complete. A JPEG whose end is missing is complete if
    it lacks no more than `captionlib.images.cut_jpegs.MAX_MISSING` of its rows.

    Args:
        data: the whole file.
        target_side: the side in pixels to which the image will be scaled next. A JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size, a JPEG 2000 at any such part, and of a TIFF a reduced copy of its first page, if its
            shorter side stays at least this long: faster, in less memory.
        max_pixels: an image of more pixels is rejected. A reduced image counts by its reduced size, and may be stored
            with 16 times as many pixels (2 times if it is a progressive JPEG).

    Raises:
        ImageDecodeError: the bytes cannot be decoded; `ErrorKind` lists the kinds.
    """
    if target_side is not None and target_side < 1:
        raise ValueError(f"target_side must be at least 1 pixel, got {target_side}")
    known = _recognize(data)
    silence_pillow()
    try:
        if known.name == "JPEG" and not is_ordinary(data):
            data = without_excess_exif(data)
        if known.size is not None:
            _check_size(known.size(data), max_pixels)
        has_end = True
        try:
            image, width, height = _load(known, data, target_side, max_pixels)
        except SyntaxError:
            repaired = without_damaged_metadata(data) if known.name == "PNG" else data
            if len(repaired) == len(data):
                raise
            image, width, height = _load(known, repaired, target_side, max_pixels)
        except OSError as error:
            if known.name != "JPEG" or not re.search("truncated", str(error)):
                raise
            # Most viewers accept a file without the end marker. _load_without_end measures what else is missing.
            has_end = False
            image, width, height = _load_without_end(known, data, target_side, max_pixels, error)
        if isinstance(image, JpegImageFile):
            _check_complete(image, data, target_side, has_end)
        orientation = orientation_of(image)
        rgb = to_rgb(image)
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
    except ImageDecodeError:
        raise
    except ModuleNotFoundError as error:
        raise ImageDecodeError(
            "UnsupportedImage",
            f"{known.name} needs a library that is not installed: pip install 'captionlib[{known.extra}]'",
        ) from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageDecodeError("ImageTooLarge", str(error) or "not enough memory to decode it") from error
    except Exception as error:
        # On damaged bytes Pillow's parsers raise nearly every class of exception, struct.error and
        # RuntimeError among them. An unexpected exception must become the error of this image and not end the job.
        raise _explain(error, data, known) from error
    return DecodedImage(rgb, height, width) if orientation >= 5 else DecodedImage(rgb, width, height)


def _load(known: Format, data: bytes, target_side: int | None, max_pixels: int) -> tuple[Image.Image, int, int]:
    """Decode the pixels; returns the image, and the width and height stated in the file."""
    image = known.open(data)
    width, height = image.size
    if isinstance(image, JpegImageFile) and not is_ordinary(data):
        _check_scans(image.size, data, max_pixels)
    if target_side is not None:
        if isinstance(image, JpegImageFile):
            multiple = _STORED_IN_SCANS if _has_several_scans(image, data) else _STORED_IN_ONE_SCAN
            _check_size(image.size, multiple * max_pixels)
            image.draft(None, (target_side, target_side))
        elif isinstance(image, Jpeg2KImageFile):
            _check_size(image.size, _STORED_IN_ONE_SCAN * max_pixels)
            return _load_jpeg_2000(image, data, target_side, max_pixels), width, height
        elif (
            isinstance(image, TiffImageFile)
            and orientation_of(image) == 1
            and (reduced := reduced_copy(image, data, target_side)) is not None
        ):
            _check_size((width, height), _STORED_IN_ONE_SCAN * max_pixels)
            _check_size(reduced.size, max_pixels)
            reduced.load()
            return reduced, width, height
    _check_size(image.size, max_pixels)
    image.load()
    if isinstance(image, TiffImageFile):
        # Pillow applies the orientation of a TIFF while loading it, and afterwards reports none.
        width, height = image.size
    return image, width, height


def _load_jpeg_2000(image: Jpeg2KImageFile, data: bytes, target_side: int, max_pixels: int) -> Image.Image:
    """Decode a JPEG 2000 at the smallest stored resolution whose shorter side is at least `target_side`."""
    halvings = max(0, (min(image.size) // target_side).bit_length() - 1)
    levels = min(halvings, _resolution_levels(data))
    _check_size((image.size[0] >> levels, image.size[1] >> levels), max_pixels)
    image.reduce = levels
    image.load()
    return image


def _resolution_levels(data: bytes) -> int:
    """How often a JPEG 2000 can be halved: decomposition levels in its COD segment (ISO 15444-1, A.6.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    place = data.find(b"\xff\x52", start, start + 2**16) if start >= 0 else -1
    return data[place + 9] if 0 <= place < len(data) - 9 else 0


def _load_without_end(
    known: Format, data: bytes, target_side: int | None, max_pixels: int, error: OSError
) -> tuple[Image.Image, int, int]:
    try:
        return _load(known, data + END_MARKER, target_side, max_pixels)
    except Exception:
        raise error from None


def _check_complete(image: JpegImageFile, data: bytes, target_side: int | None, has_end: bool) -> None:
    missing = missing_share(image, data, target_side, has_end=has_end)
    if missing > MAX_MISSING:
        raise ImageDecodeError(
            "TruncatedImage",
            f"JPEG: {missing:.0%} of its rows are missing, {MAX_MISSING:.0%} is the limit; the file ends early, after "
            f"{len(data)} bytes",
        )


def begins_as_image(data: bytes) -> bool:
    """Whether a file that begins with these bytes, at least 64, may be an image that `decode_image` reads."""
    return find_format(data) is not None


def _recognize(data: bytes) -> Format:
    if not data:
        raise ImageDecodeError("EmptyFile", "the file has 0 bytes")
    known = find_format(data)
    if known is not None:
        return known
    rejected = rejected_format(data)
    if rejected is not None:
        names = ", ".join(known.name for known in FORMATS)
        raise ImageDecodeError("UnsupportedImage", f"{rejected} is not read: convert it to one of {names}")
    raise ImageDecodeError("NotAnImage", f"{len(data)} bytes that begin with {data[:16]!r}")


def silence_pillow() -> None:
    """Suppress Pillow's warnings about damaged metadata, because only pixels matter here.

    The filter covers Pillow's modules and stays active: `warnings.catch_warnings` would also suppress warnings of other
    threads, sometimes permanently.
    """
    if not any(action == "ignore" and module == _PILLOW for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _check_size(size: Size, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageDecodeError(
            "ImageTooLarge",
            f"{width} × {height} pixels, {max_pixels} is the limit: scale it down, or raise the limit (--max-pixels)",
        )


def _check_scans(size: Size, data: bytes, max_pixels: int) -> None:
    count, limit = num_scans(data), max_scans(size[0] * size[1], max_pixels)
    if count > limit:
        raise ImageDecodeError(
            "ImageTooLarge", f"JPEG: {count} scans of {size[0]} × {size[1]} pixels, {limit} is the limit at this size"
        )


def _has_several_scans(image: JpegImageFile, data: bytes) -> bool:
    """Whether a JPEG is progressive or has one scan per channel."""
    assert image.fp is not None
    # Pillow has just read the header of the first scan, which begins with its length (2 bytes) and the number of
    # channels (1 byte).
    header_length = 6 + 2 * image.layers
    start = image.fp.tell() - header_length
    first_has_all_channels = data[start : start + 3] == bytes((0, header_length, image.layers))
    return "progressive" in image.info or not first_has_all_channels


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation from 1 to 8; 1 is upright, and the default if none is stated."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # damaged metadata raises many kinds of exceptions, but the image itself could be decoded
    return orientation if orientation in _TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: transparency becomes white, 16-bit and float channels are scaled to 8
    bits.
    """
    if image.mode.startswith("I;16"):
        to_8_bit = np.round(np.linspace(0, 255, 2**16)).astype(np.uint8)
        return Image.fromarray(to_8_bit[np.asarray(image)]).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_stretch(np.array(image, dtype=np.float32))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        on_white = Image.new("RGB", image.size, "white")
        on_white.paste(rgba, mask=rgba.getchannel("A"))
        return on_white
    return image if image.mode == "RGB" else image.convert("RGB")


def _stretch(values: np.ndarray) -> np.ndarray:
    """Scale numbers of an unknown range, (H, W), to uint8 from black to white; `values` is overwritten, NaN becomes
    black.
    """
    finite = np.isfinite(values)
    low = float(values.min(where=finite, initial=np.inf))
    high = float(values.max(where=finite, initial=-np.inf))
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond the range of float32 affect only this image
        values -= low
        values *= 255 / (high - low) if high > low else 0
    return np.nan_to_num(values, copy=False).round(out=values).clip(0, 255, out=values).astype(np.uint8)


def _explain(error: Exception, data: bytes, known: Format) -> ImageDecodeError:
    """Determine the kind of fault from the text of the library's exception and the length stated in the file."""
    text = f"{known.name}: {str(error)[:200] or type(error).__name__}"
    if re.search(_UNSUPPORTED, text, re.IGNORECASE):
        return ImageDecodeError("UnsupportedImage", text)
    stated_length = known.stated_length(data) if known.stated_length is not None else 0
    if stated_length > len(data) or re.search(_TRUNCATED, text, re.IGNORECASE):
        return ImageDecodeError("TruncatedImage", f"{text}; the file ends early, after {len(data)} bytes")
    return ImageDecodeError("CorruptImage", text)
