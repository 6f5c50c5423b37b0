"""What rewards share: checked input, each prompt read only once, control words for it; and a function as a reward."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from draft_core.errors import RewardError
from draft_core.prompt_rows import PLACE

MARGIN = 0.5  # how far outside [0, 1] a level may lie: more than a decoder overshoots, less than [-1, 1] or [0, 255] do


def checked_images(images: torch.Tensor, prompts: Sequence[str], *, where: str) -> torch.Tensor:
    """The images in float32, (B, 3, H, W), with their gradient.

    Arguments:
        images: what a reward is given.
        prompts: what it is given beside them.
        where: who checks, such as "reward 'hpsv2'"; it begins an error's sentence.

    Raises:
        RewardError: unless they are a floating-point batch (B, 3, H, W) with B prompts, and its levels those of
            [0, 1]; a little outside, as decoders overshoot, they are taken as they are.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise RewardError(
            f"images are {images.dtype} of shape {tuple(images.shape)}",
            where=where,
            next="pass RGB images (B, 3, H, W) as floats in [0, 1]",
        )
    return _checked(images, prompts, where=where, what="images")


def checked_videos(videos: torch.Tensor, prompts: Sequence[str], *, where: str, frames: int = 2) -> torch.Tensor:
    """The videos in float32, (B, F, 3, H, W), with their gradient.

    Arguments:
        videos: what a reward that takes videos is given.
        prompts: what it is given beside them.
        where: who checks, such as "reward 'motion'"; it begins an error's sentence.
        frames: that the reward needs of each video, at least.

    Raises:
        RewardError: unless they are a floating-point batch (B, F, 3, H, W) with B prompts, of at least `frames` frames,
            and its levels those of [0, 1]; a little outside, as decoders overshoot, they are taken as they are.
    """
    if videos.ndim != 5 or videos.shape[2] != 3 or not videos.is_floating_point():
        raise RewardError(
            f"videos are {videos.dtype} of shape {tuple(videos.shape)}",
            where=where,
            next="pass RGB videos (B, F, 3, H, W) as floats in [0, 1]",
        )
    if videos.shape[1] < frames:
        raise RewardError(
            f"the videos have {videos.shape[1]} frames, and it needs {frames} or more",
            where=where,
            next="make longer videos, or raise train.frames.count",
        )
    return _checked(videos, prompts, where=where, what="videos")


def _checked(images: torch.Tensor, prompts: Sequence[str], *, where: str, what: str) -> torch.Tensor:
    """In float32, if there is a prompt for each and the levels are those of [0, 1]."""
    if len(prompts) != len(images):
        raise RewardError(
            f"there are {len(prompts)} prompts for {len(images)} {what}",
            where=where,
            next=f"pass one for each {what[:-1]}",
        )
    has_numbers = type(images) in (torch.Tensor, torch.nn.Parameter) and not images.is_meta  # torch's fake ones do not
    if has_numbers and images.numel():
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if -math.inf < low < -MARGIN or 1 + MARGIN < high < math.inf:  # what is not finite has no range
            raise RewardError(
                f"the {what}' levels run from {low:.4g} to {high:.4g}", where=where, next="pass levels in [0, 1]"
            )
    return images.float()


class TextFeatureCache:
    """The text features of the prompts seen last, so that a text encoder runs once for each.

    A prompt is always encoded alone: its features are then the same in every bit, whatever stood beside it
    and however often it was forgotten, and a resumed run scores like an uninterrupted one.

    Arguments:
        limit: how many prompts are remembered.
    """

    def __init__(self, limit: int = 4096) -> None:
        self.limit = limit
        self._features: OrderedDict[tuple[str, torch.device], torch.Tensor] = OrderedDict()

    def __call__(
        self, prompts: Sequence[str], encode: Callable[[str], torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """Features (B, D) of B prompts, without gradient; `encode` gives those (D,) of one it does not remember."""
        batch = {prompt: self._one(prompt, encode, device) for prompt in dict.fromkeys(prompts)}
        while len(self._features) > self.limit:
            self._features.popitem(last=False)
        return torch.stack([batch[prompt] for prompt in prompts])

    def _one(self, prompt: str, encode: Callable[[str], torch.Tensor], device: torch.device) -> torch.Tensor:
        key = (prompt, device)
        if key in self._features:
            self._features.move_to_end(key)
        else:
            # A tensor born in inference mode could never meet autograd again, and these outlive the call.
            with torch.inference_mode(False), torch.no_grad():
                self._features[key] = encode(prompt)
        return self._features[key]


@dataclass(frozen=True)
class RelativePrompt:
    """How a prompt is read: as it stands, or with control words for and against it (SRPO).

    An image's features f of unit length then score f . ((1 + k) t+ - t-), where t+ and t- are of unit length too and
    their sum is not brought to it: it is (1 + k) times the one cosine minus the other, in [-2 - k, 2 + k]. Shen et al.
    2025, arXiv 2509.06942.

    Arguments:
        positive: control words for; "{prompt}" in them stands for the prompt, without it they stand before it, with a
            blank between. None reads the prompt as it stands.
        negative: control words against, likewise; None exactly if `positive` is.
        k: by how much more the first counts; None is 0.
    """

    positive: str | None = None
    negative: str | None = None
    k: float | None = None

    def __call__(self, prompt: str, encode: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """What `encode` gives for the prompt as it stands, or (1 + k) times that for one text minus the other's.

        Arguments:
            prompt: what the image is for.
            encode: text -> features (D,), or anything linear in them, such as their cosines with images.
        """
        if self.positive is None:
            return encode(prompt)
        positive, negative = self.texts(prompt)
        return (1 + (self.k or 0)) * encode(positive) - encode(negative)

    def texts(self, prompt: str) -> tuple[str, str]:
        """The prompt with the words for, and with those against; as it stands where there are none.

        Arguments:
            prompt: what the image is for.
        """
        return joined(self.positive, prompt), joined(self.negative, prompt)


def joined(words: str | None, prompt: str) -> str:
    """The words with the prompt in the place of "{prompt}", or behind them."""
    if words is None:
        return prompt
    return words.replace(PLACE, prompt) if PLACE in words else f"{words.rstrip()} {prompt}"
