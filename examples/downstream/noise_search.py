"""Search the initial noise for an image that two rewards like; the model stays as it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from draft_core import DifferentiableSampler, Draft, Objective, load_pipeline, load_reward
from draft_core.rewards.images import to_pil


@dataclass(frozen=True)
class Found:
    """One step of the search: the image (3, H, W) and its scores."""

    image: torch.Tensor
    scores: dict[str, float]


def noise_search(
    pipe: Any, objective: Objective, prompt: str, *, steps: int, rate: float, **call: Any
) -> Iterator[Found]:
    """Gradient ascent on the initial noise, kept at the length that noise has.

    Arguments:
        rate: length of a step, relative to the noise.
        call: `num_inference_steps` and other arguments of the pipeline's call.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)
    size = pipe.unet.config.sample_size
    noise = torch.randn(1, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    length = noise.norm()
    for _ in range(steps):
        noise = noise.detach().requires_grad_()
        sampler = DifferentiableSampler(pipe, latents=noise, **call)
        rollout = sampler([prompt], plan=Draft().plan(sampler.steps, Random(0)))
        scores = objective(rollout.images, rollout.prompts)
        yield Found(
            rollout.images[0].detach(), {name: float(score.detach()) for name, score in scores.per_reward.items()}
        )
        (gradient,) = torch.autograd.grad(scores.total.sum(), noise)
        stepped = noise + rate * length * gradient / gradient.norm().clamp_min(1e-12)
        noise = stepped * (length / stepped.norm())


def main() -> None:
    """Search from the command line, on the embedded model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("found.png"))
    arguments = parser.parse_args()
    rewards = {"jpeg": load_reward("jpeg", quality=80), "warm": load_reward("template", strength=2.0)}
    search = noise_search(
        load_pipeline("emoji"),
        Objective(rewards),
        arguments.prompt,
        steps=arguments.steps,
        rate=arguments.rate,
        num_inference_steps=20,
        guidance_scale=4.0,
    )
    for step, found in enumerate(search):
        print(step, {name: round(score, 3) for name, score in found.scores.items()}, flush=True)
        to_pil(found.image).save(arguments.output)


if __name__ == "__main__":
    main()
