"""Images: bytes → RGB pixels → the square that a model is shown."""

from captionlib.images.decode import DecodedImage, ImageDecodeError, decode_image

__all__ = ["DecodedImage", "ImageDecodeError", "decode_image"]
