"""Secrets in URLs are in the manifest, which its owner alone may read, and nowhere else."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pandas
import pytest
from stubs import settings, stub_job

from captionlib.masking import masked
from jobs.batch.gallery import write_report
from jobs.batch.run import run_batch_job
from jobs.batch.settings import CaptionSettings
from jobs.inputs.settings import SourceSettings
from jobs.outputs.export import EXPORTS
from tests.flaky import flaky_server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host/a.jpg", "https://***@host/a.jpg"),
        ("https://secret@host/a.jpg?size=9", "https://***@host/a.jpg?size=9"),
        ("s3://bucket/a@2x.jpg", "s3://bucket/a@2x.jpg"),
        (
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Date=20&X-Amz-Signature=secret&X-Amz-Credential=secret%2F1&w=1",
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Date=20&X-Amz-Signature=***&X-Amz-Credential=***&w=1",
        ),
        ("https://h/a.jpg?AWSAccessKeyId=secret&Signature=secret", "https://h/a.jpg?AWSAccessKeyId=***&Signature=***"),
        ("https://x.blob.core.windows.net/a?sv=1&sig=secret%3D", "https://x.blob.core.windows.net/a?sv=1&sig=***"),
        ("https://h/a?token=secret#part", "https://h/a?token=***#part"),
        ("https://h/a?key=cat.jpg", "https://h/a?key=cat.jpg"),
        ("https://h/a?key=secretsecretsecretsecret", "https://h/a?key=***"),
        ("'https://h/a?sig=secret' and https://u:secret@h: 503", "'https://h/a?sig=***' and https://***@h: 503"),
        ("/disk/a?token=kept", "/disk/a?token=kept"),
    ],
)
def test_what_is_masked(text, expected):
    assert masked(text) == expected


def everything_in(output: Path) -> str:
    texts = []
    for path in output.rglob("*"):
        if path.suffix == ".parquet" and "manifest" not in path.parts:
            texts.append(pandas.read_parquet(path).to_csv())
        elif path.is_file() and "manifest" not in path.parts:
            texts.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(texts)


def test_secrets_stay_in_the_manifest(tmp_path, make_images, run_in_process, monkeypatch, capfd):
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)
    source, output = make_images(6), tmp_path / "out"
    with flaky_server(source.parent) as server:
        server.faults = {"0002.jpg?sig=hunter2": (404, 99), "0003.jpg?sig=hunter2": (403, 99)}
        server.faults |= {"0004.jpg?sig=hunter2": (503, 10**6)}
        host = server.url.removeprefix("http://")
        urls = [f"http://me:hunter2@{host}/in/{i:04d}.jpg?sig=hunter2" for i in range(6)]
        urls += ["http://me:hunter2@127.0.0.1:9/a.jpg?token=hunter2"]
        rows = pandas.DataFrame({"url": urls, "source": urls})
        rows.to_csv(tmp_path / "list.csv", index=False)
        given = settings(tmp_path / "list.csv", output, source=SourceSettings(columns=("source",)))
        outcome = run_batch_job(stub_job(formats=tuple(EXPORTS)), given)
        assert outcome.counts == (3, 4)
        wanted = CaptionSettings(input=f"http://me:hunter2@{host}/in/?token=hunter2", output=str(output))
        outcome = dataclasses.replace(outcome, identity={**outcome.identity, "model": "stub"})
        write_report(outcome, dataclasses.replace(wanted))
    assert "hunter2" not in everything_in(output)
    assert "***@" in everything_in(output)
    printed = capfd.readouterr()
    assert "hunter2" not in printed.out + printed.err
    page = (output / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3  # read again for it, with the secrets of the manifest
    (manifest,) = (output / "manifest").iterdir()
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o600
    assert pandas.read_parquet(manifest).path.tolist() == urls
