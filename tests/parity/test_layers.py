"""Layers equal PyTorch's own modules, and decoders equal their papers' equations written out word by word."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders import Decoder, build_decoder
from captionlib.decoders.attention import AdditiveAttention, DotAttention, MultiHeadAttention
from captionlib.decoders.transformer import TransformerLayer
from captionlib.vocabulary import BOS, EOS, PAD

pytestmark = pytest.mark.parity

WIDTH, HEADS = 24, 4
Weights = dict[str, Tensor]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def copy_linear(target: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        target.weight.copy_(weight)
        target.bias.copy_(bias)


def copy_heads(target: MultiHeadAttention, source: nn.MultiheadAttention) -> None:
    layers = (target.project_query, target.project_key, target.project_value)
    for layer, weight, bias in zip(layers, source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3), strict=True):
        copy_linear(layer, weight, bias)
    copy_linear(target.project_context, source.out_proj.weight, source.out_proj.bias)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Biases and norms as well, which start at 0 and 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@torch.no_grad()
def test_multi_head_attention() -> None:
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()
    randomise(reference)
    attention = MultiHeadAttention(WIDTH, WIDTH, HEADS)
    copy_heads(attention, reference)
    query, values = torch.randn(3, 5, WIDTH), torch.randn(3, 7, WIDTH)
    mask = torch.rand(3, 7) < 0.7
    mask[:, 0] = True
    context, weights = attention(query, attention.keys(values), values, mask)
    expected_context, expected_weights = reference(query, values, values, key_padding_mask=~mask)
    close(context, expected_context)
    close(weights, expected_weights)


@torch.no_grad()
def test_scaled_dot_attention() -> None:
    torch.manual_seed(0)
    attention = DotAttention(WIDTH, 9, scaled=True)
    query, values = torch.randn(3, 5, WIDTH), torch.randn(3, 7, 9)
    context, _ = attention(query, attention.keys(values), values)
    close(context, F.scaled_dot_product_attention(query, attention.project_key(values), values))


@torch.no_grad()
def test_additive_attention() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(WIDTH, 9, 11)
    query, values = torch.randn(2, 3, WIDTH), torch.randn(2, 7, 9)
    context, weights = attention(query, attention.keys(values), values)
    for b in range(2):
        for k in range(3):
            scores = [
                attention.score(torch.tanh(attention.project_query(query[b, k]) + attention.project_key(value)))
                for value in values[b]
            ]
            expected = torch.cat(scores).softmax(dim=0)
            close(weights[b, k], expected)
            close(context[b, k], sum(w * v for w, v in zip(expected, values[b], strict=True)))


@torch.no_grad()
def test_transformer_layer() -> None:
    reference = nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, norm_first=True, batch_first=True).eval()
    randomise(reference)
    layer = TransformerLayer(WIDTH, HEADS, dropout=0.1).eval()
    copy_linear(layer.project_words, reference.self_attn.in_proj_weight, reference.self_attn.in_proj_bias)
    copy_linear(layer.project_context, reference.self_attn.out_proj.weight, reference.self_attn.out_proj.bias)
    copy_heads(layer.image_attention, reference.multihead_attn)
    for target, source in (
        (layer.norm_words, reference.norm1),
        (layer.norm_image, reference.norm2),
        (layer.norm_feed_forward, reference.norm3),
        (layer.feed_forward[0], reference.linear1),
        (layer.feed_forward[3], reference.linear2),
    ):
        copy_linear(target, source.weight, source.bias)  # type: ignore[arg-type]
    x, image = torch.randn(3, 6, WIDTH), torch.randn(3, 7, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    expected = reference(x, image, tgt_mask=causal, tgt_is_causal=True)
    keys = layer.image_attention.keys(image)
    nothing = x.new_zeros(3, 0, 2 * WIDTH)
    at_once, _, _ = layer(x, nothing, keys)
    close(at_once, expected)
    words, outputs = nothing, []
    for t in range(6):
        output, _, words = layer(x[:, t : t + 1], words, keys)
        outputs.append(output)
    close(torch.cat(outputs, dim=1), expected)


# The papers' equations. A reference takes the decoder's weights by name, the features of one image (N, D) and one
# caption, and gives the logits of each word that follows.


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def lstm(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter & Schmidhuber 1997 with forget gates; PyTorch keeps the gates in the order i, f, g, o."""
    gates = w["cell.weight_ih"] @ x + w["cell.bias_ih"] + w["cell.weight_hh"] @ h + w["cell.bias_hh"]
    i, f, g, o = gates.chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def project(w: Weights, features: Tensor) -> Tensor:
    """(N, D) → (N, P), layer-normalised."""
    rows = []
    for feature in features:
        x = linear(w, "project.layers.0", feature)
        x = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)
        rows.append(x * w["project.layers.1.weight"] + w["project.layers.1.bias"])
    return torch.stack(rows)


def additive(w: Weights, key: str, h: Tensor, x: Tensor) -> Tensor:
    """w · tanh(W_q h + W_k x)."""
    return linear(w, "attention.score", torch.tanh(linear(w, "attention.project_query", h) + linear(w, key, x)))


def word_logits(w: Weights, x: Tensor) -> Tensor:
    return w["words.embedding.weight"] @ x + w["words.output_bias"]


def word_read(w: Weights, word: int) -> Tensor:
    """A word as a cell reads it: the table holds it at a sixteenth."""
    return 16 * w["words.embedding.weight"][word]


