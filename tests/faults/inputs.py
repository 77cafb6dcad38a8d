"""What the job under test works on: small photos that all differ, some of them broken, and a small captioner."""

from __future__ import annotations

import colorsys
import functools
import io
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

PHOTOS = Path(__file__).parent.parent / "photos"
SIDE = 160
# Names that a URL, a signature or a pattern could trip over.
ODD_NAMES = (
    "a b.jpg",
    "a+b.jpg",
    "a%20b.jpg",
    "café.jpg",
    "猫/1.jpg",
    "#1?.jpg",
    "x=1&y=2.jpg",
    "[1].jpg",
    "UPPER.JPG",
)


def photo(number: int) -> bytes:
    """A JPEG, the same for the same number: a cut of one of the photos in other colours. Some are broken."""
    chance = random.Random(number)
    whole = _photos()[number % len(_photos())]
    side = chance.randint(SIDE, min(whole.size))
    left, top = (chance.randint(0, length - side) for length in whole.size)
    image = whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    tint = colorsys.hsv_to_rgb(chance.random(), 0.6, 1.0)
    red, green, blue = tint
    image = image.convert("RGB", (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    data = sink.getvalue()
    if is_broken(number):
        return b"" if number % 2 else data[: len(data) // 2]
    return data


def is_broken(number: int) -> bool:
    """Whether a photo is empty or cut short, so that its row must be an error."""
    return number % 97 == 50


def photo_name(number: int) -> str:
    """Its key below the prefix."""
    return ODD_NAMES[number] if number < len(ODD_NAMES) else f"{number % 10}/{number:06d}.jpg"


def upload_photos(client: Any, bucket: str, prefix: str, count: int) -> None:
    """Put photos 0 to count - 1 into a bucket, and two objects that are no images."""

    def put(number: int) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{photo_name(number)}", Body=photo(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(count)))
    client.put_object(Bucket=bucket, Key=f"{prefix}/notes.txt", Body=b"no image")
    client.put_object(Bucket=bucket, Key=f"{prefix}/.hidden/1.jpg", Body=photo(0))


def make_checkpoint(directory: Path) -> Path:
    """A captioner of 64-pixel images whose words mean nothing, but differ from photo to photo."""
    import torch

    from captionlib.captioners.from_features import Captioner
    from captionlib.checkpoints import save_checkpoint
    from captionlib.config import DecoderConfig, ModelConfig, SearchConfig
    from captionlib.decoders import build_decoder
    from captionlib.encoders import build_encoder, describe_encoder
    from captionlib.images.pixels import normalize, to_pixels
    from captionlib.vocabulary import SPECIAL_WORDS, Vocabulary

    torch.manual_seed(1)
    vocabulary = Vocabulary([*SPECIAL_WORDS, *(a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u"))])
    model = ModelConfig(
        encoder=describe_encoder("timm", "test_efficientnet", size=64),
        decoder=DecoderConfig(projection_dim=32, hidden_dim=32, embedding_dim=32, attention_dim=32, dropout=0.0),
    )
    encoder = build_encoder(model.encoder)
    # Batch norm that has seen no image makes all images alike.
    pixels = [
        to_pixels(Image.open(io.BytesIO(photo(i))), model.encoder.preprocessing)
        for i in range(64, 96)
        if not is_broken(i)
    ]
    images = normalize(torch.stack([torch.from_numpy(p.copy()) for p in pixels]), model.encoder.preprocessing)
    encoder.train()
    with torch.no_grad():
        for _ in range(30):
            encoder(images)
    decoder = build_decoder(model.decoder, model.encoder.feature_dim, len(vocabulary))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)  # far from uniform, so that rounding does not choose the words
    captioner = Captioner(encoder.eval(), decoder.eval())
    save_checkpoint(directory, captioner, model, vocabulary, search=SearchConfig(beam_width=2, max_tokens=10))
    return directory


@functools.cache
def _photos() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
