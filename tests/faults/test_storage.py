"""Buckets, credentials and what is wrong with them: one sentence each, and no secret written anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .harness import Output, Place, run_job
from .inputs import upload_photos
from .servers import OWNER, READER, Keys, ObjectStore

pytestmark = pytest.mark.slow

FEW = 12


@pytest.fixture(scope="module")
def few(store: ObjectStore) -> str:
    upload_photos(store.client(), "photos", "few", FEW)
    upload_photos(store.client(), "public", "few", FEW)
    return "s3://photos/few"


@pytest.mark.parametrize(
    ("keys", "source", "output", "says"),
    [
        (Keys(OWNER.access_key, "wrong"), "s3://photos/few", "OUT", "SignatureDoesNotMatch"),
        (Keys("NOBODY", "wrong"), "s3://photos/few", "OUT", "InvalidAccessKeyId"),
        (READER, "s3://captions/few", "OUT", "s3://captions/few may not be listed"),
        (OWNER, "s3://no-such-bucket/few", "OUT", "s3://no-such-bucket/few does not exist"),
        (OWNER, "s3://photos/no/such/prefix", "OUT", "s3://photos/no/such/prefix does not exist"),
        (OWNER, "s3://photos/few/nothing-*.jpg", "OUT", "s3://photos/few/nothing-*.jpg does not exist"),
        (OWNER, "s3://photos/few", "s3://no-such-bucket/out", "s3://no-such-bucket/out cannot be written"),
        (READER, "s3://photos/few", "s3://captions/out", "s3://captions/out cannot be written"),
        (Keys(OWNER.access_key, "wrong"), "s3://photos/few", "s3://captions/out", "SignatureDoesNotMatch"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    keys: Keys,
    source: str,
    output: str,
    says: str,
    store: ObjectStore,
    few: str,
    model: Path,
    place: Place,
    tmp_path: Path,
) -> None:
    output = output.replace("OUT", str(tmp_path / "out"))
    code, log = run_job(place, keys.env(store.url), source, output, model, name=tmp_path.name)
    assert code == 2, log
    assert says in log
    assert log.startswith("python -m jobs.caption: ")
    assert len(log.strip().splitlines()) == 1
    assert keys.secret_key not in log.replace("wrong", "", 0 if keys.secret_key != "wrong" else -1)


def test_no_credentials(store: ObjectStore, few: str, model: Path, place: Place, tmp_path: Path) -> None:
    env = {"AWS_ENDPOINT_URL": store.url, "AWS_EC2_METADATA_DISABLED": "true"}
    code, log = run_job(place, env, few, str(tmp_path / "out"), model, name=tmp_path.name)
    assert code == 2, log
    assert "credentials" in log
    assert "Traceback" not in log


def test_settings_in_the_home_folder(store: ObjectStore, few: str, model: Path, place: Place, tmp_path: Path) -> None:
    """~/.aws/config and ~/.aws/credentials, with a profile, as the AWS command line keeps them."""
    aws = tmp_path / "home" / ".aws"
    aws.mkdir(parents=True)
    (aws / "config").write_text(f"[profile tests]\nregion = us-east-1\nendpoint_url = {store.url}\n")
    (aws / "credentials").write_text(
        f"[tests]\naws_access_key_id = {OWNER.access_key}\naws_secret_access_key = {OWNER.secret_key}\n"
    )
    output = Output(store.client(), "captions", "profile")
    env = {"HOME": str(tmp_path / "home"), "AWS_PROFILE": "tests"}
    code, log = run_job(place, env, few, output.url, model, name=tmp_path.name)
    assert code == 0, log
    assert len(output.rows()) == FEW


def test_a_public_bucket_without_credentials(
    store: ObjectStore, few: str, model: Path, place: Place, tmp_path: Path
) -> None:
    env = {"AWS_ENDPOINT_URL": store.url, "FSSPEC_S3_ANON": "true"}
    code, log = run_job(place, env, "s3://public/few", str(tmp_path / "out"), model, name=tmp_path.name)
    assert code == 0, log
    assert pq.read_table(tmp_path / "out" / "captions").num_rows == FEW


def test_secrets_are_written_nowhere(store: ObjectStore, few: str, model: Path, place: Place, tmp_path: Path) -> None:
    """Not in what is printed, not in the output, and not in Ray's own logs."""
    output = Output(store.client(), "captions", "secrets")
    mine = Place.make(tmp_path / "place")
    code, log = run_job(mine, OWNER.env(store.url), few, output.url, model, "--address", "local", name="secrets")
    assert code == 0, log
    written = {f"s3: {key}": output.read(key) for key in output.objects()}
    assert {"s3: run.json", "s3: report.html"} <= set(written)
    written |= {str(path): path.read_bytes() for path in _files(mine.ray_folder) if path.is_file()}
    written |= {str(path): path.read_bytes() for path in _files(mine.folder) if path.is_file()}
    assert any("session" in name and "log" in name for name in written), "Ray's logs were not looked at"
    for secret in (OWNER.secret_key, OWNER.access_key):
        found = [name for name, data in written.items() if secret.encode() in data]
        assert not found


def _files(folder: Path) -> Iterator[Path]:
    return folder.rglob("*")
