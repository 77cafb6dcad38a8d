import math

import pytest
import torch
import torch.nn.functional as F

from captionlib.training.losses import caption_loss, doubly_stochastic_penalty


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
    sums = caption_loss(logits, torch.tensor([0, 1]))
    assert float(sums.objective) == pytest.approx(-math.log(0.5) - math.log(0.1))
    assert float(sums.cross_entropy) == pytest.approx(-math.log(0.5) - math.log(0.1))
    assert sums.num_words == 2


def test_label_smoothing_by_hand() -> None:
    # A tenth of the target goes to the three words alike.
    sums = caption_loss(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0]), label_smoothing=0.1)
    everywhere = -(math.log(0.5) + 2 * math.log(0.25)) / 3
    assert float(sums.objective) == pytest.approx(0.9 * -math.log(0.5) + 0.1 * everywhere)
    assert float(sums.cross_entropy) == pytest.approx(-math.log(0.5))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_equals_pytorch_and_merges_by_addition(label_smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(20, 9, requires_grad=True), torch.randint(9, (20,))
    whole = caption_loss(logits, targets, label_smoothing)
    expected = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    assert whole.objective.item() / 20 == pytest.approx(expected.item())
    assert float(whole.cross_entropy) / 20 == pytest.approx(F.cross_entropy(logits, targets).item())
    (gradient,) = torch.autograd.grad(whole.objective / 20, logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
    parts = [caption_loss(logits[rows], targets[rows], label_smoothing) for rows in (slice(7), slice(7, 20))]
    assert sum(part.objective.item() for part in parts) == pytest.approx(whole.objective.item())
    assert sum(float(part.cross_entropy) for part in parts) == pytest.approx(float(whole.cross_entropy))
    assert sum(part.num_words for part in parts) == whole.num_words


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.zeros(3000, 1000, dtype=torch.float16)
    sums = caption_loss(logits, torch.zeros(3000, dtype=torch.int64))
    assert float(sums.objective) == pytest.approx(3000 * math.log(1000), rel=1e-4)


def test_doubly_stochastic_by_hand() -> None:
    # A caption of three words at two positions, one of a single word, and a missing one.
    attention = torch.tensor([[[2.0, 1.0], [0.25, 0.75], [0.0, 0.0]]], requires_grad=True)
    penalty = doubly_stochastic_penalty(attention)
    assert penalty.item() == pytest.approx((1 - 2) ** 2 + 0 + 0.75**2 + 0.25**2)
    penalty.backward()
    assert attention.grad is not None
    assert attention.grad[0].tolist() == [[2.0, 0.0], [-1.5, -0.5], [0.0, 0.0]]


def test_what_teachers_think_by_hand() -> None:
    # Half of the objective asks for what they think: a quarter, three quarters, nothing.
    logits, taught = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.75, 0.0]])
    sums = caption_loss(logits, torch.tensor([0]), 0.0, taught, 0.5)
    theirs = -(0.25 * math.log(0.5) + 0.75 * math.log(0.25))
    assert float(sums.objective) == pytest.approx(0.5 * -math.log(0.5) + 0.5 * theirs)
    assert float(sums.cross_entropy) == pytest.approx(-math.log(0.5))


def test_weights_scale_each_word_of_the_objective_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
    sums = caption_loss(logits, torch.tensor([0, 1]), weights=torch.tensor([1.0, 0.5]))
    assert float(sums.objective) == pytest.approx(-math.log(0.5) - 0.5 * math.log(0.1))
    assert float(sums.cross_entropy) == pytest.approx(-math.log(0.5) - math.log(0.1))  # what is reported is not scaled
    assert sums.num_words == 2
