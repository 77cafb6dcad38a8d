"""The two stages as plain calls, without Ray around them."""

from __future__ import annotations

import dataclasses
import socket
import time

import numpy as np
import pytest
from PIL import Image
from stubs import StubFactory

from captionlib.captioners.zoo import open_captioner
from captionlib.config import Preprocessing, SearchConfig
from captionlib.images.transforms import EncoderSquare
from captionlib.storage.errors import TransportFault
from captionlib.storage.folder import Folder
from jobs.batch.caption_model import CaptionFactory
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import ModelStage
from jobs.batch.ray_pipeline import as_table
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import ImageReader
from jobs.inputs.sources import Sources
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange
from tests.flaky import flaky_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)


def chunk(first, last, redo="", canaries=()):
    return as_table(Chunk(IdRange(first, last), redo, tuple(canaries)))


@pytest.fixture
def stages(tmp_path):
    """Makes both stages over the files of a folder or a server."""

    def make(source, factory=StubFactory(), size=16):  # noqa: B008  it is frozen
        output = Folder.of(str(tmp_path / "out"))
        manifest = Manifest.open(output / "manifest").append(Sources((str(source),)).list())
        files = ChunkFiles(output / "captions", "captions")
        return DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=size)), 2), ModelStage(
            factory, {"captions": files}
        )

    return make


def test_a_part_with_its_pixels(stages, make_images):
    source = make_images(3)
    (source / "0001.jpg").write_bytes(b"")
    decode, _ = stages(source)
    made = decode(chunk(0, 2))
    assert made.schema == schemas.DECODED
    (row,) = made.to_pylist()
    assert row["status"] == "ready"
    assert [image["image_id"] for image in row["images"]] == [0, 1, 2]
    assert [image["error"] for image in row["images"]] == [None, "EmptyFile: the file has 0 bytes", None]
    assert (row["images"][2]["width"], row["images"][2]["height"]) == (32, 24)
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(2, 16, 16, 3)
    for image, i in zip(pixels, (0, 2), strict=True):
        assert image[8, 8].tolist() == pytest.approx([i * 37, i * 91, i * 151 % 256], abs=4)


