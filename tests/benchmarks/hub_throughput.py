"""How fast models of the Hugging Face hub caption on this machine: the job beside the loop of a model card, which
captions one image at a time in float32.

    python tests/benchmarks/hub_throughput.py                                          BLIP-base, medians of 3
    python tests/benchmarks/hub_throughput.py --models git_base florence2_base --repeats 1 --sides job

Models have their true sizes and random weights, on which speed does not depend: their captions hardly ever end, so that
all have the full number of tokens. Both sides run in processes of their own, in turn; loading is not counted. The
numbers mean nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.photo_mill import make_images

from jobs.benchmarking.measure import time_job
from jobs.cluster.resources import num_cpus
from tests.hub_models import clip_images, make_tokenizer

CARD = """
import sys, time, glob
from PIL import Image
from transformers import AutoProcessor, AutoModelForImageTextToText
folder, photos, count, tokens = sys.argv[1], sorted(glob.glob(sys.argv[2] + "/*.jpg")), *map(int, sys.argv[3:])
text = {"text": "<CAPTION>"} if "florence2" in folder else {}
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder)
for number, photo in enumerate(photos[: count + 1]):
    if number == 1:
        started = time.monotonic()  # the first is slower
    inputs = processor(images=Image.open(photo).convert("RGB"), return_tensors="pt", **text)
    found = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1)
    processor.decode(found[0], skip_special_tokens=True)
print("seconds", time.monotonic() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["blip_base"])
    parser.add_argument("--sides", nargs="+", choices=("card", "job"), default=("card", "job"))
    parser.add_argument("--images", type=int, default=64, help="for the job")
    parser.add_argument("--card-images", type=int, default=16, help="for the loop")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batch-size", default="8")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--price-per-hour", type=float, default=0.10, help="of this machine, in dollars")
    given = parser.parse_args()
    print(f"{num_cpus()} CPUs, load {os.getloadavg()[0]:.1f}, images of 640 px, {given.tokens} tokens", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "photos", ROOT / "tests" / "photos", max(given.images, given.card_images + 1), 640)
        for model in given.models:
            parameters = MODELS[model](folder / model)
            rates: dict[str, list[float]] = defaultdict(list)
            for repeat in range(given.repeats):
                for side in given.sides:
                    run = _card if side == "card" else _job
                    rates[side].append(run(folder, model, repeat, given))
                    print(f"{model} {side}: {rates[side][-1]:.2f} images/s, load {os.getloadavg()[0]:.1f}", flush=True)
            for side, found in rates.items():
                rate = statistics.median(found)
                dollars = given.price_per_hour / 3600 / rate * 1e6
                print(f"{model}, {parameters / 1e6:.0f} M: {side} {rate:.2f} images/s, ${dollars:,.0f} a million")
            if len(rates) == 2:
                print(f"{model}: {statistics.median(rates['job']) / statistics.median(rates['card']):.1f} times")


def _card(folder: Path, model: str, repeat: int, given: argparse.Namespace) -> float:
    arguments = [str(folder / model), str(folder / "photos"), str(given.card_images), str(given.tokens)]
    done = subprocess.run([sys.executable, "-c", CARD, *arguments], capture_output=True, text=True, check=True)
    return given.card_images / float(done.stdout.split()[-1])


def _job(folder: Path, model: str, repeat: int, given: argparse.Namespace) -> float:
    output = folder / f"{model}-{repeat}"
    flags = f"--no-report --search.method greedy --search.no-repeat-ngram 0 --max-new-tokens {given.tokens}"
    flags += f" --batch-size {given.batch_size} --dtype {given.dtype} --images-per-chunk {given.batch_size}"
    source = folder / "list.txt"
    source.write_text("".join(f"{folder}/photos/{i:06d}.jpg\n" for i in range(given.images)))
    times = time_job(str(source), str(output), "--model", f"hf:{folder / model}", *flags.split())
    return times.images_per_second or given.images / (times.seconds - times.start_up_seconds)


# --- models of their true sizes ---------------------------------------------------------------------------------


def _save(folder: Path, model: Any, *parts: Any) -> int:
    for part in (model, *parts):
        part.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def blip_base(folder: Path) -> int:
    """As Salesforce/blip-image-captioning-base."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = make_tokenizer(
        "[PAD] [UNK] [CLS] [SEP] [DEC]", "[CLS] $A [SEP]",
        bos_token="[DEC]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    ids = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {"encoder_hidden_size": 768, "num_attention_heads": 12, **ids}
    config = BlipConfig(text_config=text, vision_config={"image_size": 384})
    images = BlipImageProcessor(size={"height": 384, "width": 384})
    return _save(folder, BlipForConditionalGeneration(config), BlipProcessor(images, words))


def git_base(folder: Path) -> int:
    """As microsoft/git-base-coco."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    words = make_tokenizer(
        "[PAD] [UNK] [CLS] [SEP]", "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = GitConfig(bos_token_id=2, eos_token_id=3, pad_token_id=0)
    return _save(folder, GitForCausalLM(config), GitProcessor(clip_images(224), words))


def florence2_base(folder: Path) -> int:
    """As florence-community/Florence-2-base."""
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    words = make_tokenizer(
        "<s> <pad> </s> <unk> <image>", "<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    text = BartConfig(
        vocab_size=51_289, d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12,
        decoder_attention_heads=12, encoder_ffn_dim=3_072, decoder_ffn_dim=3_072,
    )  # fmt: skip
    config = Florence2Config(text_config=text, vision_config={"projection_dim": 768}, image_token_id=4)
    images = clip_images(768, size={"height": 768, "width": 768}, do_center_crop=False)
    images.image_seq_length = 577
    processor = Florence2Processor(images, words, num_additional_image_tokens=1)
    return _save(folder, Florence2ForConditionalGeneration(config), processor)


MODELS = {"blip_base": blip_base, "git_base": git_base, "florence2_base": florence2_base}


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s in all")
