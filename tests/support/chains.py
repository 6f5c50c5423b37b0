"""Chains of points in place of images, whose distributions are known: what learners that weigh steps are tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

from draft_core import DifferentiableSampler
from draft_core.learners.learner import Alone, Batch
from draft_core.rewards.objective import Scores


class Points:
    """A pipeline of points (B, D, 1, 1), which are its latents and its images alike."""

    def __init__(self, denoiser: torch.nn.Module, scheduler: Any, dimensions: int) -> None:
        self.unet, self.scheduler, self.dimensions = denoiser, scheduler, dimensions

    @property
    def components(self) -> dict[str, Any]:
        return {"unet": self.unet, "scheduler": self.scheduler}

    def prepare_latents(self, count: int, generator: Any) -> torch.Tensor:
        dtype = next(self.unet.parameters()).dtype
        return randn_tensor((count, self.dimensions, 1, 1), generator=generator, dtype=dtype)

    def __call__(
        self,
        prompt: Any = None,
        num_inference_steps: int = 2,
        eta: float = 0.0,
        generator: Any = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        latents = self.prepare_latents(1 if isinstance(prompt, str) else len(prompt), generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            step = self.scheduler.step(self.unet(latents, timestep), timestep, latents, eta=eta, generator=generator)
            latents = step.prev_sample
        return (latents,)


class Affine(torch.nn.Module):
    """A prediction a x + b, in float64."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        return self.a * sample + self.b


class Mixture(torch.nn.Module):
    """The exact eps of a mixture of Gaussians of one width in the plane, and a correction that is trained.

    Arguments:
        means: (M, 2).
        width: of every Gaussian.
        alphas: alpha^2 of the scheduler, by timestep.
    """

    def __init__(self, means: torch.Tensor, width: float, alphas: torch.Tensor) -> None:
        super().__init__()
        self.means, self.width, self.alphas, self.corrects = means, width, alphas, True
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [torch.nn.Linear(6, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU()]
            self.correction = torch.nn.Sequential(*layers, torch.nn.Linear(64, 2))
        torch.nn.init.zeros_(self.correction[-1].weight)
        torch.nn.init.zeros_(self.correction[-1].bias)

    def forward(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        x, alpha = sample.flatten(1), self.alphas[int(timestep)].sqrt()
        variance = alpha**2 * self.width**2 + 1 - alpha**2
        away = x[:, None] - alpha * self.means  # (B, M, 2)
        weights = torch.softmax(-away.square().sum(2) / (2 * variance), dim=1)
        eps = (1 - alpha**2).sqrt() * (weights[..., None] * away).sum(1) / variance
        if self.corrects:
            level = torch.stack([alpha, (1 - alpha**2).sqrt(), alpha**2, alpha * (1 - alpha**2).sqrt()])
            eps = eps + self.correction(torch.cat([x / 2, level.expand(len(x), 4)], dim=1))
        return eps.view_as(sample)

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """The mixture itself inside."""
        self.corrects = False
        try:
            yield
        finally:
            self.corrects = True


def ddim(**config: Any) -> diffusers.DDIMScheduler:
    """A DDIM scheduler whose last step leads to its lowest level above zero."""
    usual = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler(**{**usual, **config})


def points(
    denoiser: torch.nn.Module, dimensions: int, steps: int, *, scheduler: Any = None, **more: Any
) -> DifferentiableSampler:
    """A sampler of points by ancestral steps of DDIM, of which the last draws noise too."""
    pipe = Points(denoiser, scheduler or ddim(), dimensions)
    return DifferentiableSampler(pipe, num_inference_steps=steps, eta=1.0, **more)


def batch_of(count: int, update: int, prompt: str = "x") -> Batch:
    """As many points, whose noise depends on the update."""
    seeds = [1000 * update + index for index in range(count)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Batch([prompt] * count, generators, {}, update, Random(f"plan {update}"), Alone())


def scored(reward: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A score of points (B, D) as a learner is given one."""

    def score(images: torch.Tensor, prompts: Any, *, latents: torch.Tensor | None = None) -> Scores:
        total = reward(images.flatten(1))
        return Scores(total, {"reward": total})

    return score
