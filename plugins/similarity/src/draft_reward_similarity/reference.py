"""The published comparisons, to compare the reward with: slow, on PIL images, without a gradient.

DINOv2 by transformers' processor on Pillow and its own forward; LPIPS by the package lpips, backbone included; both
on the reward's own weights. Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from draft_core.rewards.images import to_pil
from draft_reward_similarity import SimilarityToConfig

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import BitImageProcessor as ImageProcessor

Similarity = Callable[[Image.Image, Image.Image], Tensor]


def reference(reward: Any, config: SimilarityToConfig) -> Callable[..., Tensor]:
    """The similarity in float32 on the CPU, one image at a time."""
    similarity = of_transformers(reward) if config.model == "dinov2" else of_lpips(reward, config)

    @torch.no_grad()
    def score(
        images: list[Image.Image], prompts: list[str], columns: Mapping[str, Sequence[Tensor]] | None = None
    ) -> Tensor:
        if columns is None:
            others = [Image.open(config.reference).convert("RGB")] * len(images)  # type: ignore[attr-defined]
        else:
            others = [to_pil(image) for image in columns["reference"]]
        return torch.stack([similarity(*pair) for pair in zip(images, others, strict=True)])

    return score


def of_transformers(reward: Any) -> Similarity:
    """The cosine of the class tokens of transformers' model, behind its processor."""
    model = copy.deepcopy(reward.network.model).float().cpu()
    processor = ImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )

    def similarity(image: Image.Image, other: Image.Image) -> Tensor:
        tokens = [model(**processor(each, return_tensors="pt")).last_hidden_state[0, 0] for each in (image, other)]
        return torch.nn.functional.cosine_similarity(tokens[0], tokens[1], dim=0)

    return similarity


def of_lpips(reward: Any, config: SimilarityToConfig) -> Similarity:
    """Minus the distance that the package lpips computes, of images that Pillow squashed."""
    name, side = config.model.removeprefix("lpips-"), reward.network.side
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision in a way that is deprecated
        import lpips

        model = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    own = [layer for part in reward.network.parts for layer in part]
    slices = [getattr(model.net, f"slice{number + 1}") for number in range(model.net.N_slices)]
    for layer, other in zip(own, [layer for part in slices for layer in part], strict=True):
        other.load_state_dict({key: value.float().cpu() for key, value in layer.state_dict().items()})

    def similarity(image: Image.Image, other: Image.Image) -> Tensor:
        # Rows first in every version; at once, Pillow 13 would take the columns of tall images first.
        rows = [each.resize((side, each.height), Image.Resampling.BICUBIC) for each in (image, other)]
        squashed = [each.resize((side, side), Image.Resampling.BICUBIC) for each in rows]
        tensors = [torch.from_numpy(np.asarray(each, dtype=np.float32) / 255) for each in squashed]
        distance: Tensor = model(*(tensor.permute(2, 0, 1)[None] for tensor in tensors), normalize=True)[0, 0, 0, 0]
        return -distance

    return similarity
