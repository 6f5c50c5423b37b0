"""LPIPS: a distance between the features of two images, place by place, at several layers of a classifier."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torchvision.models
from torch import Tensor

from draft_core.errors import DraftError
from draft_core.rewards.images import normalize, resize_like_pil
from draft_core.rewards.weights import PUBLISHED, RANDOM, explained, load_strict, locate, read_tensors, seeded
from draft_reward_similarity import SIDE, SimilarityToConfig

PACKAGE = "lpips"

# The name of the heads' file -> torchvision's name, and behind which of its layers the features are taken, as in the
# package lpips 0.1.4.
BACKBONES = {
    "alex": ("alexnet", (2, 5, 8, 10, 12)),
    "vgg": ("vgg16", (4, 9, 16, 23, 30)),
    "squeeze": ("squeezenet1_1", (2, 5, 8, 10, 11, 12, 13)),
}
# Of images in [-1, 1]; published with the weights.
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10  # beside the length of a feature vector


class Lpips(torch.nn.Module):
    """LPIPS 0.1 with linear heads. Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", arXiv 1801.03924, equation 1.

    Raises:
        DraftError: if backbone or heads are missing or do not fit.
    """

    def __init__(self, config: SimilarityToConfig) -> None:
        super().__init__()
        where = f"reward {config.kind!r}"
        name = config.model.removeprefix("lpips-")
        self.side = config.side or SIDE
        self.dtype = getattr(torch, config.dtype)
        architecture, ends = BACKBONES[name]
        layers = load_backbone(architecture, config, where=where).to(self.dtype)
        parts = [torch.nn.Sequential(*layers[start:end]) for start, end in pairwise((0, *ends))]
        self.parts = torch.nn.ModuleList(parts)
        heads = read_tensors(heads_file(name, where=where), where=where)
        for layer in range(len(ends)):
            self.register_buffer(f"head{layer}", heads[f"lin{layer}.model.1.weight"].float())

    def prepare(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, side, side) of images (B, 3, H, W) in [0, 1], squashed as Pillow does."""
        return normalize(resize_like_pil(images, self.side, self.side) * 2 - 1, MEAN, STD)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """One (B, C, h, w) float32 for each layer, its vectors over C of unit length."""
        found, at = [], pixels.to(self.dtype)
        for part in self.parts:
            at = part(at)
            layer = at.float()
            # Where all channels are zero, the root would have no gradient.
            length = layer.square().sum(1, keepdim=True).clamp_min(EPSILON**2).sqrt()
            found.append(layer / (length + EPSILON))
        return found

    def compare(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Minus the distance (B,)."""
        total = torch.zeros(len(features[0]), device=features[0].device)
        for layer, (one, other) in enumerate(zip(features, others, strict=True)):
            weighted = (one - other).square() * getattr(self, f"head{layer}")
            total = total - weighted.sum(1).mean((1, 2))
        return total


def load_backbone(architecture: str, config: SimilarityToConfig, *, where: str) -> torch.nn.Sequential:
    """The convolutional part of a torchvision classifier, in float32."""
    with seeded(config.seed):
        network = torchvision.models.get_model(architecture, weights=None)
    if config.weights == PUBLISHED:
        published = torchvision.models.get_model_weights(architecture)["IMAGENET1K_V1"]
        megabytes = published.meta["_file_size"]
        with explained(published.url, megabytes=megabytes, where=where, option="weights"):
            tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
        load_strict(network, tensors, where=where)
    elif config.weights != RANDOM:
        path = locate(config.weights, None, where=where, option="weights")
        load_strict(network, read_tensors(path, where=where), where=f"{where}, weights")
    layers: torch.nn.Sequential = network.features
    for layer in layers.modules():
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False  # it would overwrite the features that were taken before it
    return layers


def heads_file(name: str, *, where: str) -> Path:
    """The file of linear heads in the installed package lpips, which is not imported for it.

    Raises:
        DraftError: if the package is missing or incomplete.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == f"lpips/weights/v0.1/{name}.pth" and (path := Path(str(file.locate()))).is_file():
            return path
    raise DraftError(
        f"the heads {name}.pth of the package {PACKAGE} are not there", where=where, next=f"pip install {PACKAGE}"
    )
