"""The losses of the detector: one box answers for a thing, and every patch that sees it learns its name and place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from .model import Found

ANSWER, PLACE, OVERLAP = 2.0, 5.0, 2.0  # weights, those of deformable DETR (Zhu et al. 2021)
ALPHA, GAMMA = 0.3, 2.0  # of the focal loss, as in Minderer et al. 2022
PATCHES = 0.5  # weight of the place by all patches of a thing, beside that by the one which answers
TAUGHT = 2.0  # weight of the embedding
WHICH = 1.0  # weight of the choice of the box


def detection_loss(found: Found, names: Sequence[Tensor], places: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """The sum of all losses, a mean over things.

    Arguments:
        names: for each image the query (K,) that names each of its K things; the last lies on top.
        places: their boxes (K, 4): centre x, y, width, height in [0, 1].
        taught: (K, D), the embeddings that what is seen of each should have.
    """
    rows = [match(*of_image) for of_image in zip(found.logits, names, places, strict=True)]
    images = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)])
    name, place = torch.cat(list(names)), torch.cat(list(places))
    answer = images, torch.cat(rows)
    owner = owners(places, found.logits.shape[1])
    seen = (owner >= 0).nonzero(as_tuple=True)
    thing = owner[seen]
    # Each thing counts alike, however many patches see it.
    share = 1 / torch.bincount(thing, minlength=len(name))[thing]
    total = ANSWER * answer_loss(found.logits, name, answer) + WHICH * which_loss(found.logits, name, answer)
    total = total + place_loss(found.boxes[answer], place).sum()
    total = total + PATCHES * (share * place_loss(found.boxes[seen], place[thing])).sum()
    total = total + (share * F.cross_entropy(found.logits[seen], name[thing], reduction="none")).sum()
    near = F.cosine_similarity(found.embeds[seen], torch.cat(list(taught))[thing], dim=1)
    total = total + TAUGHT * (share * (1 - near)).sum()
    return total / max(1, len(name))


def answer_loss(logits: Tensor, name: Tensor, answer: tuple[Tensor, Tensor]) -> Tensor:
    """Focal loss of all names at all boxes: each thing's at the box (image, box) that answers for it."""
    wanted = torch.zeros_like(logits)
    wanted[(*answer, name)] = 1
    return sigmoid_focal_loss(logits, wanted, alpha=ALPHA, gamma=GAMMA, reduction="sum")


def which_loss(logits: Tensor, name: Tensor, answer: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy over the boxes of an image, for each thing's name: the box (image, box) that answers, or another.

    The focal loss hardly sees a box that is half sure; it is by this that all others fall behind.
    """
    images, box = answer
    scores = logits[images, :, name]
    # Where an image shows a thing twice, the other's box is no mistake.
    twin = (images[:, None] == images) & (name[:, None] == name)
    one, other = twin.fill_diagonal_(False).nonzero(as_tuple=True)
    scores = scores.index_put((one, box[other]), scores.new_tensor(-torch.inf))
    return F.cross_entropy(scores, box, reduction="sum")


def place_loss(boxes: Tensor, places: Tensor) -> Tensor:
    """L1 and generalised IoU of each box, (N,)."""
    apart = generalized_box_iou_loss(_corners(boxes), _corners(places))
    return PLACE * (boxes - places).abs().sum(1) + OVERLAP * apart


def owners(places: Sequence[Tensor], patches: int) -> Tensor:
    """The number of the thing, over all images, at the middle of each patch, (B, patches); -1 where there is none."""
    middles = _middles(patches, places[0])
    rows, first = [], 0
    for place in places:
        left, top, right, bottom = _corners(place).T[..., None]
        x, y = middles.T
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        numbers = torch.arange(first, first + len(place), device=place.device)
        rows.append(torch.where(inside, numbers[:, None], -1).amax(0))
        first += len(place)
    return torch.stack(rows)


@torch.no_grad()
def match(logits: Tensor, names: Tensor, places: Tensor) -> Tensor:
    """The box (K,) that answers for each thing of an image, no box twice: near its middle and, of those, the surest.

    A patch counts for as much as a probability of one. So the middle decides, and not what a young detector happens to
    say; that decides only between patches that are about as near.
    """
    side = len(logits) ** 0.5
    cost = torch.cdist(_middles(len(logits), places), places[:, :2]) * side - logits[:, names].sigmoid()
    chosen, things = (torch.from_numpy(each) for each in linear_sum_assignment(cost.cpu().numpy()))
    return chosen[things.argsort()].to(logits.device)


def _middles(patches: int, like: Tensor) -> Tensor:
    """Of each patch, (patches, 2): x, y in [0, 1]."""
    side = round(patches**0.5)
    at = (torch.arange(side, device=like.device) + 0.5) / side
    return torch.stack([at.repeat(side), at.repeat_interleave(side)], dim=1)


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
