"""The objective: weighted rewards as one module, from images to a score for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.errors import DraftError, RewardError, raised
from draft_core.rewards.protocol import FrozenModule, takes_videos, with_components

Scorer = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]

NOTHING: Mapping[str, torch.Tensor] = {}


@dataclass(frozen=True)
class Scores:
    """The scores of a batch of images.

    Arguments:
        total: weighted sum over the rewards, each cut at its cap, float32 (N,); higher is better.
        per_reward: name -> that reward's own score before its weight, float32 (N,).
    """

    total: torch.Tensor
    per_reward: dict[str, torch.Tensor]


class Objective(FrozenModule):
    """A weighted sum of rewards.

    Arguments:
        rewards: name -> reward; each is frozen and put into eval mode, and stays there.
        weights: name -> factor in the sum; 1 where a name is missing.
        caps: name -> score above which the reward adds no more, and gives no gradient; none where a name is missing.

    Raises:
        DraftError: if a weight or a cap is of no reward.
    """

    def __init__(
        self,
        rewards: Mapping[str, torch.nn.Module],
        weights: Mapping[str, float] | None = None,
        caps: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        weights, caps = dict(weights or {}), dict(caps or {})
        for what, named in (("weights", weights), ("caps", caps)):
            if unknown := sorted(named.keys() - rewards.keys()):
                raise DraftError(
                    f"there is no reward {unknown[0]!r}, of {', '.join(rewards) or 'none'}",
                    where=f"{what} of the objective",
                    next="name one of its rewards",
                )
        self.rewards = torch.nn.ModuleDict({name: reward.requires_grad_(False) for name, reward in rewards.items()})
        self.weights = {name: weights.get(name, 1.0) for name in rewards}
        self.caps = caps
        self.eval()  # the rewards too, which need not be frozen modules themselves

    def forward(
        self, images: torch.Tensor, prompts: Sequence[str], known: Mapping[str, torch.Tensor] = NOTHING
    ) -> Scores:
        """The scores of `images`, (N, 3, H, W) in [0, 1], for their N `prompts`.

        Of a video, (N, F, 3, H, W), every frame is scored by itself with its prompt, and the score is the mean, unless
        the reward takes videos as they are (`takes_videos = True`).

        Arguments:
            known: reward name -> scores, (N,), that are taken in the place of that reward's own.

        Raises:
            RewardError: if a reward raises, or returns anything but one float32 score for each image.
        """
        per_reward = {
            name: known[name] if name in known else self.scores_of(name, images, prompts) for name in self.rewards
        }
        if not per_reward:
            return Scores(torch.zeros(len(images), device=images.device), per_reward)
        return Scores(self.total(per_reward, {}), per_reward)

    def scores_of(self, name: str, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """The scores of one reward, float32 (N,), before weight and cap.

        Arguments:
            name: of the reward.
            images: (N, 3, H, W) in [0, 1], or videos, (N, F, 3, H, W).
            prompts: N.

        Raises:
            RewardError: as `forward`.
        """
        return self._scored(name, self.rewards[name], images, prompts)

    def components_of(
        self, name: str, images: torch.Tensor, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scores of one reward as `scores_of` gives them, and by name the parts that it tells of them, (N,).

        Arguments:
            name: of the reward.
            images: (N, 3, H, W) in [0, 1], or videos, (N, F, 3, H, W); parts of frames are averaged like their scores.
            prompts: N.

        Raises:
            RewardError: as `forward`, or if a part is not one number for each image.
        """
        parts: dict[str, torch.Tensor] = {}

        def call(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            scores, told = with_components(self.rewards[name], images, prompts)
            parts.update(told)
            return scores

        scores = self._scored(name, call, images, prompts)
        for part, values in parts.items():
            if values.ndim != 1 or len(values) % max(len(images), 1):
                raise RewardError(
                    f"its component {part!r} has the shape {tuple(values.shape)} for {len(images)} images",
                    where=f"reward {name!r}",
                    next=f"its plugin must return components of shape ({len(images)},)",
                )
        return scores, {part: values.view(len(images), -1).mean(1) for part, values in parts.items()}

    def _scored(self, name: str, reward: Scorer, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        whole = images.ndim == 4 or takes_videos(self.rewards[name])
        return (checked_scores if whole else _mean_over_frames)(name, reward, images, prompts)

    def total(self, per_reward: Mapping[str, torch.Tensor], divisors: Mapping[str, float]) -> torch.Tensor:
        """The weighted sum of some rewards' scores, capped, (N,).

        Arguments:
            per_reward: reward name -> its scores, (N,).
            divisors: reward name -> what its scores are divided by; 1 where a name is missing.
        """
        parts = []
        for name, scores in per_reward.items():
            capped = scores.clamp(max=self.caps[name]) if name in self.caps else scores
            parts.append(self.weights[name] / divisors.get(name, 1.0) * capped)
        return torch.stack(parts).sum(0)


def _mean_over_frames(name: str, reward: Scorer, videos: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    frames = videos.shape[1]
    texts = [prompt for prompt in prompts for _ in range(frames)]
    return checked_scores(name, reward, videos.flatten(0, 1), texts).view(-1, frames).mean(1)


def checked_scores(name: str, reward: Scorer, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """The scores (N,) that a reward gives images (N, 3, H, W) and their N prompts.

    Arguments:
        name: of the reward, for the error.

    Raises:
        RewardError: if it raises, or returns anything but one float32 score for each image.
    """
    count = len(images)
    try:
        scores: Any = reward(images, prompts)
    except (DraftError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a plugin's bug: name the plugin's reward, and keep the traceback as the cause
        raise RewardError(
            f"it raised {raised(error)}",
            where=f"reward {name!r}",
            next=f"run `draft rewards check {name.split('#')[0]}` and tell its author",
        ) from error
    if not isinstance(scores, torch.Tensor):
        problem = f"it returned {type(scores).__name__}"
    elif scores.shape != (count,) or scores.dtype != torch.float32:
        problem = f"it returned {scores.dtype} of shape {tuple(scores.shape)}"
    else:
        return scores
    raise RewardError(
        f"{problem} for {count} images",
        where=f"reward {name!r}",
        next=f"its plugin must return float32 scores of shape ({count},)",
    )
