"""Kill the job while a model of the hub captions; have a real server of models go away, refuse and cut its answers.

The server is `transformers serve` with a tiny model; the proxy before it makes the faults.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest

from tests import hub_models

from .processes import Session
from .proxy import Faults, fault_proxy

pytestmark = pytest.mark.slow
PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, each several times, and tiny models."""
    root = tmp_path_factory.mktemp("captioners")
    (root / "photos").mkdir()
    for i in range(IMAGES):
        shutil.copy(PHOTOS[i % len(PHOTOS)], root / "photos" / f"{i:03d}.jpg")
    for name in ("blip", "qwen2_5_vl"):
        hub_models.MODELS[name](root / name)
    return root


def command(folder: Path, output: Path, *flags: str) -> list[str]:
    job = [sys.executable, "-m", "jobs.caption", str(folder / "photos"), str(output), "--no-report"]
    return [*job, "--images-per-chunk", "2", "--max-new-tokens", "8", *flags]


def captions(output: Path) -> dict[str, str]:
    rows = pandas.read_parquet(output / "captions")
    assert sorted(rows.image_id) == list(range(IMAGES))
    assert rows.error.isna().all()
    return dict(zip(rows.path, rows.caption, strict=True))


def chunks(output: Path) -> int:
    return len(list((output / "captions").glob("captions-*.parquet")))


def kill_and_resume(job: list[str], output: Path, after: int, log: Path) -> None:
    """SIGKILL to the job and all that it started, once so many chunks are finished; then the same command again."""
    session = Session(job, env=os.environ, log=log)
    until = time.monotonic() + 120
    while chunks(output) < after and session.is_running and time.monotonic() < until:
        time.sleep(0.02)
    assert session.is_running, log.read_text()
    session.end()
    assert after <= chunks(output) < IMAGES // 2, "it was killed too late to prove anything"
    Session(job, env=os.environ, log=log).finish(300)


def test_a_killed_job_with_a_model_of_the_hub_resumes(folder: Path, tmp_path: Path) -> None:
    flags = ["--model", f"hf:{folder / 'blip'}", "--num-cpus", "1"]
    Session(command(folder, tmp_path / "calm", *flags), env=os.environ, log=tmp_path / "log").finish(300)
    kill_and_resume(command(folder, tmp_path / "rough", *flags), tmp_path / "rough", 3, tmp_path / "log")
    calm = captions(tmp_path / "calm")
    assert captions(tmp_path / "rough") == calm
    assert len(set(calm.values())) > 5


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen, int]]:
    """`transformers serve` with a tiny model; its process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    arguments = [str(folder / "qwen2_5_vl"), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path_factory.mktemp("server") / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), "serve", *arguments, "--dtype", "float32"], env=environment, stdout=log, stderr=log
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/v1/models")
            yield server, port
        finally:
            server.send_signal(signal.SIGCONT)
            server.kill()
            server.wait()


def _wait_for(url: str) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                json.load(answer)
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"nobody answers at {url}")


def test_a_server_that_goes_away_refuses_and_cuts_makes_no_difference(
    folder: Path, tmp_path: Path, served: tuple[subprocess.Popen, int]
) -> None:
    server, port = served
    model = ["--model", f"openai:{folder / 'qwen2_5_vl'}", "--concurrency", "4"]
    calm, rough, log = tmp_path / "calm", tmp_path / "rough", tmp_path / "log"
    direct = command(folder, calm, *model, "--endpoint", f"http://127.0.0.1:{port}/v1")
    Session(direct, env=os.environ, log=log).finish(600)
    with fault_proxy(f"127.0.0.1:{port}") as proxy:
        proxy.faults = Faults(too_many=1 / 3, cut=0.15, reset=0.05)
        job = command(folder, rough, *model, "--endpoint", f"{proxy.url}/v1")
        kill_and_resume_with_a_gap(job, rough, server, log)
        assert proxy.done["too_many"] > 10
        assert proxy.done["cut"] > 3
    assert captions(rough) == captions(calm)


def kill_and_resume_with_a_gap(job: list[str], output: Path, server: subprocess.Popen, log: Path) -> None:
    """Kill the job early; the second time, the server answers nobody for a minute."""
    session = Session(job, env=os.environ, log=log)
    while chunks(output) < 3 and session.is_running:
        time.sleep(0.02)
    session.end()
    assert 3 <= chunks(output) < IMAGES // 2
    session = Session(job, env=os.environ, log=log)
    before = chunks(output)
    while chunks(output) == before and session.is_running:
        time.sleep(0.02)
    server.send_signal(signal.SIGSTOP)
    time.sleep(60)
    assert session.is_running, log.read_text()
    server.send_signal(signal.SIGCONT)
    session.finish(600)
