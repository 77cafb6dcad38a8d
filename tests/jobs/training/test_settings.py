"""Defaults of the training job's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from captionlib.checkpoints import read_config, resolve_checkpoint
from captionlib.config import DecoderConfig, SearchConfig
from jobs.cli.arguments import parse
from jobs.training.settings import TrainSettings, defaults_of


def settings(*arguments: str) -> TrainSettings:
    given = ["features", "run", *arguments]
    return parse(TrainSettings, given, prog="train", description="", defaults=defaults_of(given))


def test_a_new_decoder_has_the_usual_defaults() -> None:
    assert settings().decoder == DecoderConfig()
    assert settings().search == SearchConfig()


def test_a_run_that_starts_from_a_checkpoint_has_its_decoder_and_search() -> None:
    start = read_config(resolve_checkpoint("default"))
    assert start.model.decoder != DecoderConfig()
    assert start.search.reranks
    made = settings("--start-from", "default")
    assert made.decoder == start.model.decoder
    assert made.search == replace(start.search, detector_weight=0.0)  # the run trains no word detector
    assert settings("--start-from", "default", "--decoder.dropout", "0.1").decoder == replace(
        start.model.decoder, dropout=0.1
    )


def test_a_settings_file_can_name_the_start(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("start_from: default\nsearch: {beam_width: 2}\n")
    made = settings("--config", str(file))
    start = read_config(resolve_checkpoint("default"))
    assert made.start_from == "default"
    assert made.decoder == start.model.decoder
    assert made.search == replace(start.search, detector_weight=0.0, beam_width=2)


def test_settings_of_all_groups_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "num_workers: 2\ndata: {kind: coco, root: there}\nencoder: {name: resnet50, kind: torchvision}\n"
        "training: {epochs: 3, optimizer: {learning_rate: 0.5}}\n"
    )
    made = settings("--config", str(file), "--training.epochs", "4")
    assert (made.num_workers, made.data.kind, made.encoder.name) == (2, "coco", "resnet50")
    assert (made.training.epochs, made.training.optimizer.learning_rate) == (4, 0.5)


def test_a_start_that_cannot_be_read_is_left_to_the_job() -> None:
    assert settings("--start-from", "nowhere/best").decoder == DecoderConfig()
