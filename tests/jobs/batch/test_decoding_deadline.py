"""An image that takes too long to decode is a row with an error; the other images of its chunk are captioned."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pandas
import pytest
from stubs import StubFactory, settings, stub_job

from captionlib.config import Preprocessing
from captionlib.errors import UserError
from captionlib.images.decode import MAX_PIXELS, ImageDecodeError
from captionlib.images.decode_pixels import DecodedPixels
from captionlib.images.transforms import EncoderSquare
from captionlib.storage.folder import Folder
from jobs.batch import single_process
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.decoding_deadline import DecodingDeadline
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import ModelStage
from jobs.batch.ray_pipeline import as_table
from jobs.batch.run import run_batch_job
from jobs.inputs.settings import SourceSettings
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange

SLOW = b"slow"
"""Ends the files whose decoding takes long; JPEG decoders read over it."""
SLEEP_SECONDS = 600.0
FAR_LESS_SECONDS = 120.0


@dataclass(frozen=True)
class SleepyTransform(EncoderSquare):
    """Sleeps over files that end with `SLOW`."""

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        if data.endswith(SLOW):
            time.sleep(SLEEP_SECONDS)
        return super().__call__(data, max_pixels)


TRANSFORM = SleepyTransform(Preprocessing(size=16))


def make_slow(folder: Path, *names: str) -> None:
    for name in names:
        with (folder / name).open("ab") as file:
            file.write(SLOW)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_stage_gives_slow_images_up_and_goes_on_with_the_others(tmp_path, make_images, threads):
    source = make_images(8)
    make_slow(source, "0000.jpg", "0004.jpg")
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(source),)).list())
    files = ChunkFiles(Folder.of(str(tmp_path)) / "captions", "captions")
    decode = DecodeStage(manifest, files, TRANSFORM, threads, max_decode_seconds=0.5)
    started = time.monotonic()
    decoded = decode(as_table(Chunk(IdRange(0, 7))))
    (receipt,) = ModelStage(StubFactory(), {"captions": files})(decoded).to_pylist()
    assert time.monotonic() - started < FAR_LESS_SECONDS
    assert (receipt["status"], receipt["done"], receipt["failed"]) == ("committed", 6, 2)
    errors = files.read(IdRange(0, 7)).column("error").to_pylist()
    expected = "DecodeTimeout: decoding it took longer than 0.5 s, the limit (--max-decode-seconds)"
    assert errors == [expected if i in (0, 4) else None for i in range(8)]
    (warning,) = receipt["warnings"]
    assert "given up after 0.5 s" in warning
    assert "2 of them in one process" in warning


def test_a_job_with_a_slow_image_ends_well(tmp_path, make_images, monkeypatch, capsys):
    monkeypatch.setattr(single_process, "_ray_is_here", lambda: False)
    monkeypatch.setattr(single_process, "_num_gpus", lambda: 0)
    source = make_images(12)
    make_slow(source, "0003.jpg")
    job = dataclasses.replace(stub_job(), transform=TRANSFORM)
    started = time.monotonic()
    outcome = run_batch_job(job, settings(source, tmp_path / "out", source=SourceSettings(max_decode_seconds=1.0)))
    assert time.monotonic() - started < FAR_LESS_SECONDS
    assert outcome.counts == (11, 1)
    rows = pandas.read_parquet(tmp_path / "out" / "captions").set_index("image_id")
    assert rows.error[3].startswith("DecodeTimeout: ")
    assert rows.error.drop(3).isna().all()
    assert "still being decoded, 1 of them" in capsys.readouterr().err


def test_a_call_returns_its_result_or_raises_its_exception():
    with DecodingDeadline(60.0) as deadline:
        assert deadline.call(lambda: 3) == 3
        with pytest.raises(TimeoutError, match="its own"):
            deadline.call(lambda: exec("raise TimeoutError('its own')"))
        names = {deadline.call(threading.get_ident) for _ in range(5)}
    assert len(names) == 1  # the thread is used again
    assert deadline.warnings() == []


def test_a_call_that_ends_late_is_no_longer_warned_of():
    release, ended = threading.Event(), threading.Event()

    def wait() -> None:
        release.wait(SLEEP_SECONDS)
        ended.set()

    with DecodingDeadline(0.05) as deadline:
        with pytest.raises(ImageDecodeError, match="DecodeTimeout: "):
            deadline.call(wait)
        assert len(deadline.warnings()) == 1
        release.set()
        assert ended.wait(SLEEP_SECONDS)
        while deadline.warnings():
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("time.sleep(600)", 0),  # lets other threads run: given up, and the process can end
        ("ctypes.PyDLL(None).sleep(600)", 1),  # keeps the interpreter lock: only the end of the process helps
    ],
)
def test_a_process_ends_whatever_a_decoder_does(body, code):
    script = (
        "import ctypes, time\n"
        "from captionlib.images.decode import ImageDecodeError\n"
        "from jobs.batch import decoding_deadline\n"
        "decoding_deadline.MIN_SECONDS_UNTIL_KILLED = 1.0\n"
        "with decoding_deadline.DecodingDeadline(0.5) as deadline:\n"
        "    try:\n"
        f"        deadline.call(lambda: {body})\n"
        "    except ImageDecodeError as error:\n"
        "        print(error.kind)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=FAR_LESS_SECONDS, cwd=root
    )
    assert (done.returncode, done.stdout) == (code, "" if code else "DecodeTimeout\n"), done.stderr


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_makes_no_sense_is_refused(seconds):
    with pytest.raises(UserError, match=r"--max-decode-seconds must be above 0 and at most 86400"):
        SourceSettings(max_decode_seconds=seconds)
