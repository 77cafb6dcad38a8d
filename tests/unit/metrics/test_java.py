import shutil

import pytest

from captionlib.metrics import java, score_with_java

HYPOTHESES = {"b.jpg": ["a", "dog"], "a.jpg": ["a", "cat"]}
REFERENCES = {"a.jpg": [["the", "cat"]], "b.jpg": [["a", "dog"], ["dogs"]]}


def test_without_java_both_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = score_with_java(HYPOTHESES, REFERENCES)
    assert (scores.meteor, scores.spice, scores.image_meteor) == (None, None, {})
    assert scores.notes == (
        "METEOR and SPICE left out: there is no Java on the PATH (such as Debian's default-jre-headless)",
    )


def test_without_the_package_both_are_left_out_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert "pip install 'captionlib[eval]'" in score_with_java(HYPOTHESES, REFERENCES).notes[0]


def test_scores_go_to_their_images_and_missing_models_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake_meteor(truths: object, results: object) -> tuple[float, list[float]]:
        asked.append((truths, results))
        return 0.5, [0.75, 0.25]

    monkeypatch.setattr(java, "_missing", lambda: "")
    monkeypatch.setattr(java, "_meteor", fake_meteor)
    monkeypatch.setattr(java, "_spice_models", lambda: False)
    scores = score_with_java(HYPOTHESES, REFERENCES)
    assert asked == [({0: ["a dog", "dogs"], 1: ["the cat"]}, {0: ["a dog"], 1: ["a cat"]})]
    assert (scores.meteor, scores.image_meteor) == (0.5, {"b.jpg": 0.75, "a.jpg": 0.25})
    assert scores.spice is None
    assert len(scores.notes) == 1
    assert "get_stanford_models" in scores.notes[0]


def test_a_program_that_dies_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(truths: object, results: object) -> tuple[float, list[float]]:
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr(java, "_missing", lambda: "")
    monkeypatch.setattr(java, "_spice_models", lambda: True)
    monkeypatch.setattr(java, "_meteor", dies)
    monkeypatch.setattr(java, "_spice", lambda truths, results: (0.1, [0.2, 0.0]))
    scores = score_with_java(HYPOTHESES, REFERENCES)
    assert scores.meteor is None
    assert scores.notes == ("METEOR left out: its Java program failed (Broken pipe)",)
    assert (scores.spice, scores.image_spice) == (0.1, {"b.jpg": 0.2, "a.jpg": 0.0})
