"""Log-probabilities by each library's own pipeline, to compare the reward with: slow, on PIL images, no gradient.

The library's own transforms of a PIL image and its own network, on the reward's own weights. Nothing but
`draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from draft_reward_adversarial import AdversarialConfig, TimmSource, TorchvisionSource, TransformersSource
from draft_reward_adversarial.reward import AdversarialReward

Logits = Callable[[Image.Image], Tensor]


def reference(reward: AdversarialReward, config: AdversarialConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """log p(target), or its negative, in float32 on the CPU, one image at a time; prompts are not read."""
    log_probabilities = reference_log_probabilities(reward, config)
    sign = 1.0 if config.mode == "targeted" else -1.0

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return sign * torch.stack([log_probabilities(image)[0, reward.target] for image in images])

    return score


def reference_log_probabilities(
    reward: AdversarialReward, config: AdversarialConfig
) -> Callable[[Image.Image], Tensor]:
    """Those of all classes, (1, classes), of one image."""
    builds: dict[str, Callable[..., Logits]]
    builds = {"timm": of_timm, "torchvision": of_torchvision, "transformers": of_transformers}
    logits = builds[config.source.library](config.source, reward.classifier.count, reward.network.state_dict())

    @torch.no_grad()
    def log_probabilities(image: Image.Image) -> Tensor:
        return logits(image).log_softmax(1)

    return log_probabilities


def of_timm(source: TimmSource, count: int, weights: dict[str, Tensor]) -> Logits:
    """timm's model behind the transform that timm creates for it."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    network = timm.create_model(source.name, num_classes=count).eval()
    network.load_state_dict(weights)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    return lambda image: network(transform(image)[None])


def of_torchvision(source: TorchvisionSource, count: int, weights: dict[str, Tensor]) -> Logits:
    """torchvision's model behind the transforms of its published weights."""
    import torchvision.models

    published = torchvision.models.get_model_weights(source.name)[source.variant or "DEFAULT"]
    # What get_model itself sets for these two when it loads published weights.
    special = {"transform_input": True, "init_weights": False} if source.name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(source.name, weights=None, num_classes=count, **special).eval()
    network.load_state_dict(weights)
    transform = published.transforms()
    return lambda image: network(transform(image)[None])


def of_transformers(source: TransformersSource, count: int, weights: dict[str, Tensor]) -> Logits:
    """transformers' model behind its image processor, the one that hands the image to Pillow."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(source.name, num_labels=count)
    network = AutoModelForImageClassification.from_config(config).eval()
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in weights.items()})
    name = type(AutoImageProcessor.from_pretrained(source.name)).__name__
    processor = on_pillow(name).from_pretrained(source.name)

    def logits(image: Image.Image) -> Tensor:
        found: Tensor = network(**processor(image, return_tensors="pt")).logits
        return found

    return logits


def on_pillow(name: str) -> Any:
    """The image processor of this name that works on Pillow; older transformers have it under the plain name."""
    import transformers

    name = name.removesuffix("Fast").removesuffix("Pil")
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
