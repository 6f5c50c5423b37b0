"""The objective: weighted rewards as one module, from images to a score for each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.display import table
from draft_core.errors import DraftError, RewardError, raised
from draft_core.prompt_rows import Column, plain, row_key
from draft_core.rewards.columns import for_reward
from draft_core.rewards.protocol import FrozenModule, as_reward, scope, takes, with_components

Scorer = Callable[..., Any]
OneReward = torch.nn.Module | Callable[..., torch.Tensor]

NOTHING: Mapping[str, torch.Tensor] = {}
NO_COLUMNS: Mapping[str, Column] = {}


@dataclass(frozen=True)
class Scores:
    """The scores of a batch of images.

    Arguments:
        total: weighted sum over the rewards, each cut at its cap, float32 (N,); higher is better.
        per_reward: name -> that reward's own score before its weight, float32 (N,).
        gate: 1 for images whose divergence from the base model counts, and 0 for others, float32 (N,); None where that
            of all counts.
    """

    total: torch.Tensor
    per_reward: dict[str, torch.Tensor]
    gate: torch.Tensor | None = None

    def _repr_html_(self) -> str:
        columns = [self.total.tolist(), *(scores.tolist() for scores in self.per_reward.values())]
        return table(["image", "total", *self.per_reward], [*zip(range(len(self.total)), *columns, strict=True)])


class Objective(FrozenModule):
    """A weighted sum of rewards.

    Arguments:
        rewards: name -> reward, a module or a function of images, or of images and prompts; each is frozen and put into
            eval mode, and stays there.
        weights: name -> factor in the sum; 1 where a name is missing.
        caps: name -> score above which the reward adds no more, and gives no gradient; none where a name is missing.
        columns: name -> the columns that the reward reads of the prompts' rows, by its own names for them; none where
            a name is missing.
        quantiles: name -> share of the images of a pass whose score caps that of the others in training, in 0..1.
        radii: name -> how far from an image, root mean square over its values, training looks for the worst score.

    Attributes:
        group_size: how many images of one prompt stand side by side in what it scores, for rewards whose scope is the
            group; a trainer sets it to its own.

    Raises:
        DraftError: if a weight, a cap or a column is of no reward.
        RewardError: if a reward is neither a module nor a function.
    """

    def __init__(
        self,
        rewards: Mapping[str, OneReward],
        weights: Mapping[str, float] | None = None,
        caps: Mapping[str, float] | None = None,
        columns: Mapping[str, Mapping[str, Column]] | None = None,
        quantiles: Mapping[str, float] | None = None,
        radii: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rewards, Mapping):
            raise DraftError(
                f"it is a {type(rewards).__name__}", where="rewards of the objective", next='name them, {"mine": mine}'
            )
        weights, caps, columns = dict(weights or {}), dict(caps or {}), dict(columns or {})
        of_rewards: dict[str, Mapping[str, Any]] = {"weights": weights, "caps": caps, "columns": columns}
        of_rewards |= {"quantiles": dict(quantiles or {}), "radii": dict(radii or {})}
        for what, named in of_rewards.items():
            if unknown := sorted(named.keys() - rewards.keys()):
                raise DraftError(
                    f"there is no reward {unknown[0]!r}, of {', '.join(rewards) or 'none'}",
                    where=f"{what} of the objective",
                    next="name one of its rewards",
                )
        made = {name: as_reward(reward, name).requires_grad_(False) for name, reward in rewards.items()}
        self.rewards = torch.nn.ModuleDict(made)
        self.weights = {name: weights.get(name, 1.0) for name in rewards}
        self.caps = caps
        self.columns = columns
        self.quantiles, self.radii = of_rewards["quantiles"], of_rewards["radii"]
        self.group_size, self.is_for_measurement = 1, False
        self.eval()  # the rewards too, which need not be frozen modules themselves

    def forward(
        self, images: torch.Tensor, prompts: Sequence[str], known: Mapping[str, torch.Tensor] = NOTHING
    ) -> Scores:
        """The scores of `images`, (N, 3, H, W) in [0, 1], for their N `prompts`.

        Of videos, (N, F, 3, H, W), a reward that takes them is given all frames at once; any other scores every
        frame by itself with its prompt, and the score is the mean.

        Arguments:
            known: reward name -> scores, (N,), that are taken in the place of that reward's own.

        Raises:
            RewardError: if a reward raises, or returns anything but one float32 score for each image, or takes videos
                and is given images; or if one whose scope is the group is given anything but groups.
            DraftError: if a prompt lacks a column that a reward reads.
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
        self, name: str, images: torch.Tensor, prompts: Sequence[str], group_size: int | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scores of one reward as `scores_of` gives them, and by name the parts that it tells of them, (N,).

        Arguments:
            name: of the reward.
            images: (N, 3, H, W) in [0, 1], or videos, (N, F, 3, H, W); parts of frames are averaged like their scores.
            prompts: N.
            group_size: images of one prompt that stand side by side; the objective's own if left out.

        Raises:
            RewardError: as `forward`, or if a part is not one number for each image.
        """
        told_of: list[Mapping[str, torch.Tensor]] = []  # of every group; of other rewards once

        def call(images: torch.Tensor, prompts: Sequence[str], **beside: Any) -> torch.Tensor:
            scores, told = with_components(self.rewards[name], images, prompts, **beside)
            told_of.append(told)
            return scores

        scores = self._scored(name, call, images, prompts, group_size)
        names = dict.fromkeys(part for told in told_of for part in told)
        parts = {part: self._joined(name, images, [told[part] for told in told_of if part in told]) for part in names}
        for part, values in parts.items():
            if values.ndim != 1 or len(values) % max(len(images), 1):
                raise RewardError(
                    f"its component {part!r} has the shape {tuple(values.shape)} for {len(images)} images",
                    where=f"reward {name!r}",
                    next=f"its plugin must return components of shape ({len(images)},)",
                )
        return scores, {part: values.view(len(images), -1).mean(1) for part, values in parts.items()}

    def _joined(self, name: str, images: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
        """A part of all calls of a reward; what is no list of numbers as it is, for the error."""
        if len(values) == 1 or values[0].ndim != 1:
            return values[0]
        if images.ndim == 5 and takes(self.rewards[name]) == "image":  # of every group a call for each frame
            frames = images.shape[1]
            values = [torch.stack(values[first : first + frames]).mean(0) for first in range(0, len(values), frames)]
        return torch.cat(values)

    def for_measurement(self) -> Objective:
        """The same rewards, which take images of any prompts for groups: for who measures their time and memory."""
        lenient = copy.copy(self)
        lenient.is_for_measurement = True
        return lenient

    def _scored(
        self,
        name: str,
        reward: Scorer,
        images: torch.Tensor,
        prompts: Sequence[str],
        group_size: int | None = None,
    ) -> torch.Tensor:
        taken, are_videos = takes(self.rewards[name]), images.ndim == 5
        if taken == "video" and not are_videos:
            raise RewardError(
                "it scores videos, and these are images", where=f"reward {name!r}", next="use it with a video model"
            )
        columns = self.columns.get(name, NO_COLUMNS)
        if scope(self.rewards[name]) == "group":
            size = self.group_size if group_size is None else group_size
            groups = (_any_groups if self.is_for_measurement else groups_of)(name, prompts, size)
            score = _frame_by_frame if are_videos and taken == "image" else checked_scores
            return torch.cat(
                [score(name, reward, images[own], [prompts[place] for place in own], columns) for own in groups]
            )[: len(images)]
        score = _mean_over_frames if are_videos and taken == "image" else checked_scores
        return score(name, reward, images, prompts, columns)

    def total(
        self,
        per_reward: Mapping[str, torch.Tensor],
        divisors: Mapping[str, float],
        caps: Mapping[str, float] | None = None,
    ) -> torch.Tensor:
        """The weighted sum of some rewards' scores, capped, (N,).

        Arguments:
            per_reward: reward name -> its scores, (N,).
            divisors: reward name -> what its scores are divided by; 1 where a name is missing.
            caps: reward name -> its cap, in the place of the objective's own.
        """
        parts, caps = [], self.caps if caps is None else caps
        for name, scores in per_reward.items():
            capped = scores.clamp(max=caps[name]) if name in caps else scores
            parts.append(self.weights[name] / divisors.get(name, 1.0) * capped)
        return torch.stack(parts).sum(0)

    def _repr_html_(self) -> str:
        of = self.rewards.items()
        rows = [(name, self.weights[name], self.caps.get(name, ""), type(reward).__name__) for name, reward in of]
        return table(["reward", "weight", "cap", "class"], rows)


Rewards = Objective | OneReward | Mapping[str, OneReward]


def as_objective(rewards: Rewards) -> Objective:
    """An `Objective` as it is; of one reward, or of rewards by name, the objective with weights of 1.

    Raises:
        RewardError: as `Objective`, or if there is no reward.
    """
    if isinstance(rewards, Objective):
        return rewards
    if not isinstance(rewards, Mapping):
        rewards = {getattr(rewards, "__name__", type(rewards).__name__).lower().replace("<lambda>", "reward"): rewards}
    if not rewards:
        raise RewardError("there is no reward", where="objective", next="give at least one")
    return Objective(rewards)


def groups_of(name: str, prompts: Sequence[str], size: int) -> list[list[int]]:
    """The places of the images of each group, whose prompts stand side by side.

    Arguments:
        name: of the reward.
        prompts: of the images.
        size: images in a group.

    Raises:
        RewardError: if they are no whole groups of two or more, each of one prompt.
    """
    groups = _in_a_row(len(prompts), size)
    problem = None
    if size < 2:
        problem = "one image of each"
    elif len(prompts) % size:
        problem = f"{len(prompts)} images, which are no groups of {size}"
    elif any(len({row_key(prompts[place]) for place in own}) > 1 for own in groups):
        problem = f"images of several prompts in a group of {size}"
    if problem is not None:
        raise RewardError(
            f"it compares the images of a prompt, and is given {problem}",
            where=f"reward {name!r}",
            next="set train.images_per_prompt of a recipe, or `group_size` of an objective, to 2 or more, and take a "
            "method that scores the images of a prompt together",
        )
    return groups


def _in_a_row(count: int, size: int) -> list[list[int]]:
    """The places of `size` images side by side; of the last ones what is left."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def _any_groups(name: str, prompts: Sequence[str], size: int) -> list[list[int]]:
    """Groups of two or more of whatever prompts; a single image stands twice in its own."""
    return [own if len(own) > 1 else own * 2 for own in _in_a_row(len(prompts), max(size, 2))]


