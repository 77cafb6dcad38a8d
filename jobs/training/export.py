"""Exports the best epoch of a run as a checkpoint: weights of decoder and encoder, vocabulary, and a model card."""

from __future__ import annotations

import tempfile
from typing import Any

from torch import Tensor, nn

from captionlib.captioners.from_features import Captioner
from captionlib.checkpoints import publish_checkpoint, save_checkpoint, weights_fingerprint
from captionlib.config import to_dict
from captionlib.decoders import build_decoder
from captionlib.errors import UserError
from captionlib.metrics import HEADLINE, LABELS, MAIN_SCORE
from captionlib.storage.folder import Folder
from captionlib.training.encoder_decoder import EncoderDecoder
from jobs.training.checkpoint import SCORE, load
from jobs.training.data import Prepared
from jobs.training.model import build_model, starting_encoder
from jobs.training.report import RunReport, metrics_only
from jobs.training.run import BEST


def export_best(prepared: Prepared, encoder: nn.Module | None, result: Any, report: RunReport) -> str:
    """Write RUN/best and the final report of the run; return the checkpoint's folder.

    Args:
        encoder: result of `find_encoder`.
        result: result of Ray Train.
    """
    settings = prepared.settings
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1][SCORE])
    with best.as_directory() as directory:
        learner = load(directory)[0]["learner"]
    with result.checkpoint.as_directory() as directory:
        history = load(directory)[1]
    report.write(history)
    training = {
        "settings": to_dict(settings.training),
        # Paths are left out, because checkpoints are shared and paths may be private.
        "data": {name: getattr(settings.data, name) for name in ("kind", "train_split", "dev_split")},
        "images": len(prepared.train.paths),
        "best_epoch": metrics["epoch"],
        "scores": {name: metrics[name] for name in LABELS if name in metrics},
        "history": metrics_only(history),
    }
    folder = Folder.of(settings.run) / BEST
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(
            directory,
            _captioner(prepared, encoder, learner["average"] or learner["decoder"]),
            prepared.model,
            prepared.vocabulary,
            search=settings.search,
            training=training,
            card=_model_card(prepared, training),
        )
        publish_checkpoint(directory, folder)
    return folder.url


def find_encoder(prepared: Prepared) -> nn.Module | None:
    """Return the encoder that made the features; None for ready-made features, and if the encoder runs in training.

    Raises:
        UserError: the encoder is not available.
    """
    # With ready-made vectors of an unknown encoder, the decoder can caption only such vectors, not photos.
    if prepared.settings.from_images or prepared.encoder.kind == "vectors":
        return None
    encoder = starting_encoder(prepared)
    known = prepared.encoder_fingerprint
    if known is not None and weights_fingerprint(encoder) != known:
        where = prepared.settings.encoder_checkpoint or "the library"
        raise UserError(
            f"the weights of {prepared.encoder.name} in {where} are not those that made {prepared.settings.source}: "
            "extract the features again with these, or name with --encoder.checkpoint the model that made them"
        )
    return encoder


def _captioner(prepared: Prepared, encoder: nn.Module | None, weights: dict[str, Tensor]) -> Captioner:
    """Combine the trained weights with the encoder that they were trained with."""
    if prepared.settings.from_images:
        model = build_model(prepared)
        model.load_state_dict(weights)
        assert isinstance(model, EncoderDecoder)
        return Captioner(model.encoder, model.decoder)
    decoder = build_decoder(prepared.settings.decoder, prepared.encoder.feature_dim, len(prepared.vocabulary))
    decoder.load_state_dict(weights)
    return Captioner(encoder, decoder)


def _model_card(prepared: Prepared, training: dict[str, Any]) -> str:
    settings = prepared.settings
    scores = ", ".join(
        f"{LABELS[name].title} {LABELS[name].short(value)}" for name, value in training["scores"].items()
    )
    history = training["history"]
    rows = "\n".join(
        f"| {row['epoch']} | {row['train_loss']:.3f} | {row['dev_loss']:.3f} | "
        f"{' | '.join(LABELS[name].short(row[name]) for name in HEADLINE)} |"
        for row in history
    )
    encoder, decoder, search = prepared.encoder, settings.decoder, settings.search
    decoding = f"beam {search.beam_width}" if search.method == "beam" else search.method
    stage = settings.encoder.train_from
    weights = "ImageNet weights" if prepared.encoder_weights is None else "weights of another captioner"
    weights += f", trained from {stage} on" if stage else ", frozen"
    has_choice = decoder.kind in ("lstm_attention", "lstm_adaptive")
    attention = f"attention: {decoder.attention}, " if has_choice else ""
    shape = f"{encoder.num_positions} x {encoder.feature_dim}"
    return f"""# {encoder.name} + {decoder.kind}

Writes one English sentence about a photo.

| | |
| --- | --- |
| encoder | {encoder.name}, {weights}; {encoder.features} features, {shape} |
| decoder | {decoder.kind}, {attention}width {decoder.hidden_dim} |
| vocabulary | {len(prepared.vocabulary):,} words (at least {settings.training.min_count} occurrences) |
| trained on | {settings.data.kind}, {len(prepared.train.paths):,} images |
| epochs | {len(history)}, the best by dev {LABELS[MAIN_SCORE].title} is {training["best_epoch"]} |
| minutes | {sum(row["seconds"] for row in history) / 60:.0f} |

Scores on {len(prepared.dev.paths):,} dev images ({decoding}): {scores}.

| epoch | train loss | dev loss | {" | ".join(LABELS[name].title for name in HEADLINE)} |
| --- | --- | --- |{" --- |" * len(HEADLINE)}
{rows}
"""
