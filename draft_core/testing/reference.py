"""Compares a reward with its reference scorer on the same weights; `draft rewards compare` prints the table.

At the scorer's own size every resize is the identity and proves nothing, so the sizes here are of all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from draft_core.errors import DraftError, PluginError, RewardError, raised
from draft_core.prompt_rows import plain
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.rewards.columns import for_reward
from draft_core.rewards.images import to_pil
from draft_core.rewards.objective import checked_scores
from draft_core.runs.build import build_reward, reward_config
from draft_core.testing.subject import PROMPTS, Subject

# Height and width: squares, wide, tall and odd.
SIZES = ((224, 224), (512, 512), (256, 256), (300, 401), (427, 640), (97, 64), (513, 300))
COUNT = 6  # images of each size
COLUMNS_FIRST = 13  # from this Pillow on, of some tall images
HARD_PROMPTS = (
    PROMPTS[0],
    "Two CATS,   sleeping",
    "“curly quotes” and it’s &amp; entities",
    "",
    "an oil painting of the sea at night, " * 12,  # more than 77 tokens
    "naïve café 東京 🙂",
)
LEAST_CONTRAST = 0.4
# Scores that spread less than this share of their size differ by little more than the rounding of float32.
INDISTINCT = 1e-5
ALWAYS_NAMED = ("torch", "torchvision", "pillow")  # whatever else a plugin requires, these decide on pixels

Scorer = Callable[[list[Image.Image], list[str]], torch.Tensor]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Arguments:
        images: what was compared, such as "300 x 401", height by width.
        count: number of scores.
        max_error: largest difference from the reference, in standard deviations between images.
        mean_error: mean difference, likewise.
        std: that standard deviation: of the reference's scores in this row, in the reward's unit. Where one image
            meets several prompts it is the deviation between those.
    """

    images: str
    count: int
    max_error: float
    mean_error: float
    std: float