def test_a_part_without_any_picture(stages, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    decode, work = stages(tmp_path / "in")
    (receipt,) = work(decode(chunk(0, 0))).to_pylist()
    assert (receipt["status"], receipt["done"], receipt["failed"]) == ("committed", 0, 1)
    assert work.outputs["captions"].read(IdRange(0, 0)).to_pylist()[0]["captions"] is None


def test_a_receipt_and_the_rows_that_it_is_for(stages, make_images):
    source = make_images(4)
    (source / "0002.jpg").write_bytes(b"<html>")
    decode, work = stages(source)
    receipts = work(decode(chunk(1, 3)))
    assert receipts.schema == schemas.RECEIPT
    (receipt,) = receipts.to_pylist()
    expected = {"first": 1, "last": 3, "status": "committed", "done": 2, "failed": 1}
    assert {name: receipt[name] for name in expected} == expected
    rows = work.outputs["captions"].read(IdRange(1, 3))
    assert rows.schema.equals(schemas.CAPTIONS)
    assert [text and text.partition(":")[0] for text in rows.column("caption").to_pylist()] == ["1", None, "3"]
    assert rows.column("error").to_pylist()[1].startswith("NotAnImage: ")


@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_part_that_cannot_be_fetched_leaves_no_trace(stages, make_images, fault):
    source = make_images(40)
    with flaky_server(source.parent) as server:
        decode, work = stages(f"{server.url}/in/")
        server.everything = fault
        (receipt,) = work(decode(chunk(0, 39))).to_pylist()
        # A dead server is not asked again and again, once per image.
        assert sum(server.requests.values()) < 80
    assert (receipt["status"], receipt["done"], receipt["failed"]) == ("deferred", 0, 0)
    assert receipt["reason"]
    assert work.outputs["captions"].finished() == []


def kinds(output, ids):
    return [(error or "").partition(":")[0] for error in output.read(ids).column("error").to_pylist()]


def test_images_that_came_are_committed_and_only_the_others_are_left(stages, make_images):
    source = make_images(6)
    with flaky_server(source.parent) as server:
        decode, work = stages(f"{server.url}/in/")
        server.faults["0001.jpg"], server.faults["0004.jpg"] = (503, 10**6), (404, 10**6)
        (receipt,) = work(decode(chunk(0, 5))).to_pylist()
        assert (receipt["status"], receipt["done"], receipt["failed"], receipt["deferred"]) == ("committed", 4, 1, 1)
        assert receipt["answered"] == f"{server.url}/in/0000.jpg"
        assert kinds(work.outputs["captions"], IdRange(0, 5)) == ["", "Deferred", "", "", "NotFound", ""]
        assert work.outputs["captions"].count([IdRange(0, 5)])[IdRange(0, 5)] == (4, 1, 1)

        (receipt,) = work(decode(chunk(0, 5, "deferred", ["http://127.0.0.1:9/x.jpg"]))).to_pylist()
        assert (receipt["status"], receipt["done"], receipt["failed"]) == ("deferred", 0, 0)
        (receipt,) = work(decode(chunk(0, 5, "deferred"))).to_pylist()  # the canary is found in the file
        assert (receipt["status"], receipt["done"], receipt["failed"]) == ("committed", 0, 1)
        assert kinds(work.outputs["captions"], IdRange(0, 5)) == ["", "HttpError", "", "", "NotFound", ""]
        assert work.outputs["captions"].count([IdRange(0, 5)])[IdRange(0, 5)] == (4, 2, 0)


def test_a_second_attempt_waits_and_settles_what_the_first_deferred(stages, make_images, monkeypatch):
    source = make_images(3)
    pauses: list[float] = []
    monkeypatch.setattr("jobs.batch.decode_stage.time.sleep", pauses.append)
    monkeypatch.setattr("jobs.batch.decode_stage.FIRST_ATTEMPT_PAUSES", 0.001)
    with flaky_server(source.parent) as server:
        decode, work = stages(f"{server.url}/in/")
        second = as_table(Chunk(IdRange(0, 2), "deferred", pause=10.0))
        (receipt,) = work(decode(second)).to_pylist()
        assert receipt["status"] == "nothing"  # the first attempt has failed, or takes too long
        server.faults["0001.jpg"] = (503, 10**6)
        (receipt,) = work(decode(chunk(0, 2))).to_pylist()
        assert (receipt["status"], receipt["deferred"], receipt["pause"]) == ("committed", 1, None)
        server.faults.clear()
        pauses.clear()
        (receipt,) = work(decode(second)).to_pylist()
        assert (receipt["status"], receipt["done"], receipt["pause"]) == ("committed", 1, 10.0)
        assert 0 < max(pauses) <= 10.0
        assert kinds(work.outputs["captions"], IdRange(0, 2)) == ["", "", ""]
        (receipt,) = work(decode(second)).to_pylist()
        assert receipt["status"] == "nothing"  # all images came


def test_a_silent_host_is_at_fault_only_while_another_answers(tmp_path, make_images):
    source = make_images(2)
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/a.jpg\nhttp://no-such-name.invalid/b.jpg\n")
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(tmp_path / "list.txt"),)).list())
    files = ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
    decode = DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=16)), 2)
    with flaky_server(source.parent) as server:
        (row,) = decode(chunk(0, 1, canaries=["http://127.0.0.1:9/c.jpg", f"{server.url}/in/gone.jpg"])).to_pylist()
    assert [image["error"] for image in row["images"]] == [
        "HostUnreachable: 127.0.0.1:9: connection refused",
        "HostUnreachable: no-such-name.invalid:80: unknown host name",
    ]
    (row,) = decode(chunk(0, 1, canaries=[f"{server.url}/in/0000.jpg"])).to_pylist()  # it is gone, too
    assert row["status"] == "deferred"
    assert "HostUnreachable" in row["reason"]


