"""The rewards: how surely objects are there; and the metric: which share of them is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_reward_detection import (
    PROMPT,
    DetectionConfig,
    DetectionFoundConfig,
    DetectionPerPromptConfig,
    DetectorConfig,
)
from draft_reward_detection.detector import Detector


class _Detecting(FrozenModule):
    """A frozen detector and what it looks for."""

    is_present: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.queries = (*config.present, *config.removed)
        self.register_buffer("is_present", torch.arange(len(self.queries)) < len(config.present))
        self.detector = Detector(config)
        for query in self.queries:
            if PROMPT not in query:
                self.detector.tokens(query)  # refuses one that is too long before anything is drawn
        self.requires_grad_(False).eval()

    def logits(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Those of every box for every query, (B, boxes, Q) float32.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=self.where)
        queries = [[query.replace(PROMPT, prompt) for query in self.queries] for prompt in prompts]
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.detector(images, queries)
        return logits


class DetectionReward(_Detecting):
    """How surely objects are there, differentiable; higher is an image with what is to be there, and without the rest.

    The evidence for a query is log sum exp of its logits over all boxes: near the logit of the surest box, and with a
    gradient for every box, also where nothing is found. The score is the mean over the queries of the evidence, with a
    minus for what is to be removed. This definition is ours.

    Raises:
        DraftError: if the model is missing or does not fit, or a query is too long.
    """

    def __init__(self, config: DetectionConfig | DetectionPerPromptConfig) -> None:
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32, in logits, of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or a query with its prompt is too long.
        """
        evidence = self.logits(images, prompts).logsumexp(1)
        return torch.where(self.is_present, evidence, -evidence).mean(1)


class DetectionFound(_Detecting):
    """The share of queries that are as asked: a box above the threshold where present, none where removed.

    Raises:
        DraftError: like `DetectionReward`.
    """

    def __init__(self, config: DetectionFoundConfig) -> None:
        super().__init__(config)
        self.threshold = config.threshold

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 in [0, 1] of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        found = self.logits(images, prompts).amax(1).sigmoid() > self.threshold
        return (found == self.is_present).float().mean(1)
