"""How well the `jpeg` reward knows the size of a real file, and how far real files shrink along its gradient.

    python benchmarks/jpeg_surrogate.py            # everything, about a minute on one core
    python benchmarks/jpeg_surrogate.py --help

Judge: Pillow's encoder. Photographs: those inside the scikit-image and scikit-learn wheels. Two tables:

1. Value. Relative error and rank correlation of the estimate with the file's bytes, per size and quality. The
   only fitted number is the share of stuffed bytes, so it is fitted anew on the other photographs for each
   one judged (leave one source out). Beside it: the rank correlation of the plain distortion.
2. Gradient. From each image, steps along the normalised gradient inside an L2 ball of RMS 2/255 or 4/255;
   the result is rounded to 8 bits and encoded by Pillow. Printed: by how many per cent the bytes fell.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from draft_reward_jpeg import JpegConfig, JpegDistortionConfig
from draft_reward_jpeg.reward import STUFFED_SHARE, JpegDistortionReward, JpegReward, encode
from draft_reward_jpeg.tables import HEADER_BYTES
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "china.jpg", "flower.jpg")
OTHER = (
    *("camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "retina.jpg", "ihc.png"),
)

SIZES = (64, 256, 512)
QUALITIES = (20, 50, 80)
BALLS = ((50, 2), (50, 4), (80, 2), (80, 4))  # (quality, radius in 1/255 RMS)
STEPS = 15
STEP_LENGTH = 2.5 / STEPS  # in radii, the customary choice of projected gradient descent

Gradient = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    photographs = {Path(name).stem: open_photograph(name) for name in (*COLOUR, *OTHER)}
    if not arguments.skip_value:
        print_value_table(photographs, arguments.subsampling)
    if not arguments.skip_gradient:
        chosen, unseen = (
            {Path(name).stem: photographs[Path(name).stem] for name in group} for group in (COLOUR, OTHER)
        )
        print_gradient_table(chosen, unseen, arguments.subsampling)
    if not arguments.skip_time:
        print_time_table(arguments.subsampling)
    print(f"\n{time.perf_counter() - start:.0f} s on {torch.get_num_threads()} thread(s)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subsampling", default="4:2:0", choices=("4:4:4", "4:2:2", "4:2:0"), help="default 4:2:0")
    parser.add_argument("--skip-value", action="store_true", help="leave out the first table")
    parser.add_argument("--skip-gradient", action="store_true", help="leave out the second table, the slow one")
    parser.add_argument("--skip-time", action="store_true", help="leave out the time of one call")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, default 1")
    return parser.parse_args()


def print_value_table(photographs: dict[str, Image.Image], subsampling: str) -> None:
    print(f"\nValue, {subsampling}: leave-one-source-out error of the estimated bytes, and rank correlation\n")
    columns = ("px", "quality", "images", "median error", "90th percentile", "Spearman", "Spearman of distortion")
    print_header(columns)
    for size, quality in itertools.product(SIZES, QUALITIES):
        judged = [
            (name, *measure(view, quality, subsampling))
            for name, photograph in photographs.items()
            for view in views(photograph, size)
        ]
        real = np.array([each[1] for each in judged])
        estimated = leave_one_source_out(judged)
        error = np.abs(estimated / real - 1) * 100
        print_row(
            *(size, quality, len(judged), f"{np.median(error):.2f} %", f"{np.percentile(error, 90):.2f} %"),
            f"{spearmanr(estimated, real).statistic:.4f}",
            f"{spearmanr([each[4] for each in judged], real).statistic:.3f}",
        )


def measure(view: Image.Image, quality: int, subsampling: str) -> tuple[int, int, float, float]:
    """Real bytes of the file, stuffed bytes among them, scan bytes by our count, and distortion."""
    file = encode(np.asarray(view), quality, subsampling)
    stuffed = file[HEADER_BYTES - 2 :].count(b"\xff\x00")
    image = to_tensor(view)
    settings = {"quality": quality, "subsampling": subsampling, "direction": "incompress"}
    with torch.no_grad():
        kilobytes = JpegReward(JpegConfig(**settings))(image, [""]).item()
        distortion = JpegDistortionReward(JpegDistortionConfig(**settings))(image, [""]).item()
    return len(file), stuffed, (kilobytes * 1000 - HEADER_BYTES) / (1 + STUFFED_SHARE), distortion


def leave_one_source_out(judged: list[tuple[str, int, int, float, float]]) -> np.ndarray:
    """Estimated bytes of each image, with the share of stuffed bytes taken from the other photographs."""
    estimates = []
    for name, _, _, counted, _ in judged:
        shares = [stuffed / scan for other, _, stuffed, scan, _ in judged if other != name]
        estimates.append(HEADER_BYTES + counted * (1 + float(np.mean(shares))))
    return np.array(estimates)


def print_gradient_table(chosen: dict[str, Image.Image], unseen: dict[str, Image.Image], subsampling: str) -> None:
    print(f"\nGradient, {subsampling}, 256 px: mean fall of the real bytes after {STEPS} steps (median in brackets)\n")
    print_header(("reward", "images", *(f"q{quality}, {radius}/255" for quality, radius in BALLS)))
    for title, photographs, how in (
        ("7 colour photographs, resized", chosen, resized_square),
        ("the same, cropped", chosen, cropped_square),
        ("9 others, resized", unseen, resized_square),
    ):
        images = torch.cat([to_tensor(how(photograph, 256)) for photograph in photographs.values()])
        for kind, gradient in (("jpeg", size_gradient), ("jpeg-distortion", distortion_gradient)):
            falls = [byte_fall(images, gradient(q, subsampling), q, radius / 255, subsampling) for q, radius in BALLS]
            print_row(kind, title, *(f"{fall.mean():.1f} % ({np.median(fall):.1f})" for fall in falls))
    print_row("", "required on average", "12 %", "18 %", "14 %", "19 %")


def byte_fall(images: Tensor, gradient: Gradient, quality: int, radius: float, subsampling: str) -> np.ndarray:
    """By how many per cent Pillow's file of each of images (B, 3, H, W) shrinks along `gradient`."""
    before = real_bytes(images, quality, subsampling)
    after = real_bytes(ascend(images, gradient, radius), quality, subsampling)
    return np.asarray(100 * (1 - after / before))


