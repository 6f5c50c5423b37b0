"""Which two images are shown together, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, zip_longest
from pathlib import Path
from random import Random

from draft_core.reporting.run_record import RunRecord, image_files


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
    prompts, seeds = record.facts.prompts, len(record.facts.seeds)
    images: dict[str, list[Path]] = {}
    for evaluation in record.evaluations:
        files = image_files(record.folder, evaluation.update, len(prompts) * seeds)
        for number, prompt in enumerate(prompts):
            images.setdefault(prompt, []).extend(files[number * seeds : (number + 1) * seeds])
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
