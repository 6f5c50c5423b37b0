"""The rewards: how surely objects are there; and the metric: which share of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_reward_detection import (
    OBJECTS,
    PROMPT,
    DetectionConfig,
    DetectionFoundConfig,
    DetectionListedConfig,
    DetectionPerPromptConfig,
    DetectorConfig,
    listed,
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
        queries = [[query.replace(PROMPT, prompt) for query in self.queries] for prompt in prompts]
        return self._logits_of(images, prompts, queries)

    def _logits_of(self, images: Tensor, prompts: Sequence[str], queries: Sequence[Sequence[str]]) -> Tensor:
        """The same for as many queries of each image."""
        images = checked_images(images, prompts, where=self.where)
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


class DetectionListed(_Detecting):
    """The score of `DetectionReward` for the objects that each prompt's row lists, and those named for all images.

    Raises:
        DraftError: like `DetectionReward`.
    """

    def __init__(self, config: DetectionListedConfig) -> None:
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Tensor:
        """Scores (B,) float32, in logits, of images (B, 3, H, W) in [0, 1].

        Arguments:
            columns: "objects" -> B texts, each one or more objects with a semicolon between them.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or a text lists no object, one twice,
                or one that is too long.
        """
        rows = [listed(text, where=self.where) for text in columns[OBJECTS]]
        most = max(len(row) for row in rows)
        filled = [[*row, *row[:1] * (most - len(row)), *self.queries] for row in rows]
        evidence = self._logits_of(images, prompts, filled).logsumexp(1)
        lengths = torch.tensor([len(row) for row in rows], device=evidence.device)
        counted = torch.arange(most, device=evidence.device) < lengths[:, None]
        of_rows = torch.where(counted, evidence[:, :most], 0).sum(1)
        of_all = torch.where(self.is_present, evidence[:, most:], -evidence[:, most:]).sum(1)
        return (of_rows + of_all) / (lengths + len(self.queries))


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
