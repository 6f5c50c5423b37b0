"""The score by facenet-pytorch's own networks and box operations: slow, on PIL images, without a gradient.

On the reward's own weights. facenet-pytorch gives boxes and the last probability alone; here its parts are called one
after another, and the sums kept. Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from facenet_pytorch.models import mtcnn
from facenet_pytorch.models.utils import detect_face as parts
from PIL import Image
from torch import Tensor

from draft_reward_face import FaceConfig
from draft_reward_face.reward import FaceReward


def networks(reward: Any) -> list[torch.nn.Module]:
    """facenet-pytorch's P-Net, R-Net and O-Net with the reward's weights."""
    made = [network(pretrained=False).eval() for network in (mtcnn.PNet, mtcnn.RNet, mtcnn.ONet)]
    for network, stage in zip(made, reward.stages, strict=True):
        network.load_state_dict({name: tensor.cpu() for name, tensor in stage.state_dict().items()})
    return made


def reference(reward: FaceReward, config: FaceConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The score in float32 on the CPU, one image at a time; prompts are not read."""
    pnet, rnet, onet = networks(reward)

    @torch.no_grad()
    def score_one(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
        boxes, total = first(pixels, pnet, config)
        for network, side, threshold in ((rnet, 24, config.thresholds[1]), (onet, 48, config.thresholds[2])):
            boxes, crops, kept = cut(pixels, parts.rerec(boxes), side)
            outputs = network(crops)
            probability = outputs[-1][:, 1]
            total = total[kept] + probability.log()
            chosen = probability >= threshold
            if not chosen.any():
                chosen = probability == probability.max()
            chosen = chosen.nonzero()[:, 0]
            if network is rnet:
                none = torch.zeros(len(chosen), dtype=torch.long)
                chosen = chosen[parts.batched_nms(boxes[chosen], probability[chosen], none, 0.7)]
            boxes, total = parts.bbreg(boxes[chosen].clone(), outputs[0][chosen]), total[chosen]
        return total.max()

    return lambda images, prompts: torch.stack([score_one(image) for image in images])


def first(pixels: Tensor, pnet: torch.nn.Module, config: FaceConfig) -> tuple[Tensor, Tensor]:
    """Corrected boxes and log-probabilities of the candidates that P-Net leaves."""
    height, width = pixels.shape[-2:]
    scale, found = 12 / config.min_face_size, []
    while min(height, width) * scale >= 12:
        resized = parts.imresample(pixels, (int(height * scale + 1), int(width * scale + 1)))
        corrections, probability = pnet((resized - 127.5) * 0.0078125)
        found.append((corrections, probability[:, 1], scale))
        scale *= 0.709

    def rows_above(threshold: float, *, drop: bool) -> Tensor:
        rows = []
        for corrections, probability, at in found:
            of_scale, images = parts.generateBoundingBox(corrections, probability, at, threshold)
            pick = parts.batched_nms(of_scale[:, :4], of_scale[:, 4], images, 0.5)
            rows.append(of_scale[pick] if drop else of_scale)
        return torch.cat(rows)

    rows = rows_above(config.thresholds[0], drop=True)
    if len(rows) == 0:
        rows = rows_above(max(float(probability.max()) for _, probability, _ in found), drop=False)[:1]
    rows = rows[parts.batched_nms(rows[:, :4], rows[:, 4], torch.zeros(len(rows), dtype=torch.long), 0.7)]
    sizes = (rows[:, 2:4] - rows[:, :2]).repeat(1, 2)
    return rows[:, :4] + rows[:, 5:] * sizes, rows[:, 4].log()


def cut(pixels: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes that lie in the image, their crops, and which they are."""
    y, ey, x, ex = parts.pad(boxes.clone(), pixels.shape[3], pixels.shape[2])
    kept = [place for place in range(len(y)) if ey[place] > y[place] - 1 and ex[place] > x[place] - 1]
    crops = [
        parts.imresample(pixels[..., y[place] - 1 : ey[place], x[place] - 1 : ex[place]], (side, side))
        for place in kept
    ]
    return boxes[kept], (torch.cat(crops) - 127.5) * 0.0078125, torch.tensor(kept)
