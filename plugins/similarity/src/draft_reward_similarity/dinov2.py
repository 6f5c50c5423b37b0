"""DINOv2: the class token of a self-supervised vision transformer says what an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from draft_core.errors import DraftError
from draft_core.rewards.images import normalize, resize_and_crop_like_pil
from draft_core.rewards.weights import RANDOM, explained, load_pretrained, locate_model, seeded
from draft_reward_similarity import SimilarityToConfig

MODEL, MEGABYTES = "facebook/dinov2-base", 346
SHORTEST, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
PREPARATION: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "resample": 3,  # bicubic, in Pillow's numbers
    "size": {"shortest_edge": SHORTEST},
    "crop_size": {"height": CROP, "width": CROP},
    "image_mean": list(MEAN),
    "image_std": list(STD),
}

# For tests: position embeddings are interpolated, as they are in the published model.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 280,
    "patch_size": 56,
}


class Dinov2(torch.nn.Module):
    """DINOv2's class token. Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision",
    arXiv 2304.07193.

    Raises:
        DraftError: if the model is missing, does not fit, or prepares images otherwise.
    """

    def __init__(self, config: SimilarityToConfig) -> None:
        super().__init__()
        self.dtype = getattr(torch, config.dtype)
        self.model = load_model(config).to(self.dtype)

    def prepare(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, 224, 224) of images (B, 3, H, W) in [0, 1]: shorter side 256, central square."""
        return normalize(resize_and_crop_like_pil(images, SHORTEST, CROP, rounding="floor"), MEAN, STD)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """The class token (B, D) float32 of unit length, alone in a list."""
        return [unit_length(self.model(pixel_values=pixels.to(self.dtype)).pooler_output.float())]

    def compare(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Cosines (B,)."""
        return (features[0] * others[0]).sum(1)


def load_model(config: SimilarityToConfig) -> Any:
    """The Dinov2Model in float32."""
    if config.weights == RANDOM:
        with seeded(config.seed):
            return Dinov2Model(Dinov2Config(**TINY))
    where = f"reward {config.kind!r}"
    name = locate_model(config.weights, MODEL, where=where, option="weights")
    megabytes = MEGABYTES if name == MODEL else None
    model = load_pretrained(Dinov2Model, name, megabytes=megabytes, where=where, option="weights")
    with explained(f"the image processor {name}", where=where, option="weights", location=name):
        settings, _ = BitImageProcessor.get_image_processor_dict(name)
    check_preparation(settings, where=f"{where}, weights")
    return model


def check_preparation(settings: Mapping[str, Any], *, where: str) -> None:
    """Refuses a preprocessor_config.json that asks for another preparation than the published one.

    Raises:
        DraftError: that names the setting.
    """
    for name, wanted in PREPARATION.items():
        if (found := settings.get(name, wanted)) != wanted:
            raise DraftError(
                f"this model prepares its images with {name} = {found}, not {wanted}",
                where=where,
                next="take a DINOv2 with the published preparation",
            )
