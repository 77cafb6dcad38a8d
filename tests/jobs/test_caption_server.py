"""`python -m jobs.caption --model openai:…`: each image once, whatever the servers do."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from stubs import PHOTOS

from captionlib.captioners.server import client
from jobs.caption import main
from tests.chat_server import ChatServer, chat_server, describe
from tests.faults.proxy import Faults, fault_proxy

SIZES = {path.name: Image.open(path).size for path in PHOTOS.glob("*.jpg")}
pytestmark = pytest.mark.usefixtures("run_in_process", "_fast_and_without_a_key")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


@pytest.fixture
def _fast_and_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(client, "LONGEST_WAIT_SECONDS", 0.1)


def flags(output: Path, *urls: str, photos: Path = PHOTOS) -> list[str]:
    endpoints = [flag for url in urls for flag in ("--endpoint", url)]
    return [str(photos), str(output), "--model", "openai:tiny", *endpoints, "--num-cpus", "1"]


def rows_of(output: Path) -> pandas.DataFrame:
    rows = pandas.read_parquet(output / "captions")
    return rows.set_index(rows.path.map(lambda path: Path(path).name))


def test_what_is_sent_and_what_comes_back(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.key = "secret-of-the-test"
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    more = ["--max-side", "320", "--max-new-tokens", "30", "--system-prompt", "Be brief.", "--prompt", "What is it?"]
    assert main([*flags(tmp_path / "out", server.url), *more, "--first-sentence", "--show", "3"]) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(server.requests) == len(SIZES)
    for name, row in rows.iterrows():
        width, height = SIZES[name]
        scale = 320 / max(width, height)
        assert row.caption == f"A picture of {round(width * scale)} by {round(height * scale)}."
        assert (row.num_tokens, row.finish_reason) == (12, "end")
        assert (row.width, row.height) == (width, height)
    assert rows.log_prob.isna().all()
    body = server.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"][0] == {"type": "text", "text": "What is it?"}
    assert (body["max_tokens"], body["temperature"]) == (30, 0.0)
    assert max(max(request["size"]) for request in server.requests) == 320
    record = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(record)["model"] == "openai:tiny"
    assert server.key not in record + capsys.readouterr().out + (tmp_path / "out" / "report.html").read_text()


def test_samples_are_asked_for(server: ChatServer, tmp_path: Path) -> None:
    more = [
        "--search.method",
        "sample",
        "--search.num-captions",
        "2",
        "--search.temperature",
        "0.7",
        "--search.top-p",
        "0.9",
    ]
    assert main([*flags(tmp_path / "out", server.url), *more]) == 0
    assert all(len(captions) == 2 for captions in rows_of(tmp_path / "out").captions)
    assert all((r["n"], r["temperature"], r["top_p"]) == (2, 0.7, 0.9) for r in server.requests)
    assert len({request["seed"] for request in server.requests}) == len(SIZES)


def test_a_refusal_is_the_images_row(server: ChatServer, tmp_path: Path) -> None:
    server.refuses_width = SIZES["cat.jpg"][0]
    assert main(flags(tmp_path / "out", server.url)) == 0
    errors = rows_of(tmp_path / "out").error.dropna()
    assert list(errors.index) == ["cat.jpg"]
    assert errors["cat.jpg"].startswith("ContentRefused: HTTP 400: Your request was rejected")


def test_bad_servers_make_no_difference(server: ChatServer, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(60):
        shutil.copy(sorted(PHOTOS.glob("*.jpg"))[i % 10], photos / f"{i:02d}.jpg")
    assert main(flags(tmp_path / "calm", server.url, photos=photos)) == 0
    upstream = server.url.removeprefix("http://").removesuffix("/v1")
    with chat_server() as other, fault_proxy(upstream) as proxy:
        proxy.faults = Faults(too_many=1 / 3, slow_down=0.1, reset=0.1, cut=0.1)
        away = threading.Timer(0.3, lambda: setattr(other, "is_away", True))
        away.start()
        output = tmp_path / "rough"
        assert main([*flags(output, f"{proxy.url}/v1", other.url, photos=photos), "--concurrency", "4"]) == 0
        away.join()
        assert proxy.done["too_many"] > 5
        assert proxy.done["cut"] > 0
    calm, rough = rows_of(tmp_path / "calm"), rows_of(output)
    assert list(rough.image_id) == list(range(60))
    assert rough.caption.to_dict() == calm.caption.to_dict()


def test_a_server_that_went_away_is_waited_for(server: ChatServer, tmp_path: Path) -> None:
    server.is_away = True
    back = threading.Timer(1.0, lambda: setattr(server, "is_away", False))
    back.start()
    assert main(flags(tmp_path / "out", server.url)) == 0
    assert rows_of(tmp_path / "out").error.isna().all()


def test_one_that_does_not_come_back_leaves_the_images_for_later(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.2)
    server.is_away = True
    faults = ["--transport-retries", "1", "--transport-pause", "0"]
    assert main([*flags(tmp_path / "out", server.url), *faults]) == 1
    assert f"10 images are not done: TransportFault: {server.url.removesuffix('/v1')}" in capsys.readouterr().err
    server.is_away = False
    assert main(flags(tmp_path / "out", server.url)) == 0
    assert len(rows_of(tmp_path / "out")) == 10


def test_a_server_that_refuses_the_caller_ends_the_job(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.key = "another"
    started = time.monotonic()
    assert main(flags(tmp_path / "out", server.url)) == 1
    said = capsys.readouterr().err
    assert "HTTP 401: Incorrect API key provided" in said
    assert "no OPENAI_API_KEY in the environment" in said
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--model openai:tiny needs --endpoint"),
        (["--endpoint", "host:8000"], "is no URL such as http://host:8000/v1"),
        (["--endpoint", "http://:key@host:8000/v1"], "put it into OPENAI_API_KEY"),
        (["--endpoint", "http://host/v1", "--dtype", "float16"], "--dtype means nothing to a model behind a server"),
        (["--endpoint", "http://host/v1", "--search.method", "beam"], "--search.method beam is not supported"),
        (["--endpoint", "http://host/v1", "--search.top-k", "5"], "--search.top-k is not supported"),
        (["--endpoint", "http://host/v1", "--prompt-file", "nowhere.txt"], "the prompt file nowhere.txt cannot be"),
    ],
)
def test_what_is_wrong_is_said(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags(tmp_path / "out"), *given]) == 2
    assert said in capsys.readouterr().err


def test_the_description_is_of_the_image() -> None:
    assert describe(np.full((4, 6, 3), (255, 0, 64), np.uint8)) == "A picture of 6 by 4. Its colour is 7 0 2."
