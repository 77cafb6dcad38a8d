"""`python -m jobs.caption --model hf:…`: the photos' captions are those of transformers' own `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from PIL import Image
from stubs import PHOTOS as FOLDER

from jobs.caption import main
from tests import hub_models

PHOTOS = sorted(FOLDER.glob("*.jpg"))
PROMPT = "Describe this image in one sentence."


def caption(model: Path, output: Path, *flags: str, photos: Path = FOLDER) -> pandas.DataFrame:
    """The job's rows, by the images' names."""
    assert main([str(photos), str(output), "--model", f"hf:{model}", "--num-cpus", "1", *flags]) == 0
    rows = pandas.read_parquet(output / "captions")
    return rows.set_index(rows.path.map(lambda path: Path(path).name))


def load(folder: Path) -> tuple[Any, Any, Any]:
    """Model, processor and tokenizer as a model card loads them."""
    import transformers

    if folder.name == "vision_encoder_decoder":
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return model.eval(), transformers.AutoImageProcessor.from_pretrained(folder), tokenizer
    processor = transformers.AutoProcessor.from_pretrained(folder)
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval(), processor, processor.tokenizer


def ask(folder: Path, processor: Any, image: Image.Image) -> dict[str, Any]:
    """One image's inputs as a model card makes them."""
    if folder.name in ("blip", "git", "vision_encoder_decoder"):
        return processor(images=image, return_tensors="pt")
    if folder.name == "florence2":
        return processor(text="<CAPTION>", images=image, return_tensors="pt")
    if folder.name == "kosmos2":
        return processor(text="An image of", images=image, return_tensors="pt")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return processor(images=image, text=text, return_tensors="pt")


def expected(folder: Path, **settings: Any) -> dict[str, str]:
    """Captions of the photos, one image at a time, without any of the project's code."""
    model, processor, tokenizer = load(folder)
    captions = {}
    for path in PHOTOS:
        inputs = ask(folder, processor, Image.open(path).convert("RGB"))
        found = model.generate(**inputs, **settings)[0]
        is_prompted = "input_ids" in inputs and not model.config.is_encoder_decoder
        new = found[inputs["input_ids"].shape[1] :] if is_prompted else found
        if len(hub_models.ENDS) > 2 and new[-1] in hub_models.ENDS and is_prompted:
            new = new[:-1]  # theirs are special tokens, these are not
        captions[path.name] = " ".join(tokenizer.decode(new, skip_special_tokens=True).split())
    return captions


@pytest.mark.usefixtures("run_in_process")
@pytest.mark.parametrize("name", hub_models.MODELS)
def test_captions_equal_those_of_one_image_at_a_time(name: str, hub_model: Any, tmp_path: Path) -> None:
    folder = hub_model(name)
    flags = "--search.method greedy --search.no-repeat-ngram 0 --max-new-tokens 14 --batch-size 4"
    rows = caption(folder, tmp_path / "out", *flags.split())
    truth = expected(folder, max_new_tokens=14, do_sample=False, num_beams=1, no_repeat_ngram_size=0)
    assert rows.caption.to_dict() == truth
    assert len(set(truth.values())) >= 3, "captions that are all alike would prove nothing"
    assert rows.log_prob.between(-1000, 0).all()
    assert set(rows.finish_reason) <= {"end", "length"}
    assert (rows.num_tokens[rows.finish_reason == "length"] == 14).all()
    assert rows.error.isna().all()


@pytest.mark.usefixtures("run_in_process")
@pytest.mark.parametrize("name", ["blip", "vision_encoder_decoder", "smolvlm", "qwen2_5_vl"])
def test_a_beam_is_that_of_transformers(name: str, hub_model: Any, tmp_path: Path) -> None:
    folder = hub_model(name)
    flags = "--search.method beam --search.beam-width 4 --search.length-penalty 0.5 --search.no-repeat-ngram 2"
    rows = caption(folder, tmp_path / "out", *flags.split(), "--max-new-tokens", "8", "--search.num-captions", "2")
    truth = expected(folder, max_new_tokens=8, do_sample=False, num_beams=4, length_penalty=0.5, no_repeat_ngram_size=2)
    assert rows.caption.to_dict() == truth
    assert all(len(captions) == 2 for captions in rows.captions)
    assert all(rows.captions.map(lambda found: found[0]["text"]) == rows.caption)


@pytest.mark.usefixtures("run_in_process")
def test_the_model_decides_what_nobody_asked_for(hub_model: Any, tmp_path: Path) -> None:
    folder = hub_model("florence2")  # asks for a beam of 3 without repeated triples
    rows = caption(folder, tmp_path / "out", "--max-new-tokens", "20")
    assert rows.caption.to_dict() == expected(folder, max_new_tokens=20)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["model"] == f"hf:{folder}"
    assert record["identity"]["prompt"] == "<CAPTION>"
    assert record["identity"]["search"]["beam_width"] == 3
    assert "transformers" in record["runs"][0]["versions"]


@pytest.mark.usefixtures("run_in_process")
def test_a_prompt_begins_a_caption_and_is_not_repeated(hub_model: Any, tmp_path: Path) -> None:
    folder = hub_model("blip")
    flags = ["--search.method", "greedy", "--max-new-tokens", "10", "--prompt", "a dog"]
    rows = caption(folder, tmp_path / "out", *flags)
    model, processor, tokenizer = load(folder)
    for path in PHOTOS:
        inputs = processor(images=Image.open(path).convert("RGB"), text="a dog", return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=10)[0]
        whole = " ".join(tokenizer.decode(found, skip_special_tokens=True).split())
        assert whole.startswith("a dog")
        assert rows.caption[path.name] == whole.removeprefix("a dog").strip()


@pytest.mark.usefixtures("run_in_process")
def test_another_model_prompt_or_setting_is_refused(hub_model: Any, tmp_path: Path, capsys: Any) -> None:
    folder, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(hub_model("blip"), folder)
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(PHOTOS[0], photos)
    flags = [str(photos), str(output), "--model", f"hf:{folder}", "--max-new-tokens", "4"]
    assert main(flags) == 0
    for more, said in [
        (["--prompt", "a dog"], "prompt is None there and a dog now"),
        (["--dtype", "bfloat16"], "dtype is auto there and bfloat16 now"),
        (["--repetition-penalty", "1.2"], "repetition_penalty is None there and 1.2 now"),
        (["--search.min-tokens", "2"], "search.min_tokens is 0 there and 2 now"),
    ]:
        capsys.readouterr()
        assert main([*flags, *more]) == 2
        assert said in capsys.readouterr().err
    model, _, _ = load(hub_model("blip"))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(folder)
    assert main(flags) == 2
    assert "model is " in capsys.readouterr().err


def test_a_process_of_its_own_and_ray_give_the_same(hub_model: Any, tmp_path: Path, ray_of_two_cpus: None) -> None:
    folder = hub_model("blip")
    flags = ["--search.method", "greedy", "--max-new-tokens", "6", "--num-actors", "1", "--images-per-chunk", "4"]
    rows = caption(folder, tmp_path / "out", *flags)
    assert rows.caption.to_dict() == expected(folder, max_new_tokens=6)
