"""JPEG XL files through pillow-jxl-plugin, with the size read beforehand: the plugin decodes the pixels at once."""

from __future__ import annotations

import io

from PIL import Image

_START = b"\xff\x0a"
_DISTRIBUTIONS = ((9, 1), (13, 1), (18, 1), (30, 1))  # bits and offset of a dimension (ISO 18181-1, SizeHeader)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def open_image(data: bytes) -> Image.Image:
    """Decode a file. EXIF data are dropped where the decoder has turned the image already.

    Raises:
        ModuleNotFoundError: pillow-jxl-plugin is not installed.
        RuntimeError: the file is damaged.
    """
    from pillow_jxl.JpegXLImagePlugin import JXLImageFile

    try:
        image: Image.Image = JXLImageFile(io.BytesIO(data), "")
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            # The Rust code of the decoder raises it; it is not a subclass of Exception.
            raise RuntimeError(str(error)) from error
        if str(error).startswith("Generic Error"):  # the message continues with several lines on building the library
            raise RuntimeError("it cannot be decoded") from error
        raise
    if not image.jpeg:  # type: ignore[attr-defined]
        image.info.pop("exif", None)
    return image


def size(data: bytes) -> tuple[int, int]:
    """Read width and height in pixels, before any rotation (ISO 18181-1, SizeHeader).

    Raises:
        ValueError: the header is incomplete.
    """
    header = _codestream(data)[2:18]
    if len(header) < 4:
        raise ValueError("the image header is truncated")
    bits = _Bits(int.from_bytes(header, "little"))
    is_small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if is_small else bits.dimension()
    ratio = bits.take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio - 1]
        return height * numerator // denominator, height
    return (8 * (1 + bits.take(5)) if is_small else bits.dimension()), height


class _Bits:
    """Bits from the lowest on."""

    def __init__(self, value: int) -> None:
        self.value = value

    def take(self, count: int) -> int:
        taken = self.value & ((1 << count) - 1)
        self.value >>= count
        return taken

    def dimension(self) -> int:
        count, offset = _DISTRIBUTIONS[self.take(2)]
        return offset + self.take(count)


def _codestream(data: bytes) -> bytes:
    """The beginning of the codestream: the file itself, or the content of a box in its container."""
    if data.startswith(_START):
        return data[:64]
    place = 0
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        start = place + (16 if length == 1 else 8)
        if kind in (b"jxlc", b"jxlp"):
            start += 4 if kind == b"jxlp" else 0
            return data[start : start + 64]
        if length == 1:
            length = int.from_bytes(data[place + 8 : place + 16], "big")
        if length < 8:
            break
        place += length
    return b""
