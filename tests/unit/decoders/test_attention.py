import math

import pytest
import torch
from torch import Tensor

from captionlib.decoders.attention import (
    ATTENTION_KINDS,
    AdditiveAttention,
    Attention,
    DotAttention,
    GeneralAttention,
    MultiHeadAttention,
)

# Two positions with values (1, 0) and (0, 2).
VALUES = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])


def look(attention: Attention, query: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return attention(query, attention.keys(values), values, mask)


def set_weights(attention: Attention, **weights: list) -> None:
    parameters = dict(attention.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
        for name, value in weights.items():
            parameters[name.replace("__", ".")].copy_(torch.tensor(value, dtype=torch.float32))


def softmax(*scores: float) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def check(attention: Attention, query: list[float], scores: tuple[float, float]) -> None:
    """One query at VALUES: the weights are the softmax of these scores, the context their mean of the values."""
    context, weights = look(attention, torch.tensor([[query]]), VALUES)
    first, second = softmax(*scores)
    assert weights.flatten().tolist() == pytest.approx([first, second], abs=1e-6)
    assert context.flatten().tolist() == pytest.approx([first, 2 * second], abs=1e-6)


def test_dot_by_hand() -> None:
    attention = DotAttention(2, 2, scaled=False)
    set_weights(attention, project_key__weight=[[1, 0], [0, 1]])
    check(attention, [3.0, 1.0], (3.0, 2.0))


def test_scaled_dot_by_hand() -> None:
    attention = DotAttention(2, 2, scaled=True)
    set_weights(attention, project_key__weight=[[1, 0], [0, 1]])
    check(attention, [3.0, 1.0], (3 / math.sqrt(2), 2 / math.sqrt(2)))


def test_general_by_hand() -> None:
    attention = GeneralAttention(3, 2)
    set_weights(attention, project_query__weight=[[1, 0, 1], [0, 1, 0]])
    check(attention, [1.0, 0.5, 2.0], (3.0, 1.0))


def test_additive_by_hand() -> None:
    attention = AdditiveAttention(1, 2, 2)
    set_weights(
        attention,
        project_query__weight=[[1], [-1]],
        project_query__bias=[0.1, 0.2],
        project_key__weight=[[1, 0], [0, 1]],
        score__weight=[[2, 3]],
    )
    # Query 0.5 comes to (0.6, -0.3); the positions add (1, 0) and (0, 2).
    check(
        attention,
        [0.5],
        (2 * math.tanh(1.6) + 3 * math.tanh(-0.3), 2 * math.tanh(0.6) + 3 * math.tanh(1.7)),
    )


def test_additive_is_tanh_far_out_too() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(5, 6, 7)
    query, values = 20 * torch.randn(2, 3, 5), 20 * torch.randn(2, 4, 6)
    _, weights = look(attention, query, values)
    with torch.no_grad():
        compared = attention.project_query(query)[:, :, None] + attention.project_key(values)[:, None]
        expected = attention.score(torch.tanh(compared)).squeeze(-1).softmax(dim=-1)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)


def test_heads_look_at_their_own_part() -> None:
    attention = MultiHeadAttention(2, 2, 2)
    eye = [[1, 0], [0, 1]]
    set_weights(
        attention,
        project_query__weight=eye,
        project_key__weight=eye,
        project_value__weight=eye,
        project_context__weight=eye,
    )
    # Head 1 sees keys 1 and 0, head 2 sees 0 and 2; widths are 1, so nothing is scaled.
    context, weights = look(attention, torch.tensor([[[3.0, 1.0]]]), VALUES)
    head_1, head_2 = softmax(3.0, 0.0), softmax(0.0, 2.0)
    assert context.flatten().tolist() == pytest.approx([head_1[0], 2 * head_2[1]])
    expected = [(head_1[i] + head_2[i]) / 2 for i in range(2)]
    assert weights.flatten().tolist() == pytest.approx(expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads 3 must divide .* 8"):
        MultiHeadAttention(8, 8, 3)


def build(kind: str) -> Attention:
    torch.manual_seed(0)
    return ATTENTION_KINDS[kind](5, 6, 7, 2)


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_every_kind_keeps_the_contract(kind: str) -> None:
    attention = build(kind)
    query, values = torch.randn(3, 4, 5), torch.randn(3, 9, 6)
    context, weights = look(attention, query, values)
    assert context.shape == (3, 4, 6)
    assert weights.shape == (3, 4, 9)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4))
    # A query, and an image, is looked up without regard to the others.
    one, one_weights = look(attention, query[1:2, 2:3], values[1:2])
    torch.testing.assert_close(one[0, 0], context[1, 2])
    torch.testing.assert_close(one_weights[0, 0], weights[1, 2])


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_masked_positions_might_as_well_not_be_there(kind: str) -> None:
    attention = build(kind)
    query, values = torch.randn(2, 4, 5), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False], [True, True, True, True, True]])
    context, weights = look(attention, query, values, mask)
    assert (weights[0, :, [2, 4]] == 0).all()
    fewer, _ = look(attention, query[:1], values[:1, [0, 1, 3]])
    torch.testing.assert_close(context[:1], fewer)
    unmasked, _ = look(attention, query[1:], values[1:])
    torch.testing.assert_close(context[1:], unmasked)
