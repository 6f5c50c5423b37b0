"""MTCNN's cascade with a gradient: candidates pass from network to network, and keep the log-probabilities of all.

Boxes are rows (x0, y0, x1, y1) in pixels, counted from 1 as in the published code, and carry no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import nms

from draft_reward_face.networks import SIDES

SHRINK = 0.709  # from one scale of the pyramid to the next: half the area
STRIDE, CELL = 2, SIDES[0]  # of P-Net, in pixels
OVERLAP_OF_SCALE, OVERLAP = 0.5, 0.7  # above which the less likely of two candidates is dropped


@dataclass(frozen=True)
class Candidates:
    """Places that may be faces.

    Arguments:
        boxes: (N, 4).
        latest: (N,) log-probability under the last network.
        total: (N,) sum of the log-probabilities under all networks so far, with its gradient.
        corrections: (N, 4) what the last network moves the sides of a box by, in its widths and heights.
    """

    boxes: Tensor
    latest: Tensor
    total: Tensor
    corrections: Tensor

    def at(self, chosen: Tensor) -> Candidates:
        """Some of them, by index or mask."""
        return Candidates(*(getattr(self, name)[chosen] for name in ("boxes", "latest", "total", "corrections")))

    def apart(self, overlap: float) -> Candidates:
        """Without those that overlap a more likely one."""
        return self.at(nms(self.boxes, self.latest.detach(), overlap))

    def passed(self, threshold: float, *, best: bool) -> Candidates:
        """Those above the threshold; where there is none, the most likely one if `best` says so."""
        likely = self.latest.detach().exp() >= threshold
        if best and len(likely) and not likely.any():
            likely[self.latest.detach().argmax()] = True
        return self.at(likely)


def scales(height: int, width: int, min_face_size: int) -> list[float]:
    """What an image is resized by, so that P-Net meets faces of each size."""
    found, scale = [], CELL / min_face_size
    while min(height, width) * scale >= CELL:
        found.append(scale)
        scale *= SHRINK
    return found


def cascade(
    levels: Tensor, stages: nn.ModuleList, thresholds: Sequence[float], min_face_size: int, *, best: bool
) -> Candidates:
    """What is left behind the third network of the candidates in one image (1, 3, H, W), levels in [0, 255].

    Arguments:
        best: whether the most likely candidate goes on where none passes a network, so that one is always left.
    """
    pnet, rnet, onet = stages
    found = slid(levels, pnet, thresholds[0], min_face_size, best=best)
    found = replace(found, boxes=squared(corrected(found.boxes, found.corrections, extra=0)))
    found = seen_by(rnet, levels, found, SIDES[1]).passed(thresholds[1], best=best).apart(OVERLAP)
    found = replace(found, boxes=squared(corrected(found.boxes, found.corrections, extra=1)))
    found = seen_by(onet, levels, found, SIDES[2]).passed(thresholds[2], best=best)
    return replace(found, boxes=corrected(found.boxes, found.corrections, extra=1))


def slid(levels: Tensor, pnet: nn.Module, threshold: float, min_face_size: int, *, best: bool) -> Candidates:
    """P-Net's candidates at all scales."""
    height, width = levels.shape[-2:]
    dense = []
    for scale in scales(height, width, min_face_size):
        size = (int(height * scale + 1), int(width * scale + 1))
        log_probability, corrections = pnet(interpolate(levels, size, mode="area"))
        rows, columns = log_probability.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        starts = torch.stack([x, y], -1).flatten(0, 1).to(levels) * STRIDE
        boxes = torch.cat([((starts + 1) / scale).floor(), ((starts + CELL) / scale).floor()], 1)
        likely = log_probability.flatten()
        dense.append(Candidates(boxes, likely, likely, corrections.detach().flatten(2)[0].T))
    found = joined([of_scale.passed(threshold, best=False).apart(OVERLAP_OF_SCALE) for of_scale in dense])
    if best and not len(found.boxes):
        return joined(dense).passed(threshold, best=True)
    return found.apart(OVERLAP)


def seen_by(network: nn.Module, levels: Tensor, found: Candidates, side: int) -> Candidates:
    """The candidates with what a network says of their crops; those outside the image are left out."""
    height, width = levels.shape[-2:]
    corners = found.boxes.trunc().int()
    low, high = corners[:, :2].clamp_min(1) - 1, corners[:, 2:].clamp(max=torch.tensor([width, height]).to(corners))
    inside = (high > low).all(1)
    found = found.at(inside)
    if not len(found.boxes):
        return found
    crops = [
        interpolate(levels[..., y0:y1, x0:x1], (side, side), mode="area")
        for (x0, y0), (x1, y1) in zip(low[inside].tolist(), high[inside].tolist(), strict=True)
    ]
    log_probability, corrections = network(torch.cat(crops))
    return Candidates(found.boxes, log_probability, found.total + log_probability, corrections.detach())


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several scales."""
    return Candidates(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "latest", "total", "corrections"))
    )


def corrected(boxes: Tensor, corrections: Tensor, *, extra: int) -> Tensor:
    """Boxes moved by fractions of their width and height; later networks count `extra` = 1 pixel more of both."""
    sizes = boxes[:, 2:] - boxes[:, :2] + extra
    return boxes + corrections * sizes.repeat(1, 2)


def squared(boxes: Tensor) -> Tensor:
    """Squares about the same centres, of the longer side."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    longer = sizes.amax(1, keepdim=True)
    low = boxes[:, :2] + sizes / 2 - longer / 2
    return torch.cat([low, low + longer], 1)


def faces(found: Candidates) -> Candidates:
    """One candidate for each face: the more likely of two, where the smaller one lies within the other by 70 %."""
    boxes = found.boxes
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept: list[int] = []
    for place in found.latest.argsort(descending=True).tolist():
        others = boxes[kept]
        low, high = torch.max(others[:, :2], boxes[place, :2]), torch.min(others[:, 2:], boxes[place, 2:])
        shared = (high - low + 1).clamp_min(0).prod(1) / torch.min(area[kept], area[place])
        if not (shared > OVERLAP).any():
            kept.append(place)
    return found.at(torch.tensor(kept, dtype=torch.long))
