"""Which frames of a video are decoded with a gradient and scored, and which one is shown; here is `train.frames`."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from draft_core.errors import SamplerError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FrameChoice:
    """Some frames of every video that a sampler makes.

    Arguments:
        count: how many, 1 or more.
        choice: "even" spreads them from the first to the last, and takes the middle one of a `count` of 1; "random"
            draws them, each at most once.
        key: what "random" is drawn from: the same key gives the same frames.
    """

    count: int
    choice: Literal["even", "random"] = "even"
    key: str = ""

    def of(self, total: int) -> tuple[int, ...]:
        """The numbers of the chosen frames of a video of `total`, in order.

        Raises:
            SamplerError: if the video has fewer frames than are chosen.
        """
        if self.count > total:
            raise SamplerError(
                f"{self.count} frames are chosen of videos that have {total}",
                where="frames",
                next=f"choose {total} or fewer, or leave it out: then all are taken",
            )
        if self.choice == "random":
            return tuple(sorted(Random(f"frames {self.key}").sample(range(total), self.count)))
        if self.count == 1:
            return (total // 2,)
        return tuple(round(place * (total - 1) / (self.count - 1)) for place in range(self.count))


def still(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) as they are; of videos (N, F, 3, H, W) the middle frame."""
    return images if images.ndim == 4 else images[:, images.shape[1] // 2]
