import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captionlib.metrics import score_captions
from jobs.evaluate import IMAGE_SCORES, main
from jobs.outputs import schemas

PHOTOS = Path(__file__).parents[1] / "photos"
REFERENCES = {
    "cat.jpg": ["A cat looks at the camera .", "A tabby cat"],
    "coffee.jpg": ["A cup of coffee on a table .", "An espresso"],
    "rocket.jpg": ["A rocket starts .", "A rocket on its way to the moon"],
}
CAPTIONS = {"cat.jpg": "a cat looks at the camera", "coffee.jpg": "a cup on a", "rocket.jpg": "a tower"}


@pytest.fixture
def references(tmp_path: Path) -> str:
    rows = [f'{name},"{text}"' for name, texts in REFERENCES.items() for text in texts]
    path = tmp_path / "references.csv"
    path.write_text("\n".join(["path,caption", *rows]))
    return str(path)


def write_rows(path: Path, captions: dict[str, str | None], first: int = 0) -> str:
    """As the caption job writes them."""
    rows = [
        {
            "image_id": first + number,
            "path": name,
            "caption": caption,
            "error": None if caption is not None else "TruncatedImage: it ends in the middle",
        }
        for number, (name, caption) in enumerate(captions.items())
    ]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schemas.CAPTIONS), path)
    return str(path)


def run(captions: str, references: str, output: Path, *flags: str) -> dict[str, Any]:
    kind = [] if "--kind" in flags else ["--kind", "csv"]
    assert main([captions, references, "--output", str(output), "--no-java", *kind, *flags]) == 0
    scores: dict[str, Any] = json.loads((output / "scores.json").read_text())
    return scores


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--no-java"]) == 2
    return capsys.readouterr().err


def test_scores_of_the_job_s_rows(tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str]) -> None:
    captions = write_rows(tmp_path / "captions.parquet", {f"/far/{name}": text for name, text in CAPTIONS.items()})
    record = run(captions, references, tmp_path / "scores", "--images-root", str(PHOTOS))
    expected = score_captions(CAPTIONS, REFERENCES)
    assert record["signature"] == expected.signature
    assert record["num_images"] == 3
    assert record["notes"] == []
    assert record["scores"] == expected.corpus
    assert list(record["scores"]) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert record["diversity"]["share_dangling"] == pytest.approx(1 / 3)
    assert record["settings"]["images_root"] == str(PHOTOS)
    printed = capsys.readouterr().out
    assert expected.signature in printed
    assert f"{expected.cider_d:.4f}" in printed

    table = pq.read_table(tmp_path / "scores" / "images.parquet")
    assert table.schema == IMAGE_SCORES
    rows = {Path(row["path"]).name: row for row in table.to_pylist()}
    assert rows["cat.jpg"]["references"] == REFERENCES["cat.jpg"]
    assert rows["cat.jpg"]["cider_d"] == expected.images["cat.jpg"]["cider_d"]
    assert rows["cat.jpg"]["meteor"] is None


def test_the_report_shows_the_best_and_the_worst_with_their_photos(tmp_path: Path, references: str) -> None:
    captions = write_rows(tmp_path / "captions.parquet", {f"{PHOTOS}/{name}": text for name, text in CAPTIONS.items()})
    run(captions, references, tmp_path / "scores")
    page = (tmp_path / "scores" / "report.html").read_text()
    assert page.index("a cat looks at the camera") < page.index("a tower")
    assert page.count("data:image/jpeg;base64,") == 2
    run(captions, references, tmp_path / "plain", "--no-report")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["images.parquet", "scores.json"]


def test_finished_files_of_a_folder_count_and_leftovers_do_not(tmp_path: Path, references: str) -> None:
    folder = tmp_path / "out"
    write_rows(folder / "captions-000000000000-000000000001.parquet", dict(list(CAPTIONS.items())[:2]))
    write_rows(folder / "captions-000000000000-000000000002.parquet", dict(CAPTIONS))
    write_rows(folder / "manifest-000000000000-000000000002.parquet", dict(CAPTIONS))
    assert run(str(folder), references, tmp_path / "scores")["num_images"] == 3


def test_plain_parquet_files_of_a_folder(tmp_path: Path, references: str) -> None:
    write_rows(tmp_path / "out" / "a.parquet", dict(list(CAPTIONS.items())[:2]))
    write_rows(tmp_path / "out" / "b.parquet", dict(list(CAPTIONS.items())[2:]))
    assert run(str(tmp_path / "out"), references, tmp_path / "scores")["num_images"] == 3


