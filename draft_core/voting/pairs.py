"""Which two images are shown together, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, zip_longest
from pathlib import Path
from random import Random

from draft_core.errors import CheckpointError
from draft_core.reporting.run_record import IMAGES, RunRecord


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt.

    Arguments:
        left, right: their files.
    """

    prompt: str
    left: Path
    right: Path


def evaluated_images(record: RunRecord) -> dict[str, list[Path]]:
    """Prompt -> its images of all evaluations of a run, from every seed.

    Raises:
        CheckpointError: if one of the files is gone.
    """
    seeds = len(record.facts.seeds)
    images: dict[str, list[Path]] = {}
    for evaluation in record.evaluations:
        folder = record.folder / IMAGES / f"{evaluation.update:06d}"
        for number, prompt in enumerate(record.facts.prompts):
            files = [folder / f"{place:03d}.png" for place in range(number * seeds, (number + 1) * seeds)]
            if missing := next((file for file in files if not file.is_file()), None):
                raise CheckpointError("there is no such file", where=str(missing), next="copy the run again")
            images.setdefault(prompt, []).extend(files)
    return images


def pairs_of(images: Mapping[str, Sequence[Path]]) -> list[Pair]:
    """Every two different images of each prompt once, in an order that the images decide.

    One prompt follows the other, so that the first pairs are of all of them. Which image is left is chance. Two files
    of the same bytes are no pair.

    Arguments:
        images: prompt -> files.
    """
    by_prompt = []
    for prompt, files in images.items():
        rng = Random(prompt)
        contents = {file: file.read_bytes() for file in files}
        pairs = [pair for pair in combinations(contents, 2) if contents[pair[0]] != contents[pair[1]]]
        rng.shuffle(pairs)
        by_prompt.append([Pair(prompt, *rng.sample(pair, 2)) for pair in pairs])
    return [pair for pair in chain.from_iterable(zip_longest(*by_prompt)) if pair is not None]
