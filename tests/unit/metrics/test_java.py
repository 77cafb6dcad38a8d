import shutil

import pytest

from captionlib.metrics import Scores, java, score_captions

HYPOTHESES = {"b.jpg": "a dog", "a.jpg": "a cat"}
REFERENCES = {"a.jpg": ["the cat"], "b.jpg": ["a dog", "dogs"]}


def score() -> Scores:
    return score_captions(HYPOTHESES, REFERENCES, (java.METEOR, java.SPICE))


def test_without_java_both_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = score()
    assert (scores.corpus, scores.images) == ({}, {"b.jpg": {}, "a.jpg": {}})
    assert scores.notes == (
        "METEOR and SPICE left out: there is no Java on the PATH (such as Debian's default-jre-headless)",
    )


def test_without_the_package_both_are_left_out_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert "pip install 'captionlib[eval]'" in score().notes[0]


def test_scores_go_to_their_images_and_missing_models_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake_meteor(truths: object, results: object) -> tuple[float, list[float]]:
        asked.append((truths, results))
        return 0.5, [0.75, 0.25]

    monkeypatch.setattr(java, "_missing", lambda: "")
    monkeypatch.setattr(java, "_meteor", fake_meteor)
    monkeypatch.setattr(java, "_spice_models", lambda: False)
    scores = score()
    assert asked == [({0: ["a dog", "dogs"], 1: ["the cat"]}, {0: ["a dog"], 1: ["a cat"]})]
    assert scores.corpus == {"meteor": 0.5}
    assert scores.images == {"b.jpg": {"meteor": 0.75}, "a.jpg": {"meteor": 0.25}}
    assert "|meteor:1.5|captionlib" in scores.signature
    assert len(scores.notes) == 1
    assert scores.notes[0].startswith("SPICE left out: ")
    assert "get_stanford_models" in scores.notes[0]


def test_a_program_that_dies_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(truths: object, results: object) -> tuple[float, list[float]]:
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr(java, "_missing", lambda: "")
    monkeypatch.setattr(java, "_spice_models", lambda: True)
    monkeypatch.setattr(java, "_meteor", dies)
    monkeypatch.setattr(java, "_spice", lambda truths, results: (0.1, [0.2, 0.0]))
    scores = score()
    assert scores.notes == ("METEOR left out: its Java program failed (Broken pipe)",)
    assert scores.corpus == {"spice": 0.1}
    assert scores.images == {"b.jpg": {"spice": 0.2}, "a.jpg": {"spice": 0.0}}