def test_results_in_coco_s_form_go_by_the_numbers_of_the_annotations(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(REFERENCES)]
    annotations = [
        {"image_id": image["id"], "caption": text} for image in images for text in REFERENCES[str(image["file_name"])]
    ]
    annotations_file = tmp_path / "captions.json"
    annotations_file.write_text(json.dumps({"images": images, "annotations": annotations}))
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps([{"image_id": image["id"], "caption": CAPTIONS[str(image["file_name"])]} for image in images])
    )
    record = run(str(results), str(annotations_file), tmp_path / "scores", "--kind", "coco")
    assert record["scores"]["cider_d"] == score_captions(CAPTIONS, REFERENCES).cider_d


def test_results_may_hold_file_names(tmp_path: Path, references: str) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": name, "caption": text} for name, text in CAPTIONS.items()]))
    assert run(str(results), references, tmp_path / "scores")["num_images"] == 3


def test_numbers_need_references_of_coco(tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 1, "caption": "a cat"}]')
    assert "give --kind coco" in failure(capsys, str(results), references, "--kind", "csv")


def test_captions_of_other_images_are_left_aside_with_a_note(tmp_path: Path, references: str) -> None:
    captions = write_rows(tmp_path / "captions.parquet", {**CAPTIONS, "dog.jpg": "a dog"})
    record = run(captions, references, tmp_path / "scores")
    assert record["num_images"] == 3
    assert record["notes"] == ["1 captions of images without references were ignored"]


def test_images_without_a_caption_stop_it_unless_that_is_said(
    tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = write_rows(tmp_path / "captions.parquet", {"cat.jpg": "a cat", "coffee.jpg": None})
    message = failure(capsys, captions, references, "--kind", "csv")
    assert "2 of 3 images with references have no caption (coffee.jpg, rocket.jpg)" in message
    assert "--partial" in message
    assert not (tmp_path / "captions-scores").exists()
    record = run(captions, references, tmp_path / "scores", "--partial")
    assert record["num_images"] == 1
    assert "the scores are those of the others" in record["notes"][0]


def test_nothing_in_common_shows_both_sides(
    tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = write_rows(tmp_path / "captions.parquet", {"dog.jpg": "a dog"})
    message = failure(capsys, captions, references, "--kind", "csv")
    assert "'dog.jpg'" in message
    assert "cat.jpg'" in message


def test_images_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = tmp_path / "references.csv"
    references.write_text("path,caption\n/a/1.jpg,a cat\n/b/1.jpg,a dog\n")
    captions = write_rows(tmp_path / "captions.parquet", {"/a/1.jpg": "a cat", "/b/1.jpg": "a dog"})
    assert "--match path" in failure(capsys, captions, str(references), "--kind", "csv")
    record = run(captions, str(references), tmp_path / "scores", "--match", "path")
    assert record["scores"]["bleu_1"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "neither Parquet nor JSON"),
        (b'{"image_id": 1}', "expected COCO's results form"),
        (b'[{"image_id": "cat.jpg"}]', "entry 0 has no image_id or no caption"),
        (b"[]", "there are no captions"),
    ],
)
def test_files_that_are_no_captions(
    tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "captions"
    path.write_bytes(content)
    assert message in failure(capsys, str(path), references, "--kind", "csv")


def test_missing_files_folders_and_columns(tmp_path: Path, references: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in failure(capsys, str(tmp_path / "nowhere"), references, "--kind", "csv")
    (tmp_path / "empty").mkdir()
    assert "no Parquet files" in failure(capsys, str(tmp_path / "empty"), references, "--kind", "csv")
    pq.write_table(pa.table({"path": ["cat.jpg"], "text": ["a cat"]}), tmp_path / "other.parquet")
    message = failure(capsys, str(tmp_path / "other.parquet"), references, "--kind", "csv")
    assert "no column 'caption', only path, text" in message


def test_captions_of_the_training_set_are_counted(tmp_path: Path, references: str) -> None:
    training = tmp_path / "training.csv"
    training.write_text('path,caption,split\nx.jpg,"A TOWER .",train\ny.jpg,a cup on a,dev\n')
    captions = write_rows(tmp_path / "captions.parquet", dict(CAPTIONS))
    record = run(captions, references, tmp_path / "scores", "--train-captions", str(training))
    assert record["diversity"]["share_from_training"] == pytest.approx(1 / 3)
