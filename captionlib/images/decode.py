"""Decodes the bytes of an image file to an upright RGB image.

Whatever the bytes are, `decode_image` returns an image or raises one `ImageDecodeError`, whose `kind` can be counted.
It reads the formats whose decoders are libraries inside Pillow. Formats for which Pillow starts another program, such
as PostScript, are rejected by name.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionlib.errors import ImageError

ErrorKind = Literal[
    "EmptyFile",  # no bytes at all
    "NotAnImage",  # bytes of something else: text, HTML, an archive
    "UnsupportedImage",  # a picture, in a format or a variant of one that is not read
    "TruncatedImage",  # the file ends before the picture does
    "CorruptImage",  # damaged otherwise
    "ImageTooLarge",  # more pixels than the limit
]

MAX_PIXELS = 2**26
"""Largest image that is decoded: 67 million pixels, such as 8192 × 8192. Decoding and converting an image needs 4 to 16
bytes per pixel, depending on its format, so a worker needs at most about 1 GiB."""

# A JPEG that is reduced while it is decoded may be stored larger than `max_pixels`, up to these multiples.
# Pixels that are only read cost about 10 ns each; but the scans of a progressive JPEG are kept until the last
# is read, as coefficients of 3 to 8 bytes per stored pixel.
_STORED_IN_ONE_SCAN = 16
_STORED_IN_SCANS = 2

# What the files of a format begin with.
_READ: dict[type[ImageFile], bytes] = {
    JpegImageFile: rb"\xff\xd8\xff",
    PngImageFile: rb"\x89PNG\r\n\x1a\n",
    WebPImageFile: rb"RIFF....WEBP",
    GifImageFile: rb"GIF8[79]a",
    TiffImageFile: rb"II[*+]\0|MM\0[*+]",
    BmpImageFile: rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    AvifImageFile: rb"....ftyp(avi[fs]|m[is]f1.{0,40}avi[fs])",
}
_REFUSED = {
    "HEIC": rb"....ftyp(hei|hev|m[is]f1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "SVG": rb"\s*(<\?xml.{,400})?<svg",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\x01\x02]\0",
    "Netpbm": rb"P[1-7]\s",
    "video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
}

# How Pillow words it when a file ends early, and when it knows the format but not this variant.
_TRUNCATED = "truncated|unpack_from requires|no more images|cannot load this image|buffer is not large enough"
_UNSUPPORTED = "unsupported|unknown pixel mode|cannot handle|not available|not installed"

_PILLOW = re.compile(r"PIL\.")

# EXIF orientation → what makes the picture upright (EXIF 2.32, tag 0x0112). From 5 on, width and height swap.
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
    """Decode a JPEG, PNG, WebP, GIF, TIFF, BMP or AVIF file; of an animation or of several pages, the first.

    The EXIF turn is applied, transparency lies on white, 16-bit and float channels are scaled to 8 bits.
    Damaged metadata does not matter as long as the picture itself is whole.

    Args:
        data: the whole file.
        target_side: the side in pixels to which the picture will be scaled next. A JPEG is then decoded at
            1/2, 1/4 or 1/8 of its size, if its shorter side stays at least this long: faster, in less memory.
        max_pixels: a picture of more pixels is refused. A reduced JPEG counts by its reduced size, and may be
            stored with 16 times as many pixels (2 times if it is progressive).

    Raises:
        ImageDecodeError: the bytes cannot be decoded; `ErrorKind` lists the kinds.
    """
    if target_side is not None and target_side < 1:
        raise ValueError(f"target_side must be at least 1 pixel, got {target_side}")
    reader = _recognize(data)
    silence_pillow()
    try:
        image = reader(io.BytesIO(data), "")  # `Image.open` would judge the size before the scale is chosen
        width, height = image.size
        if isinstance(image, JpegImageFile) and target_side is not None:
            multiple = _STORED_IN_SCANS if _has_several_scans(image, data) else _STORED_IN_ONE_SCAN
            _check_size(image, multiple * max_pixels)
            image.draft(None, (target_side, target_side))
        _check_size(image, max_pixels)
        image.load()
        if isinstance(image, TiffImageFile):
            # Pillow turns a TIFF while it loads it, and then reports no orientation.
            width, height = image.size
        orientation = orientation_of(image)
        rgb = to_rgb(image)
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
    except ImageDecodeError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageDecodeError("ImageTooLarge", str(error) or "not enough memory to decode it") from error
    except Exception as error:
        # On damaged bytes Pillow's parsers raise nearly every class of exception, struct.error and
        # RuntimeError among them. One that nobody foresaw must be this image's error, not a job's end.
        raise _explain(error, data, reader) from error
    return DecodedImage(rgb, height, width) if orientation >= 5 else DecodedImage(rgb, width, height)


def begins_as_image(data: bytes) -> bool:
    """Whether a file that begins with these bytes, at least 64, may be an image that `decode_image` reads."""
    return any(re.match(signature, data, re.DOTALL) for signature in _READ.values())


def _recognize(data: bytes) -> type[ImageFile]:
    """Choose Pillow's reader by the first bytes of the file, because names and content types are often wrong."""
    if not data:
        raise ImageDecodeError("EmptyFile", "the file has 0 bytes")
    for reader, signature in _READ.items():
        if re.match(signature, data, re.DOTALL):
            return reader
    for name, signature in _REFUSED.items():
        if re.match(signature, data, re.DOTALL):
            known = ", ".join(str(reader.format) for reader in _READ)
            raise ImageDecodeError("UnsupportedImage", f"{name} is not read: convert it to one of {known}")
    raise ImageDecodeError("NotAnImage", f"{len(data)} bytes that begin with {data[:16]!r}")


