"""The image formats that are read: one table row per format, and the formats that are recognised but rejected.

To add a format, add a row to `FORMATS`: what its files begin with, the endings of their names, and a function that
makes an image of Pillow from their bytes, whose pixels are decoded later, by `load`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captionlib.images import jpeg_xl

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Format:
    """An image format."""

    name: str
    signature: bytes
    """Regular expression for the first 64 bytes; `.` stands for any byte."""
    endings: tuple[str, ...]
    """Endings of file names, in lower case, with the dot."""
    open: Callable[[bytes], Image.Image]
    """Reads the header; the pixels are decoded by `load`. Raises any exception on damaged bytes, and
    ModuleNotFoundError if its library is not installed."""
    size: Callable[[bytes], Size] | None = None
    """Reads the size in pixels, where `open` decodes the pixels at once."""
    stated_length: Callable[[bytes], int] | None = None
    """Reads how many bytes the file must have at least, to tell truncated files from corrupt ones."""
    extra: str | None = None
    """The optional dependencies of captionlib with the library."""


def _with(reader: type[ImageFile]) -> Callable[[bytes], Image.Image]:
    # `Image.open` would apply Pillow's own pixel limit before a reduced scale can be chosen.
    return lambda data: reader(io.BytesIO(data), "")


def _open_heif(data: bytes) -> Image.Image:
    from pillow_heif import HeifImageFile

    image: Image.Image = HeifImageFile(io.BytesIO(data), "")
    return image


def _riff_length(data: bytes) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _first_directory(data: bytes) -> int:
    """Where the first directory of a TIFF begins; 0 for BigTIFF."""
    if b"*" not in data[2:4]:
        return 0
    return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")


def end_of_boxes(data: bytes) -> int:
    """Where the last box begun in a file of boxes ends (ISO 14496-12, section 4.2); 0 if it is no such file."""
    place = 0
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if length == 1:
            length = int.from_bytes(data[place + 8 : place + 16], "big")
        if length == 0:  # to the end of the file
            return len(data)
        if length < 8:
            return 0
        place += length
    return place


FORMATS = (
    Format("JPEG", rb"\xff\xd8\xff", (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".mpo"), _with(JpegImageFile)),
    Format("PNG", rb"\x89PNG\r\n\x1a\n", (".png", ".apng"), _with(PngImageFile)),
    Format("WebP", rb"RIFF....WEBP", (".webp",), _with(WebPImageFile), stated_length=_riff_length),
    Format("GIF", rb"GIF8[79]a", (".gif",), _with(GifImageFile)),
    Format("TIFF", rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff"), _with(TiffImageFile), stated_length=_first_directory),
    Format("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", (".bmp", ".dib"), _with(BmpImageFile)),
    Format(
        "AVIF",
        rb"....ftyp(avi[fs]|m[is]f1.{0,40}avi[fs])",
        (".avif", ".avifs"),
        _with(AvifImageFile),
        stated_length=end_of_boxes,
    ),
    Format(
        "HEIF",
        rb"....ftyp(hei|hev|m[is]f1)",
        (".heic", ".heif", ".heics", ".heifs", ".hif"),
        _open_heif,
        stated_length=end_of_boxes,
        extra="formats",
    ),
    Format(
        "JPEG 2000",
        rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
        _with(Jpeg2KImageFile),
        stated_length=end_of_boxes,
    ),
    Format(
        "JPEG XL",
        rb"\xff\x0a|\0\0\0\x0cJXL ",
        (".jxl",),
        jpeg_xl.open_image,
        size=jpeg_xl.size,
        stated_length=end_of_boxes,
        extra="formats",
    ),
)
"""In the order in which they are tried: AVIF files may look like HEIF."""

_REJECTED = {
    "SVG": rb"\s*(<\?xml.{,400})?<svg",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\x01\x02]\0",
    "Netpbm": rb"P[1-7]\s",
    "video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
}

IMAGE_ENDINGS = tuple(ending for known in FORMATS for ending in known.endings)
"""Endings of the names of image files, in lower case."""


def find_format(data: bytes) -> Format | None:
    """Return the format of a file by its first bytes, because names and content types are often wrong."""
    return next((known for known in FORMATS if re.match(known.signature, data, re.DOTALL)), None)


def rejected_format(data: bytes) -> str | None:
    """Return the name of a format that is recognised, but not read."""
    return next((name for name, signature in _REJECTED.items() if re.match(signature, data, re.DOTALL)), None)