def ascend(images: Tensor, gradient: Gradient, radius: float) -> Tensor:
    """Images after `STEPS` normalised gradient steps inside an L2 ball whose radius is an RMS per pixel value."""
    reach = radius * math.sqrt(images[0].numel())
    moved = images
    for _ in range(STEPS):
        direction = gradient(moved)
        moved = moved + direction / norm(direction).clamp(min=1e-12) * (reach * STEP_LENGTH)
        offset = moved - images
        moved = (images + offset * (reach / norm(offset)).clamp(max=1)).clamp(0, 1)
    return moved


def size_gradient(quality: int, subsampling: str) -> Gradient:
    return gradient_of(JpegReward(JpegConfig(quality=quality, subsampling=subsampling)))


def distortion_gradient(quality: int, subsampling: str) -> Gradient:
    return gradient_of(JpegDistortionReward(JpegDistortionConfig(quality=quality, subsampling=subsampling)))


def gradient_of(reward: torch.nn.Module) -> Gradient:
    def gradient(images: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        return torch.autograd.grad(reward(images, [""] * len(images)).sum(), images)[0]

    return gradient


def print_time_table(subsampling: str) -> None:
    print(f"\nTime of one call of `jpeg` at quality 80, {subsampling}, value and gradient\n")
    print_header(("batch", "px", "time"))
    gradient = size_gradient(80, subsampling)
    photograph = open_photograph("astronaut.png")
    for batch, size, repeats in ((8, 64, 20), (8, 256, 3), (1, 512, 5)):
        images = to_tensor(resized_square(photograph, size)).repeat(batch, 1, 1, 1)
        gradient(images)
        start = time.perf_counter()
        for _ in range(repeats):
            gradient(images)
        print_row(batch, size, f"{(time.perf_counter() - start) / repeats * 1000:.1f} ms")


def open_photograph(name: str) -> Image.Image:
    """A photograph that a wheel carries, by file name; nothing is downloaded."""
    import skimage
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    path = next(folder / name for folder in folders if (folder / name).exists())
    return Image.open(path).convert("RGB")


def views(photograph: Image.Image, size: int) -> Iterator[Image.Image]:
    """The whole photograph with its longer side at `size`, and its central square; never enlarged."""
    longer, shorter = max(photograph.size), min(photograph.size)
    if longer >= size:
        width, height = (max(round(side * size / longer), 1) for side in photograph.size)
        yield photograph.resize((width, height), Image.Resampling.BICUBIC)
    if shorter >= size:
        yield cropped_square(photograph, size)


def cropped_square(photograph: Image.Image, size: int) -> Image.Image:
    left, top = ((side - size) // 2 for side in photograph.size)
    return photograph.crop((left, top, left + size, top + size))


def resized_square(photograph: Image.Image, size: int) -> Image.Image:
    square = cropped_square(photograph, min(photograph.size))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def real_bytes(images: Tensor, quality: int, subsampling: str) -> np.ndarray:
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.array([len(encode(each, quality, subsampling)) for each in pixels])


def norm(images: Tensor) -> Tensor:
    """Each image's L2 norm, (B, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms[:, None, None, None]


def print_header(columns: Iterable[str]) -> None:
    columns = list(columns)
    print_row(*columns)
    print_row(*("---" for _ in columns))


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