def silence_pillow() -> None:
    """Suppress Pillow's warnings about damaged metadata, because only pixels matter here.

    The filter covers Pillow's modules and stays active: `warnings.catch_warnings` would also suppress warnings of other
    threads, sometimes permanently.
    """
    if not any(action == "ignore" and module == _PILLOW for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageDecodeError(
            "ImageTooLarge",
            f"{width} × {height} pixels, {max_pixels} is the limit: scale it down, or raise max_pixels",
        )


def _has_several_scans(image: JpegImageFile, data: bytes) -> bool:
    """Whether a JPEG is progressive or has one scan per channel."""
    assert image.fp is not None
    # Pillow has just read the header of the first scan: its length in 2 bytes, its number of channels in 1, …
    header_length = 6 + 2 * image.layers
    start = image.fp.tell() - header_length
    first_has_all_channels = data[start : start + 3] == bytes((0, header_length, image.layers))
    return "progressive" in image.info or not first_has_all_channels


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation from 1 to 8; 1 is upright, and the default if none is stated."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1  # metadata can be damaged in as many ways as pictures; this picture has been decoded
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
    with np.errstate(over="ignore", invalid="ignore"):  # a range beyond float32 spoils this picture alone
        values -= low
        values *= 255 / (high - low) if high > low else 0
    return np.nan_to_num(values, copy=False).round(out=values).clip(0, 255, out=values).astype(np.uint8)


def _explain(error: Exception, data: bytes, reader: type[ImageFile]) -> ImageDecodeError:
    """Determine the kind of fault from the text of Pillow's exception and the length stated in the file."""
    text = f"{reader.format}: {str(error)[:200] or type(error).__name__}"
    if re.search(_UNSUPPORTED, text, re.IGNORECASE):
        return ImageDecodeError("UnsupportedImage", text)
    stated_length = 0
    if reader is WebPImageFile:
        stated_length = 8 + int.from_bytes(data[4:8], "little")
    elif reader is TiffImageFile and b"*" in data[2:4]:  # not BigTIFF; where its first directory begins
        stated_length = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
    if stated_length > len(data) or re.search(_TRUNCATED, text, re.IGNORECASE):
        return ImageDecodeError("TruncatedImage", f"{text}; the file ends early, after {len(data)} bytes")
    return ImageDecodeError("CorruptImage", text)
