"""What is measured of images and videos without a network: distance, colour, detail, diversity, movement, flicker."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

LEVELS = 4  # of the pyramid in which images are compared: full size, a half, a quarter, an eighth


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square difference (N,) of images (N, 3, H, W) in [0, 1], averaged over a pyramid of sizes.

    Coarse levels weigh shape and colour as much as fine ones weigh edges; it needs no network and no download.
    """
    levels = []
    for _ in range(LEVELS):
        levels.append((first - second).square().flatten(1).mean(1).sqrt())
        if min(first.shape[-2:]) < 2:
            break
        first, second = avg_pool2d(first, 2), avg_pool2d(second, 2)
    return torch.stack(levels).mean(0)


def colourfulness(images: Tensor) -> Tensor:
    """Hasler and Suesstrunk 2003, equation 6.12, (N,), of images (N, 3, H, W) in [0, 1]."""
    red, green, blue = images.flatten(2).unbind(1)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = (red_green.var(1, correction=0) + yellow_blue.var(1, correction=0)).sqrt()
    mean = (red_green.mean(1).square() + yellow_blue.mean(1).square()).sqrt()
    return spread + 0.3 * mean


def detail(images: Tensor) -> Tensor:
    """Root mean square (N,) of what a mean over 2 x 2 pixels removes: edges, texture, noise."""
    smooth = interpolate(avg_pool2d(images, 2, ceil_mode=True), images.shape[-2:], mode="nearest")
    return (images - smooth).square().flatten(1).mean(1).sqrt()


def motion(videos: Tensor) -> dict[str, Tensor]:
    """Measures (N,) of videos (N, F, 3, H, W) in [0, 1]; none of images, or of videos of one frame.

    "movement": mean size of the difference of two frames in a row. "flicker", of three frames or more: mean size of the
    second difference of three in a row; 0 where every pixel stays or changes at an even pace.
    """
    if videos.ndim != 5 or videos.shape[1] < 2:
        return {}
    found = {"movement": videos.diff(dim=1)}
    if videos.shape[1] > 2:
        found["flicker"] = videos.diff(n=2, dim=1)
    return {name: difference.abs().flatten(1).mean(1) for name, difference in found.items()}


def diversity(images: Tensor) -> Tensor:
    """Mean distance (P,) between the images of each prompt, (P, S, 3, H, W)."""
    first, second = torch.triu_indices(images.shape[1], images.shape[1], offset=1)
    return torch.stack([distance(images[first], images[second]).mean() for images in images])
