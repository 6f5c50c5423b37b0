"""The rewards: log-probabilities of classes under a frozen classifier; and the measure, which class comes first."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_reward_adversarial import (
    AdversarialConfig,
    AdversarialPerPromptConfig,
    AdversarialTop1Config,
    ClassifierConfig,
    LogProbabilityConfig,
)
from draft_reward_adversarial.classes import class_index
from draft_reward_adversarial.classifier import load_classifier


class _Classifying(FrozenModule):
    """A frozen classifier and its classes."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.classifier = load_classifier(config.source, where=self.where)
        self.network = self.classifier.network.to(getattr(torch, config.dtype)).requires_grad_(False)
        self.train(False)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Those of all classes, (B, classes) float32.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        images = checked_images(images, [""] * len(images), where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            pixels = self.classifier.preprocessing(images)
            logits: Tensor = self.network(pixels.to(next(self.network.parameters()).dtype))
            return logits.float().log_softmax(1)

    def index_of(self, chosen: int | str, option: str) -> int:
        """The index of a class that the config names in field `option`."""
        classifier = self.classifier
        return class_index(chosen, classifier.names, classifier.count, where=f"{self.where}, {option}")


class _LogProbability(_Classifying, ABC):
    """log p of a class (targeted) or its negative (untargeted), in nats."""

    def __init__(self, config: LogProbabilityConfig) -> None:
        super().__init__(config)
        self.sign = 1.0 if config.mode == "targeted" else -1.0

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1].

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or a prompt has no class.
        """
        classes = torch.tensor(self.classes(prompts, len(images)), device=images.device)
        log_probabilities = self.log_probabilities(images)
        return self.sign * log_probabilities.gather(1, classes[:, None]).squeeze(1)

    @abstractmethod
    def classes(self, prompts: Sequence[str], count: int) -> list[int]:
        """The class of each of `count` images."""


class AdversarialReward(_LogProbability):
    """The log-probability of one class, whatever the prompt."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__(config)
        self.target = self.index_of(config.target, "target")

    def classes(self, prompts: Sequence[str], count: int) -> list[int]:
        """The same for all images; prompts are not read."""
        return [self.target] * count


class AdversarialPerPromptReward(_LogProbability):
    """The log-probability of the class that belongs to the prompt."""

    def __init__(self, config: AdversarialPerPromptConfig) -> None:
        super().__init__(config)
        self.targets = {
            prompt: self.index_of(chosen, f"targets[{prompt!r}]") for prompt, chosen in config.targets.items()
        }

    def classes(self, prompts: Sequence[str], count: int) -> list[int]:
        """One for each prompt.

        Raises:
            RewardError: if a prompt has none.
        """
        for prompt in prompts:
            if prompt not in self.targets:
                near = difflib.get_close_matches(prompt, self.targets, n=1, cutoff=0.6)
                hint = f" (the nearest that has is {near[0]!r})" if near else ""
                raise RewardError(
                    f"prompt {prompt!r} has no class{hint}", where=f"{self.where}, targets", next="add it to the map"
                )
        return [self.targets[prompt] for prompt in prompts]


class AdversarialTop1(_Classifying):
    """1 where one class is the classifier's first choice, else 0; a mean over images is the share of them."""

    def __init__(self, config: AdversarialTop1Config) -> None:
        super().__init__(config)
        self.target = self.index_of(config.target, "target")

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        return (self.log_probabilities(images).argmax(1) == self.target).float()
