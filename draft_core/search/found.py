"""What a search found, of either kind, as the command shows and keeps it: images, scores, and a record of all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from draft_core.rewards.images import to_pil
from draft_core.search.best_of_n import BestOfN
from draft_core.search.noise import Ascent, OptimisedNoise


@dataclass(frozen=True)
class Found:
    """Images of P prompts before a search, and K of each after it.

    Arguments:
        headings: what stands over the images before and after.
        prompts: P prompts.
        before: (P, B, 3, H, W).
        after: (P, K, 3, H, W).
        seeds: of the images after, K of each prompt.
        scores: reward name -> scores before, (P, B), and after, (P, K).
        search: the kind of search and its settings.
        details: further figures of each prompt.
        latents: (P, K, ...) where the images have noise of their own, else None.
    """

    headings: tuple[str, str]
    prompts: Sequence[str]
    before: Tensor
    after: Tensor
    seeds: Sequence[Sequence[int]]
    scores: Mapping[str, tuple[Tensor, Tensor]]
    search: Mapping[str, Any]
    details: Sequence[Mapping[str, Any]]
    latents: Tensor | None = None

    def rows(self) -> list[tuple[str, list[Tensor]]]:
        """Each prompt with its images, those before the search first."""
        return [(prompt, [*self.before[row], *self.after[row]]) for row, prompt in enumerate(self.prompts)]

    def record(self, folder: str) -> list[dict[str, Any]]:
        """Of each prompt the images with seed and scores, and what else is known of it; plain values.

        Arguments:
            folder: that the files of the images are named in.
        """
        return [
            {
                "prompt": prompt,
                "images": [
                    {
                        "file": f"{folder}/{image_name(row, place)}",
                        "seed": seed,
                        "scores": {name: float(after[row, place]) for name, (_, after) in self.scores.items()},
                    }
                    for place, seed in enumerate(self.seeds[row])
                ],
                **self.details[row],
            }
            for row, prompt in enumerate(self.prompts)
        ]

    def save_images(self, folder: Path) -> None:
        """Writes every image after the search, as PNG and in its own size, into a folder that is there."""
        for row, images in enumerate(self.after):
            for place, image in enumerate(images):
                to_pil(image).save(folder / image_name(row, place))


def image_name(row: int, place: int) -> str:
    """The file of an image; prompts and images are numbered from 1."""
    return f"{row + 1:03d}-{place + 1}.png"


def of_best(found: BestOfN) -> Found:
    """What `best_of_n` found; before it stands the image of the first seed."""
    n = len(found.tried)
    return Found(
        headings=(f"seed {found.tried[0]}", f"best of {n}"),
        prompts=found.prompts,
        before=found.first[:, None],
        after=found.images,
        seeds=found.seeds,
        scores={name: (scores[:, :1], found.best[name]) for name, scores in found.scores.items()},
        search={"kind": "best-of", "n": n},
        details=[
            {"tried": list(found.tried), "scores": {name: row.tolist() for name, row in scores.items()}}
            for scores in _by_prompt(found.scores, len(found.prompts))
        ],
    )


def of_noise(found: OptimisedNoise, ascent: Ascent) -> Found:
    """What `optimise_noise` found; before it stand the images of the seeds."""
    return Found(
        headings=("before", f"after {ascent.iterations} iterations"),
        prompts=found.prompts,
        before=found.before,
        after=found.images,
        seeds=[found.seeds] * len(found.prompts),
        scores={name: (scores[..., 0], found.best[name]) for name, scores in found.scores.items()},
        search={"kind": "optimise-noise", **asdict(ascent)},
        details=[
            {
                "best_iterations": found.best_iteration[row].tolist(),
                "norms": found.norms[row].tolist(),
                "scores": {name: values.tolist() for name, values in scores.items()},
            }
            for row, scores in enumerate(_by_prompt(found.scores, len(found.prompts)))
        ],
        latents=found.latents,
    )


def _by_prompt(scores: Mapping[str, Tensor], prompts: int) -> list[dict[str, Tensor]]:
    return [{name: values[row] for name, values in scores.items()} for row in range(prompts)]
