"""Models of the hub below the job: pixels, log-probabilities, samples, faults, and what is said of a missing one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captionlib.captioners.base import Answer, Caption, CaptionFault
from captionlib.captioners.cleaning import clean
from captionlib.captioners.hub.families.kosmos2 import Kosmos2
from captionlib.captioners.hub.loaded import HubModel
from captionlib.captioners.hub.pixels import TOLERANCE, take_apart
from captionlib.captioners.options import CaptionerOptions
from captionlib.captioners.zoo import default_search, open_captioner
from captionlib.config import SearchConfig
from captionlib.errors import UserError

PHOTOS = sorted((Path(__file__).parents[2] / "photos").glob("*.jpg"))
GREEDY = SearchConfig(method="greedy", max_tokens=8)


@pytest.fixture
def folder(hub_model: Callable[[str], Path]) -> Callable[[str], Path]:
    return hub_model


def opened(folder: Path, search: SearchConfig = GREEDY, **options: Any) -> Any:
    return open_captioner(f"hf:{folder}", search, CaptionerOptions(**options))


def captions(folder: Path, search: SearchConfig, batch_size: int, ids: list[int] | None = None) -> list[Answer]:
    model = opened(folder, search)
    images = [model.transform(path.read_bytes()).pixels for path in PHOTOS]
    given = np.stack(images) if model.transform.side else images
    loaded = model.load(batch_size=batch_size, num_threads=1)
    return loaded.caption_images(given, ids or list(range(len(images))))


@pytest.mark.parametrize(
    ("name", "side"),
    [("blip", 48), ("git", 48), ("vision_encoder_decoder", 48), ("florence2", 64), ("kosmos2", 48), ("llava", 64)],
)
def test_squares_are_those_of_the_processor(name: str, side: int, folder: Any) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder(name))
    halves = take_apart(processor)
    assert halves is not None
    assert halves.transform.side == opened(folder(name)).transform.side == side
    for path in PHOTOS:
        expected = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        pixels = halves.transform(path.read_bytes()).pixels
        assert pixels.dtype == np.uint8
        assert (halves.normalize(torch.from_numpy(pixels)[None]) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_any_resolution_is_bounded(name: str, folder: Any) -> None:
    transform = opened(folder(name), max_side=200).transform
    assert transform.side is None
    assert max(transform(PHOTOS[0].read_bytes()).pixels.shape) == 200


@pytest.mark.parametrize("name", ["blip", "qwen2_5_vl"])
def test_log_probabilities_are_those_of_transformers(name: str, folder: Any) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder(name)).eval()
    processor = AutoProcessor.from_pretrained(folder(name))
    loaded = opened(folder(name)).load(batch_size=8, num_threads=1)
    for path in PHOTOS[:3]:
        pixels = opened(folder(name)).transform(path.read_bytes()).pixels
        ((caption,),) = loaded.caption_images([pixels], [0])
        inputs = loaded.family.encode(processor, [Image.open(path).convert("RGB")], loaded.prompt, None)
        settings = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        found = model.generate(**inputs, **settings)
        generator = model.text_decoder if name == "blip" else model
        scores = generator.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        assert caption.log_prob == pytest.approx(float(scores.sum()), abs=1e-3)


def test_those_of_a_beam_are_sums_too(folder: Any) -> None:
    wide = SearchConfig(method="beam", beam_width=3, num_captions=3, max_tokens=6, length_penalty=2.0)
    plain = dataclasses.replace(wide, length_penalty=0.0)
    by_text = [
        {c.text: c.log_prob for answer in captions(folder("git"), search, 4) for c in answer}  # type: ignore[union-attr]
        for search in (wide, plain)
    ]
    both = by_text[0].keys() & by_text[1].keys()
    assert len(both) > 5
    assert [by_text[0][text] for text in both] == pytest.approx([by_text[1][text] for text in both], abs=1e-3)


def test_samples_belong_to_an_image_and_not_to_its_batch(folder: Any) -> None:
    search = SearchConfig(method="sample", num_captions=3, max_tokens=6, temperature=0.8, top_k=20, seed=3)
    ids = [7 * i for i in range(len(PHOTOS))]
    together, alone = (captions(folder("blip"), search, size, ids) for size in (10, 1))
    other = captions(folder("blip"), dataclasses.replace(search, seed=4), 10, ids)
    texts = [[[c.text for c in answer] for answer in found] for found in (together, alone, other)]  # type: ignore[union-attr]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(set(of_image)) > 1 for of_image in texts[0])


def fail(loaded: HubModel, monkeypatch: pytest.MonkeyPatch, at: Callable[[int], Exception | None]) -> list[int]:
    """Have generation raise what `at` says for a batch size; the sizes of all batches."""
    sizes: list[int] = []
    generate = loaded.model.generate

    def faulty(**inputs: Any) -> Any:
        sizes.append(len(inputs["pixel_values"]))
        error = at(sizes[-1])
        if error is not None:
            raise error
        return generate(**inputs)

    monkeypatch.setattr(loaded.model, "generate", faulty)
    return sizes


def test_out_of_memory_halves_the_batch_for_good(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = captions(folder("blip"), GREEDY, 8)
    model = opened(folder("blip"))
    loaded = model.load(batch_size=8, num_threads=1)
    pixels = np.stack([model.transform(path.read_bytes()).pixels for path in PHOTOS])
    sizes = fail(loaded, monkeypatch, lambda size: torch.OutOfMemoryError("CUDA out of memory.") if size > 3 else None)
    assert [a[0].text for a in loaded.caption_images(pixels, range(10))] == [a[0].text for a in expected]  # type: ignore[index]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    sizes.clear()
    loaded.caption_images(pixels[:4], range(4))
    assert sizes == [2, 2]


def test_one_image_that_fails_is_a_row(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder("blip"))
    loaded = model.load(batch_size=4, num_threads=1)
    pixels = np.stack([model.transform(path.read_bytes()).pixels for path in PHOTOS])
    generate, odd = loaded.model.generate, torch.from_numpy(pixels[5])

    def faulty(**inputs: Any) -> Any:
        ours = loaded._halves.normalize(odd[None])
        if any(torch.allclose(one, ours[0]) for one in inputs["pixel_values"]):
            raise ValueError("the image is odd")
        return generate(**inputs)

    monkeypatch.setattr(loaded.model, "generate", faulty)
    answers = loaded.caption_images(pixels, range(10))
    assert [i for i, answer in enumerate(answers) if isinstance(answer, CaptionFault)] == [5]
    assert str(answers[5]) == "GenerationFailed: ValueError: the image is odd"


def test_a_batch_of_one_without_memory_is_a_row(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder("blip"))
    loaded = model.load(batch_size=1, num_threads=1)
    pixels = model.transform(PHOTOS[0].read_bytes()).pixels[None]
    fail(loaded, monkeypatch, lambda size: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert [str(a) for a in loaded.caption_images(pixels, [0])] == ["OutOfMemory: CUDA out of memory"]


def test_a_broken_device_is_not_the_images_fault(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(folder("blip"))
    loaded = model.load(batch_size=1, num_threads=1)
    fail(loaded, monkeypatch, lambda size: RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        loaded.caption_images(model.transform(PHOTOS[0].read_bytes()).pixels[None], [0])


# --- text -------------------------------------------------------------------------------------------------------


def test_tags_and_places_of_kosmos_go() -> None:
    class Processor:
        class tokenizer:
            @staticmethod
            def decode(tokens: Any, **_: Any) -> str:
                return (
                    "<grounding><phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> "
                    "warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>"
                )

    assert clean(Kosmos2().read(Processor(), [])) == "a snowman warming himself by a fire"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (" A dog \n runs.  It is  brown. ", "A dog runs."),
        ("Mr. T. Smith eats. He smiles.", "Mr. T. Smith eats."),
        ('A sign says "Stop!" Nobody does.', 'A sign says "Stop!"'),
        ("no end at all", "no end at all"),
        ("3.5 metres of rope", "3.5 metres of rope"),
    ],
)
def test_clean_text(text: str, first: str) -> None:
    assert clean(text) == " ".join(text.split())
    assert clean(text, first_sentence=True) == first


# --- what is wrong, in a sentence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "search", "options", "says"),
    [
        ("blip", {"method": "beam", "beam_width": 4, "diversity_groups": 2}, {}, "--search.diversity-groups is not"),
        ("blip", {"allow_unk": True}, {}, "--search.allow-unk is not supported by a model of the Hugging Face hub"),
        ("blip", {}, {"max_side": 500}, "looks at squares of 48 pixels, whatever an image has: leave out --max-side"),
        ("blip", {}, {"engine": "int8"}, "--engine means nothing to a model of the Hugging Face hub"),
        ("blip", {}, {"endpoint": ("http://host",)}, "--endpoint means nothing to a model of the Hugging Face hub"),
        ("blip", {}, {"system_prompt": "Be brief."}, "is BLIP, which takes no system prompt"),
        ("blip", {}, {"revision": "main"}, "--revision main is for models of the hub"),
        ("vision_encoder_decoder", {}, {"prompt": "a"}, "is a vision-encoder-decoder model, which takes no prompt"),
        ("florence2", {}, {"prompt": "<OD>"}, "--prompt of Florence-2 is one of its tasks, <CAPTION>"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    name: str, search: dict[str, Any], options: dict[str, Any], says: str, folder: Any
) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        opened(folder(name), SearchConfig(**{"method": "greedy", **search}), **options)


def test_quantization_needs_cuda(folder: Any) -> None:
    with pytest.raises(UserError, match="--quantization needs a GPU with CUDA"):
        opened(folder("blip"), quantization="8bit").load(batch_size=1, num_threads=1)


def test_folders_that_are_no_models(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model in the form of the Hugging Face hub"):
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match=r"there is no folder .*/nowhere: hf: takes a folder with a model, or a name"):
        opened(tmp_path / "nowhere")
    model = tmp_path / "model"
    shutil.copytree(folder("blip"), model)
    config = json.loads((model / "config.json").read_text())
    for change, says in [
        ({"model_type": "bert"}, "is of the type bert, which is not known to write captions"),
        ({"model_type": "novel"}, "is of the type novel, which this version of transformers does not know"),
        ({"model_type": "novel", "auto_map": {}}, "brings Python code of its own.*--trust-remote-code"),
    ]:
        (model / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=says):
            opened(model)
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be loaded as BLIP"):
        opened(model).load(batch_size=1, num_threads=1)
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        opened(model)


def test_weights_of_another_model_are_not_taken(folder: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder("blip"), model)
    shutil.copy(folder("git") / "model.safetensors", model)
    with pytest.raises(UserError, match=r"lacks \d+% of the weights of BLIP"):
        opened(model).load(batch_size=1, num_threads=1)


def test_a_model_given_without_its_kind(folder: Any) -> None:
    with pytest.raises(UserError, match="write hf:Salesforce/blip-image-captioning-base, for one behind a server"):
        open_captioner("Salesforce/blip-image-captioning-base", GREEDY)
    with pytest.raises(UserError, match=f"write hf:{folder('blip')}"):
        open_captioner(str(folder("blip")), GREEDY)
    with pytest.raises(UserError, match="--prompt means nothing to a checkpoint of this project"):
        open_captioner("default", default_search("default"), CaptionerOptions(prompt="a"))


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for models that are not to be had."""

    def do_GET(self) -> None:
        missing = "nobody" in self.path
        code, kind = (404, "RepoNotFound") if missing else (404, "RevisionNotFound")
        if "gated" in self.path:
            code, kind = 403, "GatedRepo"
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_models_that_the_hub_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def say(model: str) -> str:
        with pytest.raises(UserError) as raised:
            open_captioner(model, GREEDY)
        assert "hf_secret" not in str(raised.value)
        return str(raised.value)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert "the Hugging Face hub has no model nobody/nothing" in say("hf:nobody/nothing")
        assert "hf:some/gated is gated: accept its conditions at" in say("hf:some/gated")
        assert "hf:some/model has no revision v9" in say("hf:some/model@v9")
    finally:
        server.shutdown()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hugging Face hub cannot be reached (ConnectError" in say("hf:some/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to fetch it" in say("hf:some/model")
    assert default_search("hf:some/model").method == "greedy"


def test_a_model_in_the_cache_needs_no_network(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--tiny--blip"
    shutil.copytree(folder("blip"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = open_captioner("hf:tiny/blip", GREEDY)
    assert model.name == f"hf:tiny/blip@{commit[:12]}"
    assert model.fingerprint == commit
    pixels = model.transform(PHOTOS[0].read_bytes()).pixels[None]
    (here,), (there,) = (
        opened.load(batch_size=1, num_threads=1).caption_images(pixels, [0])
        for opened in (model, open_captioner(f"hf:{folder('blip')}", GREEDY))
    )
    assert here == there


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"which is not installed: pip install 'captionlib\[hub\]'"):
        open_captioner("hf:some/model", GREEDY)


def test_a_caption_may_be_without_numbers() -> None:
    assert Caption("a dog", None, None).finish_reason is None