def test_web_servers_that_refuse_are_rows_and_a_storage_that_does_ends_the_job(stages, make_images, monkeypatch):
    source = make_images(3)
    with flaky_server(source.parent) as server:
        decode, _ = stages(f"{server.url}/in/")
        server.everything = 403
        (row,) = decode(chunk(0, 2)).to_pylist()
    assert [image["error"].partition(":")[0] for image in row["images"]] == ["PermissionDenied"] * 3

    def refuse(path, access):
        raise PermissionError(13, "denied", path)

    monkeypatch.setattr("captionlib.storage.read.read_once", refuse)
    (row,) = stages(source)[0](chunk(3, 5)).to_pylist()
    assert row["status"] == "denied"
    assert "none of 3 images may be read" in row["reason"]


def test_one_refused_image_among_others_is_a_row(stages, make_images):
    source = make_images(3)
    with flaky_server(source.parent) as server:
        decode, _ = stages(f"{server.url}/in/")
        server.faults["0001.jpg"] = (403, 10**6)
        (row,) = decode(chunk(0, 2)).to_pylist()
    assert [(image["error"] or "").partition(":")[0] for image in row["images"]] == ["", "PermissionDenied", ""]


def test_only_failed_images_are_fetched_again(stages, make_images):
    source = make_images(3)
    good = (source / "0001.jpg").read_bytes()
    (source / "0001.jpg").write_bytes(b"")
    decode, work = stages(source)
    work(decode(chunk(0, 2)))
    before = work.outputs["captions"].read(IdRange(0, 2)).to_pylist()
    (source / "0001.jpg").write_bytes(good)
    (source / "0000.jpg").unlink()  # it has its row, and is not looked at

    (receipt,) = work(decode(chunk(0, 2, redo="errors"))).to_pylist()

    assert (receipt["done"], receipt["failed"]) == (1, 0)
    after = work.outputs["captions"].read(IdRange(0, 2)).to_pylist()
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1]["error"] is None
    assert after[1]["caption"].startswith("1: ")


def test_what_nobody_foresaw_puts_the_part_off(stages, make_images, monkeypatch):
    decode, work = stages(make_images(2))
    monkeypatch.setattr("captionlib.images.transforms.to_pixels", lambda *_: 1 / 0)
    (receipt,) = work(decode(chunk(0, 1))).to_pylist()
    assert (receipt["status"], receipt["reason"]) == ("deferred", "ZeroDivisionError: division by zero")
    monkeypatch.undo()
    decoded = decode(chunk(0, 1))
    work.processor = lambda *_: 1 / 0
    (receipt,) = work(decoded).to_pylist()
    assert (receipt["status"], receipt["reason"]) == ("deferred", "ZeroDivisionError: division by zero")
    assert work.outputs["captions"].finished() == []


def test_a_machine_that_does_not_see_the_input_says_so(tmp_path):
    folder = Folder.of(str(tmp_path / "m"))
    manifest = Manifest.open(folder).append([ImageRef("/only/there/a.jpg", 5)])
    files = ChunkFiles(folder, "captions")
    decode = DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=16)), 1, ("/only/there",))
    (row,) = decode(chunk(0, 0)).to_pylist()
    assert row["status"] == "denied"
    assert "does not see /only/there: the input must be a folder that all machines share" in row["reason"]


def test_a_machine_that_does_not_see_the_output_writes_nothing(stages, make_images, tmp_path):
    decode, _ = stages(make_images(2))
    elsewhere = ChunkFiles(Folder.of(str(tmp_path / "elsewhere")) / "captions", "captions")
    (receipt,) = ModelStage(StubFactory(), {"captions": elsewhere})(decode(chunk(0, 1))).to_pylist()
    assert receipt["status"] == "denied"
    assert (
        f"does not see {tmp_path}/elsewhere: the output must be a folder that all machines share" in receipt["reason"]
    )
    assert not (tmp_path / "elsewhere").exists()

    (row,) = dataclasses.replace(decode, outputs=elsewhere)(chunk(0, 1)).to_pylist()
    assert (row["status"], row["reason"]) == ("denied", receipt["reason"])


