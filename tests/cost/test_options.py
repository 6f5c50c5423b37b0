"""What an option saves is in the forecast: it is that of a real update within 30 %, and without the option it is not.

Tiny decoders are in `tests/sampling/test_tiny_decoders.py`, weights of fewer bits in `tests/runs/test_quantization.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, Draft, DraftK, Objective, Trainer
from draft_core.adapters.lora import add_lora
from draft_core.cost.forecast import further_bytes
from draft_core.cost.peak_memory import peak_memory
from draft_core.learners.direct import DirectLearner
from draft_core.learners.learner import Learner
from draft_core.learners.targets import TargetLearner
from draft_core.registry.targets import Target
from draft_core.sampling.decoders.tiles import tile_decode
from draft_core.training.settings import FrameSettings, TrainSettings
from tests.support.families import FAMILIES
from tests.support.thorough import some
from tests.support.tiny import Redness, RednessConfig
from tests.support.video_classes import animate

NEAR = 0.3
MANY = DirectLearner(Draft())
LAST = DirectLearner(DraftK(k=1))
TILES = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
STRIDES = {"tile_sample_stride_height": 24, "tile_sample_stride_width": 24}


class Large(Redness):
    """A reward that takes more for each frame than all else."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return super().forward(images.repeat(1, 1, 16, 16).sigmoid().cos(), prompts)


def trainer(
    pipe: Any,
    learner: Learner,
    *,
    batch: int = 1,
    train: Mapping[str, Any] | None = None,
    reward: Any = None,
    **given: Any,
) -> Trainer:
    add_lora(pipe, rank=2)
    return Trainer(
        DifferentiableSampler(pipe, **{"num_inference_steps": 2, "height": 16, "width": 16, **given}),
        Objective({"redness": reward or Redness(RednessConfig())}),
        learner,
        ["a cat", "a dog"],
        TrainSettings(steps=1, batch_size=batch, **(train or {})),
        device="cpu",
    )


def family(name: str) -> Any:
    return next(family for family in FAMILIES if family.name == name).pipe()


def recomputed(how: str, batch: int) -> Callable[[bool], Trainer]:
    def made(is_on: bool) -> Trainer:
        kept = how if is_on else False
        pipe = family("Stable Diffusion 1.x")
        return trainer(pipe, MANY, batch=batch, gradient_checkpointing=kept, decode="sliced", guidance_scale=4.0)

    return made


def tiles(is_on: bool) -> Trainer:
    pipe = family("Wan 2.1, video")
    tile_decode(pipe, {**TILES, **STRIDES})
    size = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16}
    return trainer(pipe, LAST, decode="tiles" if is_on else "whole", **size)


def frames(is_on: bool) -> Trainer:
    chosen = {"frames": FrameSettings(count=1)} if is_on else {}
    made = trainer(animate(), LAST, train=chosen, reward=Large(RednessConfig()), num_frames=5)
    made.sampler.frames = made.batches.frames(made.settings.frames, 0)  # as `build` does
    return made


def target(refresh: int) -> Callable[[bool], Trainer]:
    def made(is_on: bool) -> Trainer:
        pipe = family("Stable Diffusion 1.x")
        return trainer(pipe, TargetLearner(Target(refresh=refresh)) if is_on else MANY, batch=3, guidance_scale=4.0)

    return made


OPTIONS: dict[str, Callable[[bool], Trainer]] = {
    "lean": recomputed("lean", 1),
    "halves": recomputed("halves", 4),
    "sliced": recomputed("sliced", 4),
    "tiles": tiles,
    "frames": frames,
    "target": target(1),
    "pool": target(3),
}


@pytest.mark.parametrize("option", some(OPTIONS, "lean").values(), ids=some(OPTIONS, "lean"))
def test_it_is_predicted(option: Callable[[bool], Trainer]) -> None:
    with_it = option(True)
    predicted, without = further_bytes(with_it), further_bytes(option(False))
    with_it.sampler.traits  # noqa: B018  # a run looks at the call first
    taken = peak_memory(with_it.train_step)  # the optimiser's state is made too
    assert predicted == pytest.approx(taken, rel=NEAR)
    assert without != pytest.approx(taken, rel=NEAR), "a forecast that leaves the option out would pass"
