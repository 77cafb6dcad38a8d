"""Checkpoints: every way in which one can be damaged has its message, and what was saved comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from captionlib.captioners.from_features import Captioner
from captionlib.checkpoints import (
    CARD,
    CONFIG,
    INT8_ENCODER,
    VOCABULARY,
    WEIGHTS,
    CheckpointError,
    add_int8_encoder,
    check_checkpoint,
    checkpoint_fingerprint,
    load_checkpoint,
    load_weights,
    locate,
    read_config,
    resolve_checkpoint,
    save_checkpoint,
    weights_fingerprint,
)
from captionlib.config import DecoderConfig, EncoderConfig, ModelConfig, SearchConfig
from captionlib.vocabulary import Vocabulary

MODEL = ModelConfig(
    encoder=EncoderConfig(kind="vectors", name="mine", features="pooled", feature_dim=6, num_positions=1),
    decoder=DecoderConfig(hidden_dim=8),
)


class Decoder(nn.Module):
    """Weights of every sort: normal, beyond float16, batch norm's, integers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_var.fill_(1e6)  # type: ignore[union-attr]
        self.register_buffer("places", torch.arange(3))


@pytest.fixture
def module() -> nn.Module:
    return Captioner(None, Decoder())  # type: ignore[arg-type]


@pytest.fixture
def saved(tmp_path: Path, module: nn.Module) -> Path:
    directory = tmp_path / "saved"
    vocabulary = Vocabulary.build([["a", "dog"]])
    save_checkpoint(
        directory,
        module,
        MODEL,
        vocabulary,
        search=SearchConfig(beam_width=5),
        training={"epochs": 3},
        card="# Card\n",
    )
    return directory


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# ---- what is saved comes back ----


def test_it_comes_back(saved: Path, module: nn.Module) -> None:
    checkpoint = load_checkpoint(saved)
    assert checkpoint.model == MODEL
    assert checkpoint.search == SearchConfig(beam_width=5)
    assert checkpoint.training == {"epochs": 3}
    assert checkpoint.vocabulary.words[4:] == ["a", "dog"]
    assert (saved / CARD).read_text() == "# Card\n"
    assert vars(read_config(saved)).items() <= vars(checkpoint).items()

    for name, value in checkpoint.weights.items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=2**-11, atol=0)
        assert value.dtype in (torch.float32, torch.int64)
    other = Captioner(None, Decoder())  # type: ignore[arg-type]
    nn.init.zeros_(other.decoder.linear.weight)  # type: ignore[arg-type, union-attr]
    load_weights(other, checkpoint.weights, "here")
    assert weights_fingerprint(other) == weights_fingerprint(module)


def test_weights_are_float16_where_they_fit(saved: Path) -> None:
    stored = load_file(saved / WEIGHTS)
    assert stored["decoder.linear.weight"].dtype == torch.float16
    assert stored["decoder.norm.running_var"].dtype == torch.float32
    assert "decoder.norm.num_batches_tracked" not in stored


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_not_saved(tmp_path: Path, module: nn.Module, value: float) -> None:
    module.decoder.linear.bias.data[1] = value  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match=r"decoder\.linear\.bias are not finite"):
        save_checkpoint(tmp_path, module, MODEL, Vocabulary.build([["a"]]))


def test_an_integer_encoder_belongs_to_its_checkpoint(saved: Path, module: nn.Module) -> None:
    assert load_checkpoint(saved).int8_encoder is None
    before = checkpoint_fingerprint(saved)
    add_int8_encoder(saved, b"a graph")
    checkpoint = load_checkpoint(saved)
    assert checkpoint.int8_encoder == saved / INT8_ENCODER
    assert checkpoint.int8_encoder.read_bytes() == b"a graph"
    assert checkpoint.training == {"epochs": 3}
    assert checkpoint.fingerprint != before
    (saved / INT8_ENCODER).write_bytes(b"another")
    with pytest.raises(CheckpointError, match="are not those that were written together"):
        load_checkpoint(saved)
    save_checkpoint(saved, module, MODEL, Vocabulary.build([["a", "dog"]]))
    assert load_checkpoint(saved).int8_encoder is None


# ---- the fingerprint ----


def change_word(saved: Path) -> None:
    edit(saved / VOCABULARY, lambda data: data["words"].__setitem__(5, "cat"))


