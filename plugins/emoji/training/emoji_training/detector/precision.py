"""Measures the detector as transformers runs it: the average precision of its boxes on collages it never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers import OwlViTForObjectDetection

from ..vae import to_tensor
from .collages import SIDE, Collage, Scatter
from .model import predict

SEEDS = {200: 4242, 400: 4243}  # of so many collages
CHUNK = 25
ABSENT = 8  # names that each collage is asked for beside its own
MOST = 100  # detections of a collage, as in COCO's rules


@torch.no_grad()
def ap50(
    model: OwlViTForObjectDetection,
    states: Tensor,
    scatter: Scatter,
    count: int,
    seed: int,
) -> float:
    """The average precision at an IoU of a half, the mean over the things that the collages show.

    Each collage is asked for its own things and for ABSENT others of those that the pictures of `scatter` show, so that
    whatever is found in vain counts. Its detections are the MOST likeliest pairs of a query and a box, judged by
    pycocotools.

    Arguments:
        states: (274, D), what the text tower says of each concept.
    """
    from torchmetrics.detection import MeanAveragePrecision  # seconds to import, and pycocotools with it

    generator = torch.Generator().manual_seed(seed)
    shown = sorted({scatter.meta[i].concept for i in scatter.choices})
    # Of this process alone: the others train no more, and measure nothing.
    metric = MeanAveragePrecision(box_format="xyxy", iou_thresholds=[0.5], backend="pycocotools", sync_on_compute=False)
    for first in range(0, count, CHUNK):
        collages = [scatter.collage(generator) for _ in range(min(CHUNK, count - first))]
        pixels = to_tensor(np.stack([c.image for c in collages]))
        found = predict(model, pixels, states)
        for collage, logits, boxes in zip(collages, found.logits, found.boxes, strict=True):
            own = [scatter.meta[i].concept for i in collage.indices]
            asked = torch.tensor(sorted({*own, *others(shown, set(own), generator)}))
            metric.update([detections(logits[:, asked], boxes, asked)], [truth(collage, own)])
    return float(metric.compute()["map_50"])


def others(shown: Sequence[int], own: set[int], generator: torch.Generator) -> list[int]:
    """ABSENT random ones of `shown` that are not `own`, or all there are."""
    free = [n for n in shown if n not in own]
    order = torch.randperm(len(free), generator=generator).tolist()
    return [free[k] for k in order[:ABSENT]]


def detections(logits: Tensor, boxes: Tensor, asked: Tensor) -> dict[str, Tensor]:
    """The likeliest pairs of a box and a query that was asked, as torchmetrics takes them."""
    best = logits.flatten().topk(min(MOST, logits.numel()))
    corners = SIDE * box_convert(boxes, "cxcywh", "xyxy")
    places = best.indices // len(asked)
    return {"boxes": corners[places], "scores": best.values.sigmoid(), "labels": asked[best.indices % len(asked)]}


def truth(collage: Collage, own: Sequence[int]) -> dict[str, Tensor]:
    """What is there, likewise."""
    return {"boxes": torch.from_numpy(collage.boxes), "labels": torch.tensor(own)}
