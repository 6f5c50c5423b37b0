"""What an update asks of the networks, whatever the method: counts, seconds, and who can say them.

Come here for the words in which a forecast is made; `work_of_plans` and `work_by_scores` have the methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from draft_core.cost.probe import Times


@dataclass(frozen=True)
class Calls:
    """What one update asks of the networks.

    Arguments:
        plain: denoiser calls without gradient.
        with_grad: denoiser calls with gradient, forward and backward.
        recomputed: denoiser calls made once more in the backward pass.
        decoded: images through the decoder; with `decode` other than "whole" each goes through it twice.
        scored: images through the rewards, counted once where a reward also looks near them for its worst.
        encoded: images of files through the pipeline's encoder.
    """

    plain: int
    with_grad: int
    recomputed: int
    decoded: int
    scored: int
    encoded: int = 0


@dataclass(frozen=True)
class Seconds:
    """Where the time of one update goes, in seconds."""

    plain: float
    with_grad: float
    decoding_and_rewards: float
    encoding: float  # of prompts
    image_encoding: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.plain + self.with_grad + self.decoding_and_rewards + self.encoding + self.image_encoding


class Work(Protocol):
    """What one update of a trainer's method asks, drawn as the first one.

    Attributes:
        may_be_halved: whether half the batch in twice as many passes learns the same.
    """

    may_be_halved: bool

    def times(self) -> Times:
        """Seconds of single calls, from a small update that is thrown away."""
        ...

    def calls(self, calls_a_step: float) -> Calls:
        """How often each network runs.

        Arguments:
            calls_a_step: denoiser calls of one sampler step.
        """
        ...

    def seconds(self, times: Times) -> Seconds:
        """Where the time goes."""
        ...

    def activations(self, batch: int) -> int:
        """Bytes that an update with passes of `batch` images allocates at most, beside the LoRA's gradient."""
        ...

    def images_at_once(self) -> int:
        """A bound: the memory of one image with one grad step, so often, is no less than that of an update."""
        ...
