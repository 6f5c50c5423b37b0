"""CLIPScore by each library's own pipeline, to compare the reward with: slow, on PIL images, without a gradient.

open_clip's transform and tokenizer, or transformers' processor on Pillow; their own features; on the reward's own
weights. Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor, CLIPTokenizerFast

from draft_core.rewards import RelativePrompt
from draft_reward_clipscore import ClipScoreConfig
from draft_reward_clipscore.encoders import model_folder
from draft_reward_clipscore.reward import ClipScoreReward

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

Cosine = Callable[[Image.Image, str], Tensor]


def reference(reward: ClipScoreReward, config: ClipScoreConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The library's cosine in float32 on the CPU, one image at a time, in the definition that the config names."""
    cosine = of_open_clip(reward, config) if config.library == "open_clip" else of_transformers(reward, config)
    prefix = "A photo depicts " if config.definition == "clipscore" else ""
    prefix = prefix if config.prefix is None else config.prefix
    relative = RelativePrompt(config.positive, config.negative, config.k)

    def of_prompt(image: Image.Image, prompt: str) -> Tensor:
        return relative(prompt, lambda text: cosine(image, prefix + text))

    @torch.no_grad()
    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        pairs = zip(images, prompts, strict=True)
        cosines = torch.stack([of_prompt(image, prompt) for image, prompt in pairs])
        if config.definition == "clipscore":
            return 2.5 * torch.clip(cosines, 0, None)
        return 100 * torch.clip(cosines, 0, None) if config.definition == "percent" else cosines

    return score


def of_open_clip(reward: ClipScoreReward, config: ClipScoreConfig) -> Cosine:
    """open_clip's own transform, tokenizer and features."""
    clip = copy.deepcopy(reward.encoder.clip).float().cpu()
    tokenizer = open_clip.get_tokenizer("ViT-B-32" if config.model == "tiny" else config.model)
    settings = PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip))
    preprocess = image_transform_v2(settings, is_train=False)

    def cosine(image: Image.Image, prompt: str) -> Tensor:
        image_features = clip.encode_image(preprocess(image)[None], normalize=True)
        text_features = clip.encode_text(tokenizer([prompt]), normalize=True)
        similarity: Tensor = (image_features @ text_features.T)[0, 0]
        return similarity

    return cosine


def of_transformers(reward: ClipScoreReward, config: ClipScoreConfig) -> Cosine:
    """transformers' own processor on Pillow, and its own logits without their scale."""
    clip = copy.deepcopy(reward.encoder.clip).float().cpu()
    with model_folder(config) as name:
        image_processor, tokenizer = ImageProcessor.from_pretrained(name), CLIPTokenizerFast.from_pretrained(name)
    processor = CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)
    limits = {"truncation": True, "max_length": clip.config.text_config.max_position_embeddings}

    def cosine(image: Image.Image, prompt: str) -> Tensor:
        outputs = clip(**processor(images=[image], text=[prompt], return_tensors="pt", **limits))
        similarity: Tensor = outputs.logits_per_image[0, 0] / clip.logit_scale.exp()
        return similarity

    return cosine