def show_and_tell(w: Weights, features: Tensor, caption: list[int]) -> list[Tensor]:
    """Vinyals et al. 2015, eq. 10-12."""
    zeros = torch.zeros(w["cell.weight_hh"].shape[1])
    image = linear(w, "embed_image", project(w, features.mean(dim=0, keepdim=True))[0])
    h, c = lstm(w, image, zeros, zeros)
    logits = []
    for word in caption:
        h, c = lstm(w, word_read(w, word), h, c)
        logits.append(word_logits(w, linear(w, "output", h)))
    return logits


def show_attend_and_tell(w: Weights, features: Tensor, caption: list[int]) -> list[Tensor]:
    """Xu et al. 2015, eq. 1-7 and section 4.2.1."""
    values = project(w, features)
    h = torch.tanh(linear(w, "init_h", values.mean(dim=0)))
    c = torch.tanh(linear(w, "init_c", values.mean(dim=0)))
    logits = []
    for word in caption:
        weights = torch.cat([additive(w, "attention.project_key", h, value) for value in values]).softmax(dim=0)
        context = torch.sigmoid(linear(w, "gate", h)) * (weights @ values)
        embedded = w["words.embedding.weight"][word]
        h, c = lstm(w, torch.cat([word_read(w, word), context]), h, c)
        logits.append(word_logits(w, embedded + linear(w, "output_h", h) + linear(w, "output_z", context)))
    return logits


def knowing_when_to_look(w: Weights, features: Tensor, caption: list[int]) -> list[Tensor]:
    """Lu et al. 2017, eq. 6-13."""
    values = project(w, features)
    image = torch.relu(linear(w, "embed_image", values.mean(dim=0)))
    h = c = torch.zeros(w["cell.weight_hh"].shape[1])
    logits = []
    for word in caption:
        x = torch.cat([word_read(w, word), image])
        gate = torch.sigmoid(linear(w, "sentinel_x", x) + linear(w, "sentinel_h", h))
        h, c = lstm(w, x, h, c)
        sentinel = gate * torch.tanh(c)
        places = torch.cat([additive(w, "attention.project_key", h, value) for value in values])
        alpha = places.softmax(dim=0)
        beta = torch.cat([places, additive(w, "sentinel_key", h, sentinel)]).softmax(dim=0)[-1]
        context = beta * sentinel + (1 - beta) * (alpha @ values)
        logits.append(word_logits(w, linear(w, "output", context + h)))
    return logits


def transformer(w: Weights, features: Tensor, caption: list[int]) -> list[Tensor]:
    """Vaswani et al. 2017 by PyTorch's own layers; the layer's weights were compared above."""
    values = project(w, features)
    width = values.shape[1]
    place = torch.arange(len(caption)).unsqueeze(1)
    x = w["words.embedding.weight"][caption] * math.sqrt(width)
    for i in range(width):
        angle = place[:, 0] / 10_000 ** (2 * (i // 2) / width)
        x[:, i] += angle.sin() if i % 2 == 0 else angle.cos()
    for layer in range(2):
        v = {name.removeprefix(f"layers.{layer}."): value for name, value in w.items()}
        reference = nn.TransformerDecoderLayer(width, HEADS, 4 * width, norm_first=True, batch_first=True).eval()
        image = [f"image_attention.project_{part}" for part in ("query", "key", "value")]
        reference.load_state_dict(
            {
                "self_attn.in_proj_weight": v["project_words.weight"],
                "self_attn.in_proj_bias": v["project_words.bias"],
                "multihead_attn.in_proj_weight": torch.cat([v[f"{name}.weight"] for name in image]),
                "multihead_attn.in_proj_bias": torch.cat([v[f"{name}.bias"] for name in image]),
            }
            | {
                f"{theirs}.{kind}": v[f"{ours}.{kind}"]
                for kind in ("weight", "bias")
                for theirs, ours in {
                    "self_attn.out_proj": "project_context",
                    "multihead_attn.out_proj": "image_attention.project_context",
                    "linear1": "feed_forward.0",
                    "linear2": "feed_forward.3",
                    "norm1": "norm_words",
                    "norm2": "norm_image",
                    "norm3": "norm_feed_forward",
                }.items()
            }
        )
        mask = nn.Transformer.generate_square_subsequent_mask(len(caption))
        x = reference(x.unsqueeze(0), values.unsqueeze(0), tgt_mask=mask)[0]
    x = F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"])
    return [word_logits(w, row) for row in x]


REFERENCES = {
    "lstm_init": show_and_tell,
    "lstm_attention": show_attend_and_tell,
    "lstm_adaptive": knowing_when_to_look,
    "transformer": transformer,
}


def decoder_of(kind: str) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        kind=kind,  # type: ignore[arg-type]
        projection_dim=WIDTH,
        hidden_dim=WIDTH,
        embedding_dim=10,
        attention_dim=11,
        num_heads=HEADS,
    )
    decoder = build_decoder(config, 13, 20).eval()
    randomise(decoder)
    return decoder


@pytest.mark.parametrize("kind", REFERENCES)
@torch.no_grad()
def test_decoder_equals_its_paper(kind: str) -> None:
    decoder = decoder_of(kind)
    captions = [[[5, 6, 7, 8, 5], [9]], [[10, 11], [12, 13, 14]], [[], [15, 4, 4]]]
    tokens = torch.full((3, 2, 7), PAD)
    for b, of_image in enumerate(captions):
        for k, caption in enumerate(of_image):
            tokens[b, k, : len(caption) + 2] = torch.tensor([BOS, *caption, EOS])
    features = torch.randn(3, 6, 13)
    output = decoder(features, tokens)
    weights = decoder.state_dict()
    for b, of_image in enumerate(captions):
        for k, caption in enumerate(of_image):
            mine = output.captions == b * 2 + k
            assert output.targets[mine].tolist() == [*caption, EOS]
            close(output.logits[mine], torch.stack(REFERENCES[kind](weights, features[b], [BOS, *caption])))
