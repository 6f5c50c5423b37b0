"""What the comparisons on the embedded model judge by: files and networks that read held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from draft_core import DifferentiableSampler, Objective, evaluate, load_catalog, load_reward
from draft_core.recipe.resolve import resolve_prompts

MARK = 0.92  # of the base model's bytes: far enough to tell methods apart, and images still show their things
FLOOR = 0.93  # of the base model's alignment
QUALITY = 80  # of the files

BYTES, ALIGNMENT, TOP1 = "jpeg-size", "emoji-clip", "emoji-judge-top1"
SCENE_RIGHT = "emoji-scene-judge-right"  # both things, in their colours
FIELDS: Mapping[str, Mapping[str, Any]] = {BYTES: {"quality": QUALITY}}


def make_judge(
    sampler: DifferentiableSampler, images: int, *names: str, prompts: str = "emoji-heldout", of_each: int = 1
) -> Callable[[], dict[str, float]]:
    """Says what these measures give of the held-out images, as the pipeline is when asked.

    Arguments:
        sampler: draws the images, always from the same seeds.
        images: so many held-out prompts, spread evenly over the list.
        names: rewards of installed plugins.
        prompts: the list.
        of_each: images of each prompt.

    Returns:
        a function without arguments: name -> mean over the images.
    """
    measures = Objective({name: load_reward(name, **FIELDS.get(name, {})) for name in names})
    held_out = resolve_prompts(prompts, load_catalog())
    judged = held_out[:: len(held_out) // images][:images]
    return lambda: evaluate(sampler, measures, judged, range(of_each), batch_size=images).means()
