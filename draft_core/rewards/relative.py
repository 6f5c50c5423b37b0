"""Text features of a prompt with control words for and against it: what an image is scored by relative to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

PLACE = "{prompt}"


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
