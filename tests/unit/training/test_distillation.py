"""Teachers: their probabilities are averaged, go to the student's words in its order, and are what it learns."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from captionlib.config import DecoderConfig
from captionlib.decoders import Decoder, build_decoder
from captionlib.training.batches import Batch, pad_captions
from captionlib.training.distillation import Teachers
from captionlib.training.learner import Learner
from captionlib.training.settings import OptimizerSettings, TrainingSettings
from captionlib.vocabulary import BOS, EOS

WIDTH, VOCABULARY = 6, 12
# Two images with two captions each, of lengths that recurrent decoders and transformers list in different orders.
CAPTIONS = [[[4, 5], [6, 7, 8, 9]], [[10, 11, 4], [5]]]


def make_decoder(kind: Literal["lstm_attention", "transformer"], seed: int) -> Decoder:
    torch.manual_seed(seed)
    config = DecoderConfig(
        kind=kind, projection_dim=8, hidden_dim=8, embedding_dim=8, attention_dim=8, num_heads=2, dropout=0.0
    )
    return build_decoder(config, WIDTH, VOCABULARY).eval()


@pytest.fixture
def features() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, WIDTH)


def spelled(words: list[int]) -> torch.Tensor:
    return torch.tensor([[[BOS, *words, EOS]]])


def test_each_word_gets_the_mean_of_what_the_teachers_think_of_it(features: torch.Tensor) -> None:
    student = make_decoder("lstm_attention", 1)
    teachers = [make_decoder("transformer", 2), make_decoder("lstm_attention", 3)]
    tokens = pad_captions(CAPTIONS)
    output = student(features, tokens)
    taught = Teachers(teachers).probabilities(features, tokens, output.captions)
    torch.testing.assert_close(taught.sum(dim=-1), torch.ones(len(output.targets)))
    for image in range(2):
        for number, words in enumerate(CAPTIONS[image]):
            rows = output.captions == image * 2 + number
            assert output.targets[rows].tolist() == [*words, EOS]
            alone = [t(features[image : image + 1], spelled(words)).logits.softmax(dim=-1) for t in teachers]
            torch.testing.assert_close(taught[rows], (alone[0] + alone[1]) / 2)


def test_a_student_that_only_listens_comes_to_think_like_its_teacher(features: torch.Tensor) -> None:
    student, teacher = make_decoder("lstm_attention", 1), make_decoder("lstm_attention", 2)
    with torch.no_grad():  # an opinion to learn: in the first words, the fifth of them
        teacher.words.output_bias[4] = 3.0  # type: ignore[operator, union-attr]
    tokens = pad_captions(CAPTIONS)
    settings = TrainingSettings(teacher_share=1.0, optimizer=OptimizerSettings(learning_rate=0.02, schedule="constant"))
    learner = Learner(student, student, settings, steps_per_epoch=150, teachers=Teachers([teacher]))
    batch = Batch(features, tokens, np.arange(2), num_words=14, num_captions=4, num_images=2)

    def distance() -> float:
        with torch.no_grad():
            theirs, ours = teacher(features, tokens), student.eval()(features, tokens)
        return float((theirs.logits.softmax(-1) - ours.logits.softmax(-1)).abs().max())

    before = distance()
    for _ in range(150):
        learner.step(batch)
    assert before > 0.3
    assert distance() < 0.1


def test_who_teaches_does_not_learn() -> None:
    teacher = make_decoder("lstm_attention", 1).train()
    Teachers([teacher])
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_nobody_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="no teacher"):
        Teachers([])
