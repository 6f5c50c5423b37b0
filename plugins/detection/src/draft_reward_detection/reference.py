"""OWL-ViT as transformers runs it, to compare the reward with: slow, on PIL images, without a gradient.

transformers' processor on Pillow and its own forward, on the reward's own weights. Nothing but
`draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import OwlViTProcessor

from draft_reward_detection import SEPARATOR, DetectorConfig
from draft_reward_detection.reward import DetectionListed, DetectionReward

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import OwlViTImageProcessor as ImageProcessor


def reference(reward: DetectionReward | DetectionListed, config: DetectorConfig) -> Callable[..., Tensor]:
    """The score from transformers' own logits, in float32 on the CPU, one image at a time."""
    model = copy.deepcopy(reward.detector.model).float().cpu()
    side = {"height": reward.detector.side, "width": reward.detector.side}
    processor = OwlViTProcessor(ImageProcessor(size=side), reward.detector.tokenizer)

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str, listed: str) -> Tensor:
        own = [part.strip() for part in listed.split(SEPARATOR) if listed]
        present = own + [query.replace("{prompt}", prompt) for query in config.present]
        removed = [query.replace("{prompt}", prompt) for query in config.removed]
        inputs = processor(text=[[*present, *removed]], images=image, max_length=16, return_tensors="pt")
        probabilities = model(**inputs).logits[0].double().exp().sum(0)
        evidence = probabilities.log()
        score: Tensor = (evidence[: len(present)].sum() - evidence[len(present) :].sum()) / len(evidence)
        return score

    def score(
        images: list[Image.Image], prompts: list[str], columns: Mapping[str, Sequence[str]] | None = None
    ) -> Tensor:
        listed = columns["objects"] if columns else [""] * len(images)
        return torch.stack([score_one(*of_image) for of_image in zip(images, prompts, listed, strict=True)])

    return score
