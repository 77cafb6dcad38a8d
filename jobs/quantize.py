"""Convert the encoder of a checkpoint to 8-bit integers, which CPUs run about twice as fast.

    python -m jobs.quantize runs/mine/best photos/ runs/mine/int8
    python -m jobs.caption photos/ out --model runs/mine/int8

The photos should resemble those that will be captioned; about a hundred are enough. Ray is not needed. With
--eight-bit-decoder, the matrices of the decoder are stored in 8-bit integers as well, so that the checkpoint takes less
room. They are converted back when it is loaded, so the decoder is as fast as before.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tyro.conf import Positional

from captionlib.config import EngineKind
from captionlib.errors import UserError
from captionlib.ranges import at_least, check_ranges
from captionlib.storage.folder import Folder
from jobs.cli.arguments import parse
from jobs.cli.exit_codes import run_command

if TYPE_CHECKING:
    from captionlib.encoders import Encoder

PROG = "python -m jobs.quantize"
_LEAST_SIMILAR = 0.95
_KINDS: tuple[EngineKind, ...] = ("openvino", "int8")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Settings of the quantization."""

    model: Positional[str]
    """Checkpoint: a folder, a URL, or `default` for the one that comes with the project."""
    input: Positional[str]
    """Photos: a folder, a pattern or a URL, as for jobs.caption."""
    output: Positional[str]
    """Folder or URL of the new checkpoint. It may be the same as that of the original."""
    sample: int = 128
    """Number of photos, drawn at random, that determine the ranges of the activations. Half as many more are used to
compare the two encoders.
"""
    eight_bit_decoder: bool = False
    """Store the matrices of the decoder in 8-bit integers, with one scale per row. This makes the checkpoint smaller,
not faster, and changes log-probabilities, and sometimes words, slightly.
"""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line overrides it."""

    def __post_init__(self) -> None:
        check_ranges(self, "--", sample=at_least(1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 written, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings = parse(QuantizeSettings, arguments, prog=PROG, description=__doc__ or "")
    return run_command(PROG, lambda: quantize(settings))


def quantize(settings: QuantizeSettings) -> int:
    """Calibrate, write and compare; return the exit code.

    Raises:
        UserError, OSError: the photos, the output or the checkpoint cannot be used.
    """
    from captionlib.checkpoints import (
        WEIGHTS,
        add_int8_encoder,
        changed_copy,
        compress_weights,
        load_checkpoint,
        load_weights,
        resolve_checkpoint,
    )
    from captionlib.encoders import build_encoder
    from captionlib.engines.quantization import quantize_encoder, similarity
    from captionlib.images.transforms import EncoderSquare
    from jobs.benchmarking.measure import load, sample_images
    from jobs.cluster.resources import num_cpus

    directory = resolve_checkpoint(settings.model)
    checkpoint = load_checkpoint(directory)
    config = checkpoint.model.encoder
    if config.kind == "vectors":
        raise UserError(f"the checkpoint {settings.model} has no encoder for images: give one that has")
    output = Folder.of(settings.output)
    output.check_writable()
    found = sample_images((settings.input,), settings.sample + settings.sample // 2)
    pixels = load(found.images, EncoderSquare(config.preprocessing)).pixels
    measured, compared = pixels[: settings.sample], pixels[settings.sample :] or pixels
    encoder = build_encoder(config)
    load_weights(encoder, checkpoint.part("encoder"), str(directory))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "int8.onnx"
        print(f"calibrating on {len(measured)} photos", file=sys.stderr, flush=True)
        quantize_encoder(encoder, config.preprocessing, measured, graph)
        cosine = similarity(encoder, config.preprocessing, graph, compared)
        rates = _rates(checkpoint.fingerprint, encoder, graph, compared, num_cpus())
        with changed_copy(directory, output) as draft:
            add_int8_encoder(draft, graph.read_bytes())
            sizes = compress_weights(draft) if settings.eight_bit_decoder else None
    print(
        f"{config.name} on this machine: {rates[0]:.0f} images/s in float32, {rates[1]:.0f} in 8-bit integers\n"
        f"features compared on {len(compared)} photos: mean cosine {cosine:.3f}"
    )
    if sizes is not None:
        print(f"decoder stored in 8-bit integers: {WEIGHTS} has {sizes[1]:,} bytes instead of {sizes[0]:,}")
    print(f"written to {output.url}; jobs.caption uses it unless --engine openvino is given")
    if cosine < _LEAST_SIMILAR:
        print(
            "the features differ considerably: caption a dataset with --engine int8 and with --engine openvino, and "
            "compare the scores of jobs.evaluate before you use it",
            file=sys.stderr,
        )
    return 0


def _rates(fingerprint: str, encoder: Encoder, graph: Path, pixels: Sequence[np.ndarray], threads: int) -> list[float]:
    """Return images per second in float32 and in integers, medians of three."""
    import torch

    from captionlib.engines.build import build_engine

    batch = np.stack(pixels[:32])  # (B, S, S, 3)

    def rate(engine: Callable[[np.ndarray], object]) -> float:
        engine(batch)
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            engine(batch)
            seconds.append(time.perf_counter() - started)
        return len(batch) / sorted(seconds)[1]

    return [
        rate(
            build_engine(
                encoder,
                encoder.config.preprocessing,
                fingerprint=fingerprint,
                device=torch.device("cpu"),
                num_threads=threads,
                kind=kind,
                int8_graph=graph,
            )
        )
        for kind in _KINDS
    ]


if __name__ == "__main__":
    sys.exit(main())