def test_an_image_of_the_manifest_that_is_gone(tmp_path):
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append([ImageRef(str(tmp_path / "gone.jpg"), 5)])
    files = ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
    (row,) = DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=16)), 1)(chunk(0, 0)).to_pylist()
    assert row["images"][0]["error"].startswith("NotFound: ")


@pytest.mark.parametrize(
    "search",
    [
        SearchConfig(max_tokens=8),
        SearchConfig(method="sample", num_captions=3, temperature=2.0, max_tokens=8, seed=5),
    ],
    ids=["beam", "sample"],
)
def test_captions_do_not_depend_on_parts_or_batches(stages, tiny_checkpoint, tmp_path, search):
    source = tmp_path / "in"
    source.mkdir()
    generator = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(source / f"{i}.png")
    (source / "4.png").write_bytes(b"")

    def captions(batch_size, cuts):
        factory = CaptionFactory(open_captioner(str(tiny_checkpoint), search), batch_size, 1, {})
        decode, work = stages(source, factory, size=64)
        found = []
        for first, last in cuts:
            work(decode(chunk(first, last)))
            found += work.outputs["captions"].read(IdRange(first, last)).to_pylist()
        return [(row["image_id"], row["caption"], [c["text"] for c in row["captions"] or []]) for row in found]

    at_once = captions(32, [(0, 8)])
    assert len({text for _, text, _ in at_once}) > 4, "captions that are all alike would prove nothing"
    assert at_once == captions(1, [(0, 8)]) == captions(7, [(0, 1), (2, 7), (8, 8)])


def test_a_chunk_does_not_stand_still_for_a_slow_name(tmp_path, make_images, monkeypatch):
    """Its image is tried again later; with the last attempt the stage waits."""
    source = make_images(8)
    ask = socket.getaddrinfo

    def slow(host, *rest, **more):
        if host == "slow.invalid":
            time.sleep(1.5)
        return ask(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr("jobs.batch.chunk_images.STRAGGLER_SECONDS", 0.2)
    with flaky_server(source.parent) as server:
        urls = [f"{server.url}/in/{i:04d}.jpg" for i in range(8)]
        (tmp_path / "list.txt").write_text("\n".join([*urls, "http://slow.invalid/a.jpg"]))
        manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(tmp_path / "list.txt"),)).list())
        files = ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
        decode = DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=16)), 2)
        started = time.monotonic()
        (row,) = decode(chunk(0, 8)).to_pylist()
        assert time.monotonic() - started < 1.3
        assert [image["error"] for image in row["images"]] == [None] * 8 + ["Deferred: the host has not answered yet"]
        (row,) = decode(chunk(0, 8, canaries=urls[:1])).to_pylist()
    assert row["images"][8]["error"] == "HostUnreachable: slow.invalid:80: unknown host name"


def test_after_a_fault_of_the_storage_the_other_images_are_put_off(tmp_path, make_images, monkeypatch):
    source = make_images(6)
    read_one = ImageReader.read

    def fail(self, image):
        if "0003" in image.path:
            raise TransportFault("the disk is away")
        return read_one(self, image)

    monkeypatch.setattr(ImageReader, "read", fail)
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(source),)).list())
    files = ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
    (row,) = DecodeStage(manifest, files, EncoderSquare(Preprocessing(size=16)), 1)(chunk(0, 5)).to_pylist()
    errors = [image["error"] for image in row["images"]]
    assert errors == [None] * 3 + ["Deferred: the disk is away"] * 3
    assert row["deferred"] == 3
