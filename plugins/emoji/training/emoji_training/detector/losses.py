"""The losses of OWL-ViT: each thing is matched with one box, whose name and place are then learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

NAME, PLACE, OVERLAP = 2.0, 5.0, 2.0  # weights, those of deformable DETR (Zhu et al. 2021)
ALPHA, GAMMA = 0.3, 2.0  # of the focal loss, as in Minderer et al. 2022


def detection_loss(logits: Tensor, boxes: Tensor, names: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Focal loss of all names at all boxes, with L1 and generalised IoU of the matched boxes, for each thing.

    Arguments:
        logits: (B, boxes, Q).
        boxes: (B, boxes, 4), centre x, y, width, height in [0, 1].
        names: for each image the query (K,) that names each of its K things.
        places: their boxes (K, 4), likewise.
    """
    rows = [match(*of_image) for of_image in zip(logits, boxes, names, places, strict=True)]
    images = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)])
    chosen, name, place = torch.cat(rows), torch.cat(list(names)), torch.cat(list(places))
    wanted = torch.zeros_like(logits)
    wanted[images, chosen, name] = 1
    named = sigmoid_focal_loss(logits, wanted, alpha=ALPHA, gamma=GAMMA, reduction="sum")
    found = boxes[images, chosen]
    off = (found - place).abs().sum()
    apart = generalized_box_iou_loss(_corners(found), _corners(place), reduction="sum")
    return (NAME * named + PLACE * off + OVERLAP * apart) / max(1, len(chosen))


def naming_loss(logits: Tensor, names: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of the name of the thing at the middle of each patch, where there is one; the last lies on top.

    It says nothing of which patch answers for a thing, and teaches names by all patches that see it, not by one.
    """
    side = round(logits.shape[1] ** 0.5)
    at = (torch.arange(side, device=logits.device) + 0.5) / side
    x, y = at.repeat(side), at.repeat_interleave(side)
    target = torch.full(logits.shape[:2], -1, device=logits.device)
    for row, name, place in zip(target, names, places, strict=True):
        for which, (left, top, right, bottom) in zip(name, _corners(place), strict=True):
            row[(x > left) & (x < right) & (y > top) & (y < bottom)] = which
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, names: Tensor, places: Tensor) -> Tensor:
    """The box (K,) that each thing of an image is matched with, no box twice, at the least cost in all."""
    p = logits[:, names].sigmoid()
    seen = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
    absent = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    cost = NAME * (seen - absent) + PLACE * torch.cdist(boxes, places, p=1)
    cost = cost - OVERLAP * generalized_box_iou(_corners(boxes), _corners(places))
    chosen, things = (torch.from_numpy(side) for side in linear_sum_assignment(cost.cpu().numpy()))
    return chosen[things.argsort()].to(logits.device)


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