@dataclass(frozen=True)
class Comparison:
    """What a reward and its reference were found to differ by.

    Arguments:
        kind: of the reward.
        rows: what was compared, one row for each kind of images.
        tolerance: the largest difference that the spec allows.
        versions: library -> version.
    """

    kind: str
    tolerance: float
    rows: tuple[Row, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest difference of all rows."""
        return max(row.max_error for row in self.rows)

    @property
    def another_order(self) -> bool:
        """Whether all rows outside the tolerance are ones where Pillow may resize columns before rows.

        From version 13 on it does where the height loses more than twice as many pixels as the width; published scorers
        were made with Pillows that never did, and `draft_core.rewards.images` resizes as those. A size that images are
        resized to is not known here, but only images that are taller than wide can lose so.
        """
        sizes = [row.images.split(" x ") for row in self.rows if row.max_error > self.tolerance]
        are_tall = all(len(size) == 2 and int(size[0]) > int(size[1]) for size in sizes)
        return bool(sizes) and are_tall and int(self.versions.get("pillow", "0").partition(".")[0]) >= COLUMNS_FIRST

    @property
    def holds(self) -> bool:
        """Whether every difference is within the tolerance."""
        return self.worst <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Everything in it, for JSON."""
        return {**asdict(self), "worst": self.worst, "holds": self.holds}


def compare_kind(kind: str, fields: Mapping[str, Any], *, catalog: Catalog | None = None, **options: Any) -> Comparison:
    """The comparison of an installed kind with its reference, on an instance built from fields of its config.

    Arguments:
        kind: as `draft rewards` lists it.
        fields: name -> value, of its config.
        catalog: None takes what is installed.
        options: keywords of `compare_with_reference`: `sizes` (height, width) in pixels, `count` of images of
            each size, `images` (N, 3, H, W) in [0, 1], and `progress`.

    Raises:
        DraftError: if it cannot be built, or like `compare_with_reference`.
    """
    catalog = catalog if catalog is not None else load_catalog()
    entry, config = catalog.reward(kind), reward_config(kind, fields, catalog)
    subject = Subject(entry.spec, config, entry.module, build_reward(config, catalog))
    return compare_with_reference(subject, versions=library_versions(entry.distribution.name), **options)


def compare_with_reference(
    subject: Subject,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    count: int = COUNT,
    images: Sequence[torch.Tensor] = (),
    versions: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Comparison:
    """The comparison of a reward that names its reference.

    Seeded images of each size, for one prompt; then, if the reward reads prompts, one image for prompts that
    are hard to read; then, by themselves, the images given.

    Arguments:
        subject: the reward, as its distribution names it.
        sizes: (height, width) of the seeded images; `SIZES` and the native size if left out.
        count: how many of each size.
        images: further ones (1, 3, H, W) in [0, 1], in whole levels, as `read_image` gives them.
        versions: to be carried along; see `library_versions`.
        progress: called with the rows done, how many there will be, and what is compared next.

    Raises:
        PluginError: if the reward names no reference, or that is none.
        DraftError: if just one image is given.
        RewardError: if either side raises, or its scores are not finite, or too much alike to be compared.
    """
    spec = subject.spec
    scorer: Scorer = _of_reference(spec.load_reference(), subject.reward, subject.config, where=f"reward {spec.kind!r}")
    native = (spec.native_size or SIZES[0][0],) * 2
    sizes = tuple(dict.fromkeys((native, *SIZES))) if sizes is None else tuple(sizes)
    refuse_single_image(images)
    cases: list[tuple[str, Sequence[torch.Tensor], Sequence[str]]] = [
        (
            f"{height} x {width}",
            list(seeded_images(subject, count, height, width)[:, None]),
            subject.prompts[:1] * count,
        )
        for height, width in sizes
    ]
    if spec.needs_prompt:
        image = seeded_images(subject, 1, *native)
        given = subject.prompts if spec.columns else spec.small_prompts or HARD_PROMPTS
        cases.append(("prompts" if spec.small_prompts else "hard prompts", [image] * len(given), given))
    if images:
        cases.append((f"{len(images)} files", images, subject.prompts[:1] * len(images)))
    rows: list[Row] = []
    for name, images, prompts in cases:
        progress(len(rows), len(cases), name)
        rows.append(_compared(subject, scorer, name, images, prompts))
    progress(len(cases), len(cases), "done")
    return Comparison(spec.kind, spec.tolerance or 0.0, tuple(rows), versions or {})


def refuse_single_image(images: Sequence[object]) -> None:
    """One image alone cannot be compared.

    Raises:
        DraftError: if there is just one.
    """
    if len(images) == 1:
        raise DraftError("one image has no deviation between images", where="--image", next="give two or more")


def seeded_images(subject: Subject, count: int, height: int, width: int) -> torch.Tensor:
    """Images (count, 3, H, W) as 8-bit files hold them, with contrast falling from one to the next.

    Images of one contrast have files of nearly one size; those that people take differ in it.
    """
    contrast = torch.linspace(1.0, LEAST_CONTRAST, count)[:, None, None, None]
    images = 0.5 + contrast * (subject.images(count, height, width) - 0.5)
    return (images * 255).round() / 255


def library_versions(distribution: str) -> dict[str, str]:
    """Name -> version of the libraries that decide on a score: those that a distribution requires, and a few more."""
    installed = {canonicalize_name(found.name): found for found in metadata.distributions()}
    itself = installed.get(canonicalize_name(distribution))
    required = [Requirement(line) for line in (itself and itself.requires) or ()]
    needed = [line for line in required if line.marker is None or line.marker.evaluate({"extra": ""})]
    names = [requirement.name for requirement in needed]
    wanted = [canonicalize_name(name) for name in (distribution, *ALWAYS_NAMED, *names)]
    return {name: installed[name].version for name in dict.fromkeys(wanted) if name in installed}


def markdown(comparisons: Mapping[str, Comparison]) -> str:
    """A table in Markdown, one pair of columns for each comparison under its name, with the tolerances and versions."""
    columns = ["images", *(f"{name}: {what}".lstrip(": ") for name in comparisons for what in ("max", "mean"))]
    lines = [_line(columns), _line(["---"] * len(columns))]
    places = dict.fromkeys(row.images for comparison in comparisons.values() for row in comparison.rows)
    for place in places:
        cells = [place]
        for comparison in comparisons.values():
            row = next((row for row in comparison.rows if row.images == place), None)
            cells += ["", ""] if row is None else [short(row.max_error), short(row.mean_error)]
        lines.append(_line(cells))
    versions = {name: version for comparison in comparisons.values() for name, version in comparison.versions.items()}
    limits = ", ".join(dict.fromkeys(f"{comparison.tolerance:g}" for comparison in comparisons.values()))
    tail = f"Tolerance: {limits}."
    if versions:
        tail += f" Measured with {', '.join(f'{name} {version}' for name, version in versions.items())}."
    return "\n".join([*lines, "", tail])


def short(error: float) -> str:
    """A difference in two digits."""
    return f"{error:.1e}" if error else "0"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _compared(
    subject: Subject, scorer: Scorer, name: str, images: Sequence[torch.Tensor], prompts: Sequence[str]
) -> Row:
    """One row for images (1, 3, H, W) of any sizes and a prompt for each."""
    where = f"reward {subject.spec.kind!r}, {name}"
    # One by one like the reference: in a batch the last digits of float32 fall otherwise.
    with torch.no_grad():
        ours = torch.cat(
            [
                checked_scores(subject.spec.kind, subject.reward, image, [prompt], subject.columns)
                for image, prompt in zip(images, prompts, strict=True)
            ]
        )
        pil = [to_pil(image[0]) for image in images]
        beside = for_reward(subject.columns, prompts, images[0], where=where)
        theirs = _of_reference(scorer, pil, list(plain(prompts)), *([beside] if beside else []), where=where)
    if not isinstance(theirs, torch.Tensor) or theirs.shape != ours.shape:
        shape = tuple(theirs.shape) if isinstance(theirs, torch.Tensor) else type(theirs).__name__
        raise PluginError(f"its reference gave {shape}, not scores of shape {tuple(ours.shape)}", where=where)
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    for side, scores in (("it", ours), ("its reference", theirs)):
        if not scores.isfinite().all():
            raise RewardError(f"{side} scores {scores.tolist()}", where=where, next="mend that first")
    std = float(theirs.std())
    if std <= INDISTINCT * float(theirs.abs().max()):
        raise RewardError(
            f"its reference scores all {len(theirs)} alike ({float(theirs[0]):g}, standard deviation {std:.1e}), so "
            "that a difference would mean nothing",
            where=where,
            next="take another configuration or other images",
        )
    errors = (ours - theirs).abs() / std
    return Row(name, len(theirs), float(errors.max()), float(errors.mean()), std)


def _of_reference(call: Callable[..., Any], *given: Any, where: str) -> Any:
    """What a plugin's reference gives; a bug of it ends in a sentence."""
    try:
        return call(*given)
    except DraftError:
        raise
    except Exception as error:
        raise RewardError(
            f"its reference raised {raised(error)}",
            where=where,
            next="tell its author",
        ) from error
