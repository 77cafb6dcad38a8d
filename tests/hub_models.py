"""Tiny models of the hub's families with random weights, saved as the hub has them: made from their settings alone.

Weights are drawn wide, so that a caption depends on its image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SENTENCES = (
    "a cat sits on a wooden chair and looks at the camera",
    "a man with a camera stands in a field and takes a photograph",
    "a rocket stands on its launch pad under a cloudy sky",
    "a cup of coffee and a spoon lie on a table",
    "a woman in an orange suit smiles in front of a flag",
    "a pagoda rises over green trees near the water",
    "An image of a flower with yellow petals in the garden",
    "What does the image describe? Describe this image in one sentence.",
    "a band plays music on a stage at night for the people",
    "a shepherd dog runs over the meadow behind some sheep",
    "You are brief. User: Assistant: USER: ASSISTANT: user assistant system\n",
)
ENDS = [2, *range(20, 50)]
"""What ends the captions of chat models: so many tokens, so that captions have different lengths."""
WORDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_tokenizer(special: str, template: str | None = None, **names: Any) -> Any:
    """A tokenizer trained on the sentences.

    Args:
        special: tokens, in order of their ids, separated by spaces.
        template: what an encoded text gets around it, such as "[CLS] $A [SEP]".
        names: `bos_token` and the like.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special.split(), show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    if template is not None:
        around = [(token, made.token_to_id(token)) for token in template.split() if token != "$A"]
        made.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def save(model: Any, folder: Path, *parts: Any, scale: float = 1.0) -> None:
    """Draw a model's weights, and save it with its processor."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * scale / value[0].numel() ** 0.5)
            elif name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    model.eval().save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)


def clip_images(side: int, **more: Any) -> Any:
    from transformers import CLIPImageProcessor

    given = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}} | more
    return CLIPImageProcessor(**given)


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = make_tokenizer(
        "[PAD] [UNK] [CLS] [SEP] [DEC]", "[CLS] $A [SEP]",
        bos_token="[DEC]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    text = {
        **WORDS, "vocab_size": len(words), "encoder_hidden_size": 32, "projection_dim": 16, "bos_token_id": 4,
        "max_position_embeddings": 64, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**VISION, "image_size": 48, "patch_size": 16})
    images = BlipImageProcessor(size={"height": 48, "width": 48})
    save(BlipForConditionalGeneration(config), folder, BlipProcessor(images, words))


def git(folder: Path) -> None:
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    words = make_tokenizer(
        "[PAD] [UNK] [CLS] [SEP]", "[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = GitConfig(
        vision_config={**VISION, "image_size": 48, "patch_size": 16}, vocab_size=len(words), hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    save(GitForCausalLM(config), folder, GitProcessor(clip_images(48), words))


def vision_encoder_decoder(folder: Path) -> None:
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    end = "<|endoftext|>"
    words = make_tokenizer(end, bos_token=end, eos_token=end, pad_token=end)
    text = GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    vision = ViTConfig(**VISION, image_size=48, patch_size=16)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    model = VisionEncoderDecoderModel(config)
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0}
    config.update(ids)
    model.generation_config.update(**ids)
    save(model, folder, ViTImageProcessor(size={"height": 48, "width": 48}), words, scale=2.0)


def florence2(folder: Path) -> None:
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    words = make_tokenizer(
        "<s> <pad> </s> <unk> <image>", "<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    ids = {
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    }  # fmt: skip
    text = BartConfig(
        vocab_size=len(words), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128, **ids,
    )  # fmt: skip
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2),
        "window_size": 4, "projection_dim": 32,
    }  # fmt: skip
    model = Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config=vision, image_token_id=4))
    model.generation_config.update(num_beams=3, no_repeat_ngram_size=3, early_stopping=True, **ids)
    images = clip_images(64, size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 65  # 64 positions and their mean
    save(model, folder, Florence2Processor(images, words, num_additional_image_tokens=1))


def kosmos2(folder: Path) -> None:
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor

    words = make_tokenizer(
        "<s> <pad> </s> <unk>", "<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    processor = Kosmos2Processor(clip_images(48), words, 16)
    text = {
        "vocab_size": len(processor.tokenizer) + 70, "embed_dim": 32, "layers": 2, "ffn_dim": 64,
        "attention_heads": 2, "max_position_embeddings": 160, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = Kosmos2Config(
        text_config=text, vision_config={**VISION, "image_size": 48, "patch_size": 16}, latent_query_num=64
    )
    save(Kosmos2ForConditionalGeneration(config), folder, processor, scale=1.5)


def smolvlm(folder: Path) -> None:
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tiles = " ".join(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
    words = make_tokenizer(
        f"<|endoftext|> <|im_start|> <end_of_utterance> <image> <fake_token_around_image> <global-img> {tiles}",
        bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
        },
    )  # fmt: skip
    text = LlamaConfig(**WORDS, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = {**VISION, "image_size": 64, "patch_size": 16}
    config = SmolVLMConfig(image_token_id=3, scale_factor=2, pad_token_id=0, vision_config=vision, text_config=text)
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=1, eos_token_id=ENDS, pad_token_id=0)
    template = (
        "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}"
        "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    save(model, folder, SmolVLMProcessor(images, words, SmolVLMVideoProcessor(), 4, chat_template=template))


def qwen2_5_vl(folder: Path) -> None:
    import transformers

    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    _qwen(
        folder,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        transformers.Qwen2_5_VLProcessor,
        transformers.Qwen2VLVideoProcessor(),
        vision,
        {"mrope_section": [2, 3, 3]},
    )


def qwen3_vl(folder: Path) -> None:
    import transformers

    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
    }  # fmt: skip
    _qwen(
        folder,
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor(),
        vision,
        {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
    )


def _qwen(
    folder: Path, config: Any, model: Any, processor: Any, videos: Any, vision: dict[str, Any], rope: dict[str, Any]
) -> None:
    from transformers import Qwen2VLImageProcessor

    words = make_tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>",
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
    )  # fmt: skip
    text = {
        **WORDS, "vocab_size": len(words), "head_dim": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope},
    }  # fmt: skip
    settings = config(
        text_config=text, vision_config=vision, vision_start_token_id=3, vision_end_token_id=4, image_token_id=5,
        video_token_id=6,
    )  # fmt: skip
    made = model(settings)
    # As theirs: what is called sampling there draws the most probable token.
    made.generation_config.update(
        do_sample=True, temperature=1e-6, repetition_penalty=1.05, eos_token_id=ENDS, pad_token_id=0
    )
    images = Qwen2VLImageProcessor(
        size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 30}, patch_size=vision["patch_size"]
    )
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    save(made, folder, processor(images, words, videos, chat_template=template))


def llava(folder: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = make_tokenizer(
        "<unk> <s> </s> <pad> <image>", "<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=64, patch_size=16, projection_dim=32),
        text_config=LlamaConfig(**WORDS, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=3),
        image_token_index=4,
        image_seq_length=16,
    )
    template = (
        "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        clip_images(64), words, patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=1, eos_token_id=ENDS, pad_token_id=3)
    save(model, folder, processor)


def internvl(folder: Path) -> None:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    words = make_tokenizer(
        "<|endoftext|> <|im_start|> <|im_end|> <img> </img> <IMG_CONTEXT> <video>",
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )  # fmt: skip
    text = Qwen2Config(**WORDS, vocab_size=len(words), bos_token_id=None, eos_token_id=2, pad_token_id=0)
    config = InternVLConfig(
        vision_config={**VISION, "image_size": [64, 64], "patch_size": [16, 16]}, text_config=text, image_token_id=5,
        image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    images = GotOcr2ImageProcessor(size={"height": 64, "width": 64}, min_patches=1, max_patches=4, crop_to_patches=True)
    processor = InternVLProcessor(images, words, InternVLVideoProcessor(), 4, chat_template=template)
    model = InternVLForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=ENDS, pad_token_id=0)
    save(model, folder, processor)


MODELS: dict[str, Callable[[Path], None]] = {
    "blip": blip,
    "git": git,
    "vision_encoder_decoder": vision_encoder_decoder,
    "florence2": florence2,
    "kosmos2": kosmos2,
    "smolvlm": smolvlm,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava": llava,
    "internvl": internvl,
}
