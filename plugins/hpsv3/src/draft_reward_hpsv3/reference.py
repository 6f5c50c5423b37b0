"""HPS v3 as it was published, to compare the reward with: slow, on Pillow images, without a gradient.

Pillow's resize, transformers' own processor and chat template, and the published order of steps: embed the text, put
the image's parts into it, run the language model, rate the state at the reward's token. It uses the reward's own
weights. The package `hpsv3` 1.0.0 itself pins transformers 4.45.2. Nothing but `draft rewards compare` and the tests
imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear, relu

from draft_reward_hpsv3 import Hpsv3Config
from draft_reward_hpsv3.reward import WHERE, Hpsv3Reward
from draft_reward_hpsv3.texts import BYTES, asked, qwen_tokenizer

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as ImageProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
except ImportError:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as ImageProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

# For the tokenizer of the tests, which carries none: the conversation as Qwen2-VL-7B-Instruct's template writes it.
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reference(reward: Hpsv3Reward, config: Hpsv3Config) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The published score in the reward's precision on its device, one image at a time."""
    backbone, head = reward.judge.backbone, reward.judge.head.state_dict()
    device = next(backbone.parameters()).device
    tokenizer, processor = qwen_tokenizer(config, where=WHERE), ImageProcessor()
    if config.tokenizer == BYTES:
        tokenizer.chat_template = TEMPLATE

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str) -> Tensor:
        pixels, grid = prepared(image, processor)
        content = [{"type": "image", "image": image}, {"type": "text", "text": asked(prompt)}]
        message = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * int(grid.prod() // 4), 1)
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(device)
        states = states_of(backbone, ids, pixels.to(device), grid.to(device))
        state = states[ids == tokenizer.convert_tokens_to_ids("<|Reward|>")].float()
        for layer in (0, 3, 5):
            state = linear(state, head[f"{layer}.weight"], head[f"{layer}.bias"])
            state = state if layer == 5 else relu(state)
        return state[0, 0]

    return lambda images, prompts: torch.stack([score_one(*pair) for pair in zip(images, prompts, strict=True)])


def prepared(image: Image.Image, processor: Any) -> tuple[Tensor, Tensor]:
    """Patches and grid: Pillow resizes to 256 * 28 * 28 pixels, and transformers' processor leaves that size."""
    image = image.convert("RGB")
    size = 256 * 28 * 28
    height, width = smart_resize(image.height, image.width, factor=28, min_pixels=size, max_pixels=size)
    inputs = processor(images=[image.resize((width, height))], return_tensors="pt")
    return inputs["pixel_values"], inputs["image_grid_thw"]


def states_of(backbone: Any, ids: Tensor, pixels: Tensor, grid: Tensor) -> Tensor:
    """The language model's last states (1, L, D); it counts the positions itself, on through the image."""
    embedded = backbone.language_model.embed_tokens(ids)
    seen = backbone.visual(pixels.to(embedded.dtype), grid_thw=grid)
    seen = getattr(seen, "pooler_output", seen)  # transformers 5 wraps them
    is_image = (ids == backbone.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(is_image, seen.to(embedded.dtype))
    states: Tensor = backbone.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return states
