"""The settings of an evaluation, with their bounds and what they mean; recipes and the evaluator share them.

Plain dataclasses: pydantic validates and describes them in a recipe, and nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from draft_core.setting import CLOSED, LARGEST_SEED, MOST, MOST_STEPS, Prompts, check_bounds, closed, setting

HELD_OUT, TRAINED_ON = 16, 8  # prompts that are evaluated where `count` says nothing


@closed
@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated before, during and after training: same seeds, prompts that are not trained on."""

    __pydantic_config__ = CLOSED

    prompts: Prompts | None = field(
        default=None,
        metadata={"description": "Like the recipe's; none is trained on. Left out, some of the training prompts."},
    )
    count: Annotated[int, Ge(1)] | None = setting(
        "How many of the prompts, from the first; left out, 16, or 8 of the training prompts.", None
    )
    images_per_prompt: Annotated[int, Ge(1), Le(MOST)] = setting(
        "Images of each prompt; diversity needs two or more.", 2
    )
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] = setting(
        "Image i of each prompt starts from the noise of seed + i.", 0
    )
    every: Annotated[int, Ge(1)] = setting(
        "Updates between evaluations; there is always one at the first and at the last update.", 25
    )
    num_inference_steps: Annotated[int, Ge(1), Le(MOST_STEPS)] | None = setting(
        "Sampler steps of the evaluations' images; left out, as in training.", None
    )
    guidance_scale: Annotated[float, Ge(0)] | None = setting(
        "Guidance of the evaluations' images; left out, as in training.", None
    )
    tolerance: Annotated[float, Gt(0)] = setting(
        "How far a score that is not trained may fall, in standard deviations between the base model's "
        "images, before the run counts as collapsing.",
        2.0,
    )
    on_collapse: Literal["stop", "warn"] = setting(
        "What to do when the trained reward rises while other scores or diversity are lost.", "stop"
    )
    scales: tuple[float, ...] = setting(
        "Factors of the finished LoRA at which the first four prompts are drawn once more, one image "
        "each, for the report's slider; an empty list draws none.",
        (0.25, 0.5, 0.75),
    )

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds."""
        check_bounds(self)
