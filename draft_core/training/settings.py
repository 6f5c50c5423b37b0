"""The settings of a training, with their bounds and what they mean; recipes and the trainer share them.

Plain dataclasses: pydantic validates and describes them in a recipe, and nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from draft_core.errors import RecipeError
from draft_core.setting import CLOSED, LARGEST_SEED, MOST, check_bounds, closed, setting

Beta = Annotated[float, Ge(0), Lt(1)]


@closed
@dataclass(frozen=True, kw_only=True)
class FrameSettings:
    """Which frames of a video model's videos are decoded with a gradient, and scored, in training."""

    __pydantic_config__ = CLOSED

    count: Annotated[int, Ge(1), Le(MOST)] = setting("How many frames of each video.", 4)
    choice: Literal["even", "random"] = setting(
        "`even` takes them at even distances, the first and the last among them; `random` draws others for each "
        "update.",
        "even",
    )

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds."""
        check_bounds(self)


@closed
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation: AdamW (Loshchilov and Hutter 2019) on the adapter."""

    __pydantic_config__ = CLOSED

    steps: Annotated[int, Ge(1)] = setting("Number of updates.", 100)
    batch_size: Annotated[int, Ge(1), Le(MOST)] = setting("Images in one pass.", 8)
    images_per_prompt: Annotated[int, Ge(1), Le(MOST)] = setting(
        "How many images of a pass have one prompt, side by side; it divides `batch_size`.", 1
    )
    gradient_accumulation_steps: Annotated[int, Ge(1), Le(MOST)] = setting("Passes in one update.", 1)
    learning_rate: Annotated[float, Gt(0)] = setting("Rate after the warm-up, and before the cool-down.", 4e-4)
    warmup_steps: Annotated[int, Ge(0)] = setting("Updates over which the rate rises linearly.", 0)
    cooldown_steps: Annotated[int, Ge(0)] = setting("Last updates, over which the rate falls linearly.", 0)
    betas: tuple[Beta, Beta] = setting("AdamW's averaging factors.", (0.9, 0.999))
    weight_decay: Annotated[float, Ge(0)] = setting("AdamW's decoupled decay.", 0.1)
    max_grad_norm: Annotated[float, Gt(0)] = setting("Gradients with a larger L2 norm are scaled down to it.", 1.0)
    mixed_precision: Literal["no", "fp16", "bf16"] = setting("Autocast around sampling and scoring.", "no")
    sharding: Literal["none", "full", "hybrid"] = setting(
        "With `full` each of several processes holds a part of the frozen denoiser (FSDP2), gathered block "
        "by block while it computes: less memory, more traffic. The LoRA stays whole. With `hybrid` the processes of "
        "each machine share one denoiser out, so that nothing of it travels between machines (HSDP).",
        "none",
    )
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] = setting("Of prompts, noise and plans.", 0)
    normalize: Literal["none", "scale", "gradient"] = setting(
        "What each reward is divided by before its weight: nothing, the running spread of its scores, or "
        "the running norm of its gradient in the image, so that rewards of different units can be weighed.",
        "none",
    )
    frames: FrameSettings | None = field(
        default=None,
        metadata={
            "description": "Of a video model: the frames that training decodes and scores; left out, all of them. "
            "Evaluations see all."
        },
    )
    max_skipped: Annotated[int, Ge(0)] = setting(
        "So many optimiser steps may be skipped for numbers that are not finite; one more ends the run.", 10
    )

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds, or a prompt's images do not divide a pass."""
        check_bounds(self)
        if self.batch_size % self.images_per_prompt:
            raise RecipeError(
                f"{self.images_per_prompt} images of each prompt do not divide a pass of {self.batch_size} images",
                where="train.images_per_prompt",
                next=f"make train.batch_size a multiple of {self.images_per_prompt}",
            )


@closed
@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """What a KL is taken from in the place of the base model."""

    __pydantic_config__ = CLOSED

    ema: Annotated[float, Ge(0), Lt(1)] = setting(
        "Decay of an exponential moving average of the trained weights, which every update moves (WARP); 0 is the "
        "weights after the last update, and near 1 the average stays near the base model for long.",
        0.99,
    )

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds."""
        check_bounds(self)


@closed
@dataclass(frozen=True, kw_only=True)
class RegularizerSettings:
    """What holds the tuned model near the base model; each is a weight, and 0 leaves the term out."""

    __pydantic_config__ = CLOSED

    # The KL of two Gaussians of equal variance is their squared distance (DRaFT+, NVIDIA NeMo).
    kl: Annotated[float, Ge(0)] = setting(
        "Mean squared difference between tuned and base denoiser along the grad steps (DRaFT+); for ddpo and grpo the "
        "KL divergence of their steps, in nats a dimension. Costs one more denoiser call for each recorded one, and no "
        "memory for a second model.",
        0.0,
    )
    kl_relative: Annotated[float, Ge(0), Le(1)] = setting(
        "A KL without a unit, in the place of `kl`: it takes this share of that part of the reward's gradient which at "
        "a recorded prediction leads straight away from the base model's; with 1 the prediction turns and goes no "
        "further. For methods that backpropagate through the sampler; costs as much as `kl`.",
        0.0,
    )
    kl_anchor: AnchorSettings | None = field(
        default=None,
        metadata={
            "description": "What `kl` or `kl_relative` is taken from, such as `{ema: 0.99}`; left out, the base model. "
            "Holds a second set of the trained weights."
        },
    )
    kl_gate: tuple[str, ...] = setting(
        "Kinds of `metrics` that are scored in training too, without a gradient: `kl` then counts only for images that "
        "the trained reward ranks higher in their pass than these do (after GARDO).",
        (),
    )
    lora_norm: Annotated[float, Ge(0)] = setting("Squared Frobenius norm of what the LoRA adds to the weights.", 0.0)

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds, or says how a `kl` counts that has no weight."""
        check_bounds(self)
        if self.kl and self.kl_relative:
            raise RecipeError(
                "kl has a weight already", where="regularizers.kl_relative", next="leave one of the two out"
            )
        said = {"kl_anchor": self.kl_anchor is not None and not self.kl_relative, "kl_gate": bool(self.kl_gate)}
        for name in [name for name, is_said in said.items() if is_said and not self.kl]:
            relative = "; kl_relative holds back all images alike" if self.kl_relative else ""
            raise RecipeError(
                f"without a weight of kl it would have no effect{relative}",
                where=f"regularizers.{name}",
                next="set regularizers.kl in its place, or leave it out"
                if relative
                else "set regularizers.kl, or leave it out",
            )

    @property
    def asks_base_model(self) -> bool:
        """Whether what a method records is compared with the base model, or with the anchor in its place."""
        return bool(self.kl or self.kl_relative)


@closed
@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """How often a run saves itself."""

    __pydantic_config__ = CLOSED

    every: Annotated[int, Ge(1)] = setting("Updates between checkpoints; the last update is always saved.", 50)
    keep: Annotated[int, Ge(1)] = setting("How many checkpoints stay on disk.", 2)

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds."""
        check_bounds(self)
