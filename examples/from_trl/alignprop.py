"""The AlignProp example of TRL 0.23 (`examples/scripts/alignprop.py`), part for part; its settings are in comments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from draft_core import (
    DifferentiableSampler,
    DirectLearner,
    DraftK,
    Objective,
    Trainer,
    TrainSettings,
    add_lora,
    load_pipeline,
)
from draft_core.rewards import from_reward_fn

ANIMALS = ["cat", "dog", "horse", "monkey", "rabbit", "bird", "sheep", "frog", "duck", "bee"]


def darkness(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[torch.Tensor, Any]:
    """A reward function as TRL calls it: one number for each image (N, 3, H, W) in [0, 1], and what it keeps beside."""
    return 10 * (1 - images.mean(dim=(1, 2, 3))), {}


def alignprop(
    pipe: Any,
    reward_fn: Callable[..., Any],
    prompts: list[str],  # prompt_function, whose draws are a shuffled list here
    *,
    updates: int,  # num_epochs
    steps: int = 50,  # sample_num_steps
    first: int = 49,  # truncated_backprop_timestep, with truncated_backprop_rand=False
    **call: Any,  # guidance_scale is sample_guidance_scale, eta is sample_eta
) -> Trainer:
    """What `AlignPropTrainer(config, reward_fn, prompt_fn, pipeline)` makes; iterate it in the place of `train()`."""
    add_lora(pipe, rank=4)  # r=4, lora_alpha=4, init_lora_weights="gaussian"
    sampler = DifferentiableSampler(pipe, num_inference_steps=steps, **call)
    settings = TrainSettings(
        steps=updates,
        batch_size=2,  # train_batch_size
        gradient_accumulation_steps=1,  # train_gradient_accumulation_steps
        learning_rate=1e-3,  # train_learning_rate
        betas=(0.9, 0.999),  # train_adam_beta1, train_adam_beta2
        weight_decay=1e-4,  # train_adam_weight_decay
        max_grad_norm=1.0,  # train_max_grad_norm
        mixed_precision="no",  # mixed_precision
        seed=0,  # seed
    )
    objective = Objective({"reward": from_reward_fn(reward_fn)})
    return Trainer(sampler, objective, DirectLearner(DraftK(k=steps - first)), prompts, settings, device="cpu")


def main() -> None:
    """Train the embedded model, and print what TRL logs as `reward_mean`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    arguments = parser.parse_args()
    pipe = load_pipeline("emoji")  # DefaultDDPOStableDiffusionPipeline, which takes DDIM as this model does
    trainer = alignprop(
        pipe, darkness, ANIMALS, updates=arguments.updates, steps=20, first=18, guidance_scale=5.0, eta=0.0
    )
    for report in trainer:
        print(report.update, round(report.reward, 4), flush=True)


if __name__ == "__main__":
    main()
