"""The reward: how face-like the best place of an image is; and the metric: how many faces are found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_reward_face import FaceConfig, FaceCountConfig, MtcnnConfig
from draft_reward_face.cascade import Candidates, cascade, faces
from draft_reward_face.networks import load_stages


class _Mtcnn(FrozenModule):
    """The frozen detector."""

    def __init__(self, config: MtcnnConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.thresholds, self.min_face_size = config.thresholds, config.min_face_size
        self.stages = load_stages(config)
        self.requires_grad_(False).eval()

    def candidates(self, images: Tensor, prompts: Sequence[str], *, best: bool) -> list[Candidates]:
        """What the cascade leaves of each image (3, H, W) in [0, 1].

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or smaller than the smallest face.
        """
        images = checked_images(images, prompts, where=self.where)
        height, width = images.shape[-2:]
        if min(height, width) < self.min_face_size:
            raise RewardError(
                f"images of {height} x {width} pixels hold no face of {self.min_face_size}",
                where=self.where,
                next=f"set min_face_size to {max(min(height, width), 12)} or less, or score larger images",
            )
        with torch.autocast(images.device.type, enabled=False):
            settings = (self.stages, self.thresholds, self.min_face_size)
            return [cascade(image, *settings, best=best) for image in (images * 255)[:, None]]


class FaceReward(_Mtcnn):
    """How face-like the best place of an image is, differentiable; higher is more like a face.

    The largest sum of a candidate's log-probabilities under MTCNN's three networks. Where no candidate passes a
    network, its most likely one goes on, so that there is always one, with a gradient. This definition is ours.

    Raises:
        DraftError: if the weights are missing or do not fit.
    """

    def __init__(self, config: FaceConfig) -> None:
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32, in nats, at most 0, of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or smaller than the smallest face.
        """
        return torch.stack([found.total.amax() for found in self.candidates(images, prompts, best=True)])


class FaceCount(_Mtcnn):
    """How many faces the detector finds, without a gradient.

    Raises:
        DraftError: like `FaceReward`.
    """

    def __init__(self, config: FaceCountConfig) -> None:
        super().__init__(config)

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Counts (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: like `FaceReward`.
        """
        found = self.candidates(images, prompts, best=False)
        return torch.tensor([float(len(faces(of_image).boxes)) for of_image in found], device=images.device)
