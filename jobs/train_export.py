"""From the run's best epoch to a checkpoint that captions: decoder weights, the encoder's, words, and a model card."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from captionlib.captioner import Captioner
from captionlib.checkpoints import CONFIG, save_checkpoint, weights_fingerprint
from captionlib.config import to_dict
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder
from captionlib.report import curves_png, training_page, write_bytes, write_page
from jobs.train_data import Prepared
from jobs.train_loop import STATE
from jobs.train_run import BEST
from jobs.train_settings import TrainSettings


def export_best(settings: TrainSettings, prepared: Prepared, result: Any) -> str:
    """Write RUN/best and RUN/metrics.json; returns the checkpoint's folder.

    Raises:
        ValueError: the encoder at hand is not the one that made the features.
    """
    import fsspec
    import torch

    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["score"])
    with best.as_directory() as directory:
        state = torch.load(Path(directory) / STATE, map_location="cpu", weights_only=True)["learner"]
    with result.checkpoint.as_directory() as directory:
        history = json.loads((Path(directory) / "history.json").read_text())
    decoder = build_decoder(settings.decoder, prepared.encoder.feature_dim, len(prepared.vocabulary))
    decoder.load_state_dict(state["average"] or state["decoder"])
    # Ready-made vectors of an unknown encoder train a decoder for other such vectors, not for photos.
    encoder = None if prepared.encoder.kind == "vectors" else build_encoder(prepared.encoder, pretrained=True)
    known = prepared.encoder_fingerprint
    if encoder is not None and known is not None and weights_fingerprint(encoder) != known:
        raise ValueError(
            f"the weights of {prepared.encoder.name} here are not those that made {settings.features}: "
            "extract the features again, or install the packages that were used then"
        )
    training = {
        "settings": to_dict(settings.training),
        # Kind and splits, but no paths: a checkpoint is passed on, and they are nobody's business.
        "data": {name: getattr(settings.data, name) for name in ("kind", "train_split", "dev_split")},
        "images": len(prepared.train.names),
        "best_epoch": metrics["epoch"],
        "scores": {name: metrics[name] for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")},
        "history": history,
    }
    run = "/".join(settings.storage())
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(
            directory,
            Captioner(encoder, decoder),
            prepared.model,
            prepared.vocabulary,
            search=settings.search,
            training=training,
            card=_model_card(settings, prepared, training),
        )
        fs, root = fsspec.core.url_to_fs(run)
        fs.makedirs(f"{root}/{BEST}", exist_ok=True)
        with fs.open(f"{root}/metrics.json", "w") as stream:
            json.dump(history, stream, indent=2)
        # config.json comes last: a folder that has it is complete.
        for file in sorted(Path(directory).iterdir(), key=lambda file: file.name == CONFIG):
            fs.put_file(str(file), f"{root}/{BEST}/{file.name}")
    _write_report(settings, prepared, history)
    return f"{run}/{BEST}"


def _write_report(settings: TrainSettings, prepared: Prepared, history: list[dict[str, Any]]) -> None:
    """RUN/report.html and RUN/curves.png."""
    run = "/".join(settings.storage())
    title = f"{prepared.encoder.name} + {settings.decoder.kind}"
    seconds = sum(row["seconds"] for row in history)
    page = training_page(history, title=title, text=run, seconds=seconds, settings=to_dict(settings.training))
    write_page(f"{run}/report.html", page)
    try:
        write_bytes(f"{run}/curves.png", curves_png(history, title=title))
    except ValueError as error:  # without matplotlib; the page has the same curves
        print(f"curves.png was left out: {error}", file=sys.stderr)


def _model_card(settings: TrainSettings, prepared: Prepared, training: dict[str, Any]) -> str:
    scores = {name: f"{100 * value:.1f}" for name, value in training["scores"].items()}
    history = training["history"]
    rows = "\n".join(
        f"| {row['epoch']} | {row['train_loss']:.3f} | {row['dev_loss']:.3f} | {100 * row['bleu_4']:.1f} | "
        f"{row['cider_d']:.3f} |"
        for row in history
    )
    encoder, decoder, search = prepared.encoder, settings.decoder, settings.search
    decoding = f"beam {search.beam_width}" if search.method == "beam" else search.method
    bleu = " / ".join(scores[f"bleu_{order}"] for order in range(1, 5))
    shape = f"{encoder.num_positions} x {encoder.feature_dim}"
    return f"""# {encoder.name} + {decoder.kind}

Writes one English sentence about a photo.

| | |
| --- | --- |
| encoder | {encoder.name}, ImageNet weights, frozen; {encoder.features} features, {shape} |
| decoder | {decoder.kind}, attention: {decoder.attention}, width {decoder.hidden_dim} |
| vocabulary | {len(prepared.vocabulary):,} words (at least {settings.training.min_count} occurrences) |
| trained on | {settings.data.kind}, {len(prepared.train.names):,} images |
| epochs | {len(history)}, the best by dev CIDEr-D is {training["best_epoch"]} |
| minutes | {sum(row["seconds"] for row in history) / 60:.0f} |

Scores on {len(prepared.dev.names):,} dev images ({decoding}): BLEU-1..4 {bleu}, ROUGE-L {scores["rouge_l"]},
CIDEr-D {training["scores"]["cider_d"]:.3f}.

| epoch | train loss | dev loss | BLEU-4 | CIDEr-D |
| --- | --- | --- | --- | --- |
{rows}
"""