def _frame_by_frame(
    name: str, reward: Scorer, videos: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Column]
) -> torch.Tensor:
    """Of a group of videos the frames at one place are compared, and the mean over places counts."""
    of_frames = [checked_scores(name, reward, frames, prompts, columns) for frames in videos.unbind(1)]
    return torch.stack(of_frames).mean(0)


def _mean_over_frames(
    name: str, reward: Scorer, videos: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Column]
) -> torch.Tensor:
    frames = videos.shape[1]
    texts = [prompt for prompt in prompts for _ in range(frames)]
    return checked_scores(name, reward, videos.flatten(0, 1), texts, columns).view(-1, frames).mean(1)


def checked_scores(
    name: str,
    reward: Scorer,
    images: torch.Tensor,
    prompts: Sequence[str],
    columns: Mapping[str, Column] = NO_COLUMNS,
) -> torch.Tensor:
    """The scores (N,) that a reward gives images (N, 3, H, W), or videos if it takes them, and their N prompts.

    Arguments:
        name: of the reward, for the error.
        columns: that it reads of the prompts' rows, by its own names for them.

    Raises:
        RewardError: if it raises, or returns anything but one float32 score for each image.
        DraftError: if a prompt lacks a column that it reads.
    """
    count = len(images)
    beside = {"columns": for_reward(columns, prompts, images, where=f"reward {name!r}")} if columns else {}
    try:
        scores: Any = reward(images, plain(prompts), **beside)
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