def change_weight(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    weights["decoder.linear.weight"][2, 3] += 0.01
    save_file(weights, saved / WEIGHTS)


def change_setting(saved: Path) -> None:
    edit(saved / CONFIG, lambda data: data["model"]["encoder"]["preprocessing"].update(square="pad"))


def change_search(saved: Path) -> None:
    edit(saved / CONFIG, lambda data: data["search"].update(beam_width=2))


def change_training(saved: Path) -> None:
    edit(saved / CONFIG, lambda data: data["training"].update(epochs=4))


def change_card(saved: Path) -> None:
    (saved / CARD).write_text("other")


@pytest.mark.parametrize("change", [change_word, change_weight, change_setting])
def test_what_changes_captions_changes_the_fingerprint(saved: Path, change: Callable[[Path], None]) -> None:
    before = checkpoint_fingerprint(saved)
    change(saved)
    assert checkpoint_fingerprint(saved) != before
    with pytest.raises(CheckpointError, match="are not those that were written together"):
        load_checkpoint(saved)


@pytest.mark.parametrize("change", [change_search, change_training, change_card])
def test_what_does_not_change_captions_leaves_it(saved: Path, change: Callable[[Path], None]) -> None:
    before = checkpoint_fingerprint(saved)
    change(saved)
    assert checkpoint_fingerprint(saved) == before
    assert load_checkpoint(saved).fingerprint == before


def test_it_is_the_same_everywhere(tmp_path: Path, saved: Path, module: nn.Module) -> None:
    save_checkpoint(tmp_path / "again", module, MODEL, Vocabulary.build([["a", "dog"]]))
    assert checkpoint_fingerprint(tmp_path / "again") == checkpoint_fingerprint(saved)
    assert len(checkpoint_fingerprint(saved)) == 16


def test_a_checkpoint_without_a_stored_one_loads(saved: Path) -> None:
    edit(saved / CONFIG, lambda data: data.pop("fingerprint"))
    change_word(saved)
    assert load_checkpoint(saved).vocabulary.words[5] == "cat"


def test_the_fingerprint_of_weights() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert weights_fingerprint(one) == weights_fingerprint(other)
    other.weight.data[0, 0] += 0.01
    assert weights_fingerprint(one) != weights_fingerprint(other)


# ---- damage ----


def cut_weights(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:-1])


def cut_header(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:20])


