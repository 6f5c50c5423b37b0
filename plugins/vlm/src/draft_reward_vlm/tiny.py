"""Tiny vision-language models with seeded weights, in the shapes of published ones, made by code: for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from draft_core.rewards.weights import seeded

WORDS = ("Yes", "No", "yes", "no")  # single tokens, with and without a blank before them; else a byte is a token
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SPREAD = 0.1  # of the random weights: answers differ between images, and are smooth enough for finite differences


def tiny(shape: str, seed: int) -> tuple[Any, Any]:
    """A model in float32 and its processor.

    Arguments:
        shape: "qwen2.5-vl", "smolvlm", "llava" or "blip".
        seed: of the weights.
    """
    with seeded(seed):
        model, processor = SHAPES[shape]()
    return model.eval(), processor


def _qwen() -> tuple[Any, Any]:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = _tokenizer(
        [*marks, "<|image_pad|>", "<|video_pad|>"], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
        "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=template
    )
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "initializer_range": SPREAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "initializer_range": SPREAD,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        initializer_range=SPREAD,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    marks = ["<|im_start|>", "<end_of_utterance>", "<pad>", "<image>", "<fake_token_around_image>", "<global-img>"]
    tokenizer = _tokenizer(
        [*marks, *places], bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<pad>"
    )
    template = (
        "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for c in m.content %}{% if c.type == 'text' %}"
        " {{ c.text }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    images = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**images),
        tokenizer,
        SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
        image_seq_len=4,
        chat_template=template,
    )
    ids = tokenizer.convert_tokens_to_ids
    marked = {
        "bos_token_id": ids("<|im_start|>"),
        "eos_token_id": ids("<end_of_utterance>"),
        "pad_token_id": ids("<pad>"),
    }
    config = SmolVLMConfig(
        text_config={
            **TEXT,
            **marked,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "initializer_range": SPREAD,
        },
        vision_config={**VISION, "image_size": 32, "patch_size": 8, "initializer_range": SPREAD},
        image_token_id=ids("<image>"),
        scale_factor=2,
        pad_token_id=ids("<pad>"),
        initializer_range=SPREAD,
    )
    return SmolVLMForConditionalGeneration(config), processor


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer(["<s>", "</s>", "<pad>", "<image>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = (
        "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
        "{% else %}<image>\n{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    square = {"height": 56, "width": 56}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=square, crop_size=square),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    ids = tokenizer.convert_tokens_to_ids
    marked = {"bos_token_id": ids("<s>"), "eos_token_id": ids("</s>"), "pad_token_id": ids("<pad>")}
    config = LlavaConfig(
        text_config={
            **TEXT,
            **marked,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "initializer_range": SPREAD,
        },
        vision_config={
            **VISION,
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "initializer_factor": 2.0,
        },
        image_token_index=ids("<image>"),
        image_seq_length=16,
        initializer_range=SPREAD,
    )
    return LlavaForConditionalGeneration(config), processor


def _blip() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        ["[PAD]", "[CLS]", "[SEP]", "[DEC]"], cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", bos_token="[DEC]"
    )
    ids = tokenizer.convert_tokens_to_ids
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids("[CLS]")), ("[SEP]", ids("[SEP]"))]
    )
    processor = BlipProcessor(BlipImageProcessor(size={"height": 48, "width": 48}), tokenizer)
    config = BlipConfig(
        text_config={
            **{name: TEXT[name] for name in TEXT if name != "num_key_value_heads"},
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
            "bos_token_id": ids("[DEC]"),
            "eos_token_id": ids("[SEP]"),
            "sep_token_id": ids("[SEP]"),
            "pad_token_id": ids("[PAD]"),
            "initializer_range": SPREAD,
        },
        vision_config={**VISION, "image_size": 48, "patch_size": 16, "initializer_range": SPREAD},
        initializer_range=SPREAD,
    )
    return BlipForConditionalGeneration(config), processor


SHAPES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2.5-vl": _qwen,
    "smolvlm": _smolvlm,
    "llava": _llava,
    "blip": _blip,
}


def _tokenizer(marks: Sequence[str], **special: str) -> Any:
    """A tokenizer of bytes, in which the words of `WORDS` are single tokens and each mark is one."""
    merges = []
    for word in WORDS:
        pieces = list(word)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
        merges.append(("Ġ", word))
    merges = list(dict.fromkeys(merges))
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE(vocab={name: place for place, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark not in special.values()]})
    return made