def flip_header(saved: Path) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[9] ^= 0xFF
    (saved / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: (saved / CONFIG).unlink(), f"holds no {CONFIG}"),
        (lambda saved: (saved / VOCABULARY).unlink(), f"holds no {VOCABULARY}"),
        (lambda saved: (saved / WEIGHTS).unlink(), f"holds no {WEIGHTS}"),
        (lambda saved: (saved / CONFIG).write_text("{"), f"{CONFIG} is damaged"),
        (lambda saved: (saved / CONFIG).write_bytes(b"\xff"), f"{CONFIG} is damaged"),
        (lambda saved: (saved / CONFIG).write_text("[]"), f"{CONFIG} is damaged"),
        (lambda saved: (saved / VOCABULARY).write_text("{}"), f"{VOCABULARY} is damaged"),
        (lambda saved: (saved / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is damaged .*cut short, at 0 bytes"),
        (cut_weights, f"{WEIGHTS} is damaged .*it has .* bytes instead of"),
        (cut_header, f"{WEIGHTS} is damaged .*cut short, at 20 bytes"),
        (flip_header, f"{WEIGHTS} is damaged .*it is no safetensors file"),
        (
            lambda saved: edit(saved / CONFIG, lambda data: data.update(format=1)),
            "is of format 1 .* reads formats 2 and 3",
        ),
        (lambda saved: edit(saved / CONFIG, lambda data: data.pop("search")), "'search' is missing"),
        (
            lambda saved: edit(saved / CONFIG, lambda data: data["model"]["decoder"].update(depth=3)),
            f"{CONFIG}: model.decoder: unknown setting 'depth'",
        ),
        (
            lambda saved: edit(saved / CONFIG, lambda data: data["search"].update(beam_width=0)),
            f"{CONFIG}: search.beam_width must be at least 1",
        ),
    ],
)
def test_damage(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    check_checkpoint(saved)
    damage(saved)
    for look in (check_checkpoint, load_checkpoint):
        with pytest.raises(CheckpointError, match=message):
            look(saved)


def test_any_flipped_byte_is_noticed(saved: Path) -> None:
    for name in (WEIGHTS, VOCABULARY):
        data = (saved / name).read_bytes()
        for place in range(0, len(data), max(1, len(data) // 40)):
            (saved / name).write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
            with pytest.raises(CheckpointError):
                load_checkpoint(saved)
        (saved / name).write_bytes(data)


@pytest.mark.parametrize("name", ["none", "file"])
def test_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=f"no checkpoint at .*{name}: give the directory"):
        check_checkpoint(tmp_path / name)


def test_weights_that_do_not_fit(module: nn.Module) -> None:
    weights = {name: value for name, value in module.state_dict().items() if not name.endswith("tracked")}
    weights["decoder.linear.weight"] = torch.zeros(4, 7)
    weights["decoder.extra"] = weights.pop("decoder.linear.bias")
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, weights, "over there")
    message = str(caught.value)
    assert message.startswith("over there: ")
    assert "missing: decoder.linear.bias" in message
    assert "left over: decoder.extra" in message
    assert "of another shape: decoder.linear.weight (4, 7) instead of (4, 6)" in message


# ---- where checkpoints come from ----


def test_local_sources(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_checkpoint(saved) == saved
    assert resolve_checkpoint(str(saved)) == saved
    assert resolve_checkpoint(f"file://{saved}") == saved
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve_checkpoint("~/saved") == saved


@pytest.mark.parametrize("source", [None, "default"])
def test_the_one_that_ships(saved: Path, monkeypatch: pytest.MonkeyPatch, source: str | None) -> None:
    monkeypatch.setattr(locate, "DEFAULT_CHECKPOINT", saved)
    assert resolve_checkpoint(source) == saved
    monkeypatch.setattr(locate, "DEFAULT_CHECKPOINT", saved.parent / "none")
    with pytest.raises(CheckpointError, match=r"that ships with the project is not at .*none"):
        resolve_checkpoint(source)


@pytest.fixture
def remote(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The checkpoint in another filesystem, which counts what is fetched."""
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.put(str(saved), f"/{tmp_path.name}/best", recursive=True)
    return f"memory://{tmp_path.name}/best"


def test_a_remote_one_is_fetched_once(
    remote: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    fetched: list[str] = []
    cat_file = type(fs).cat_file

    def counting(self: Any, path: str, *rest: Any, **more: Any) -> Any:
        fetched.append(path)
        return cat_file(self, path, *rest, **more)

    monkeypatch.setattr(type(fs), "cat_file", counting)
    here = resolve_checkpoint(remote)
    assert load_checkpoint(here).fingerprint == checkpoint_fingerprint(saved)
    assert (here / CARD).read_text() == "# Card\n"
    assert len(fetched) == 4
    assert resolve_checkpoint(remote) == here
    assert len(fetched) == 4

    fs.pipe(f"/{tmp_path.name}/best/{CARD}", b"# Another\n")
    there = resolve_checkpoint(remote)
    assert there != here
    assert (there / CARD).read_text() == "# Another\n"


def test_a_remote_one_brings_its_integer_encoder(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_int8_encoder(saved, b"a graph")
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(saved), f"/{tmp_path.name}/int8", recursive=True)
    checkpoint = load_checkpoint(resolve_checkpoint(f"memory://{tmp_path.name}/int8"))
    assert checkpoint.int8_encoder is not None
    assert checkpoint.int8_encoder.read_bytes() == b"a graph"


def test_a_damaged_one_is_not_kept(remote: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    whole = fs.cat(f"/{tmp_path.name}/best/{WEIGHTS}")
    fs.pipe(f"/{tmp_path.name}/best/{WEIGHTS}", whole[:-5])
    with pytest.raises(CheckpointError, match="bytes instead of"):
        resolve_checkpoint(remote)
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_remote_mistakes(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at memory://nowhere/best: there is nothing"):
        resolve_checkpoint("memory://nowhere/best")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve_checkpoint(f"memory://{tmp_path.name}")
    with pytest.raises(CheckpointError, match="nosuch://x could not be read: .*Protocol not known"):
        resolve_checkpoint("nosuch://x")
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ValueError, match=r"taken.* cannot be written .*CAPTIONLIB_CACHE"):
        resolve_checkpoint(remote)
