"""Gradient ascent on the noise that a chain starts from, through the whole sampler; the weights stay as they are.

Come here for one iteration, and for what keeps the noise plausible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draft_core.errors import DraftError, RewardError, list_of_prompts, require_finite, require_from_one
from draft_core.evaluation.evaluate import as_evaluated, require_finite_images
from draft_core.frames import still
from draft_core.plan import StepPlan
from draft_core.rewards.objective import Objective, Scores
from draft_core.sampling.pipelines import networks
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.search.arguments import require_rewards
from draft_core.search.starts import Start, start_of

MOMENTUM = 0.9  # ReNO's, with Nesterov's form of it


@dataclass(frozen=True)
class Ascent:
    """How the noise of an image climbs; the defaults are ReNO's (Eyring et al. 2024, arXiv 2406.04312).

    Arguments:
        iterations: gradient steps I, 1 or more; the chain is run once more, to score the last one.
        learning_rate: of gradient ascent with Nesterov momentum 0.9; above 0.
        max_grad_norm: the gradient of an image is shortened to this norm where it is longer; above 0.
        norm_weight: factor of `norm_log_likelihood` beside the score; 0 or more.

    Raises:
        DraftError: if a number is out of its range.
    """

    iterations: int = 50
    learning_rate: float = 5.0
    max_grad_norm: float = 0.1
    norm_weight: float = 0.01

    def __post_init__(self) -> None:
        require_from_one(self.iterations, where="Ascent.iterations")
        for name in ("learning_rate", "max_grad_norm", "norm_weight"):
            require_finite(getattr(self, name), where=f"Ascent.{name}")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise DraftError(f"it is {getattr(self, name)}", where=f"Ascent.{name}", next="give a number above 0")
        if self.norm_weight < 0:
            raise DraftError(f"it is {self.norm_weight}", where="Ascent.norm_weight", next="give 0 or more")


RENO = Ascent()


@dataclass(frozen=True)
class OptimisedNoise:
    """The best iterate of each of P prompts and S seeds, and the way there.

    Arguments:
        prompts: P prompts.
        seeds: S seeds.
        images: of the best iterates, (P, S, 3, H, W) in [0, 1] on the CPU; of a video its middle frame.
        before: the images of the seeds, alike.
        latents: the best iterates, (P, S, ...) on the CPU, as the pipeline's call takes them.
        totals: weighted sum of the rewards after 0 to I steps, (P, S, I + 1).
        scores: reward name -> its scores before its weight, (P, S, I + 1).
        norms: norm of the latents over the root of their number, about 1 for noise, (P, S, I + 1).
        skipped: how many iterates had a gradient of zero, or one that is not finite, and were left by momentum alone,
            (P, S); I for an image whose score is flat, such as one above its cap.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor
    before: Tensor
    latents: Tensor
    totals: Tensor
    scores: Mapping[str, Tensor]
    norms: Tensor
    skipped: Tensor

    @property
    def best_iteration(self) -> Tensor:
        """After how many steps the best iterate was reached, (P, S)."""
        return self.totals.nan_to_num(nan=-math.inf, neginf=-math.inf).argmax(-1)

    @property
    def best(self) -> dict[str, Tensor]:
        """Reward name -> scores of the best iterates, (P, S)."""
        place = self.best_iteration[..., None]
        return {name: scores.gather(-1, place)[..., 0] for name, scores in self.scores.items()}


def optimise_noise(
    sampler: DifferentiableSampler,
    rewards: Objective,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    ascent: Ascent = RENO,
    batch_size: int = 1,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OptimisedNoise:
    """Climbs the weighted sum of the rewards in the initial noise of each image, and keeps the best iterate.

    Reward-based noise optimisation (ReNO, Eyring et al. 2024, arXiv 2406.04312), for any number of steps as in DOODL
    (Wallace et al. 2023, arXiv 2303.13703): what an iteration maximises is the score plus `norm_weight` times
    `norm_log_likelihood`. Noise that the steps draw themselves stays that of the seed. The first iterate is the image
    that `sample` draws. Images do not depend on which others are in their batch, but for the last bits.

    Arguments:
        sampler: its `gradient_checkpointing` and `decode` say how memory is saved.
        rewards: each of a weight other than 0 gives a gradient.
        prompts: P prompts, at least one.
        seeds: S seeds, at least one.
        ascent: steps, step size and what keeps the noise plausible.
        batch_size: images whose chains are recorded at once, 1 or more.
        autocast: makes the precision context that each call runs in.
        progress: called with how many iterations of images are done, and of how many.

    Raises:
        DraftError: if there is no reward, prompt or seed, or a number is out of its range.
        RewardError: if a reward breaks its contract or gives no gradient, or gives none of the first images one other
            than zero.
        SamplerError: if the pipeline's call takes no latents, or gives them no gradient.
    """
    prompts = list_of_prompts(prompts, where="optimise_noise")
    require_rewards(rewards, where="optimise_noise")
    require_from_one(batch_size, where="optimise_noise: batch_size")
    if not seeds:
        raise DraftError("there are no seeds", where="optimise_noise", next="give at least one")
    sampler = as_evaluated(sampler)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    total, climbs = len(pairs) * (ascent.iterations + 1), list[_Climb]()
    with _frozen(networks(sampler.pipe).values()):
        for first in range(0, len(pairs), batch_size):
            names, numbers = zip(*pairs[first : first + batch_size], strict=True)
            climb = _Climb(sampler, rewards, list(names), start_of(sampler, names, numbers), ascent, autocast)
            for iteration in range(ascent.iterations + 1):
                climb.iterate(last=iteration == ascent.iterations)
                if not climbs and iteration == 0:
                    climb.require_way_up()
                progress(first * (ascent.iterations + 1) + (iteration + 1) * len(names), total)
            climbs.append(climb)

    def joined(parts: Iterable[Tensor]) -> Tensor:
        flat = torch.cat(list(parts))
        return flat.view(len(prompts), len(seeds), *flat.shape[1:])

    return OptimisedNoise(
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        images=joined(climb.images for climb in climbs),
        before=joined(climb.before for climb in climbs),
        latents=joined(climb.latents for climb in climbs),
        totals=joined(torch.stack(climb.totals, 1) for climb in climbs),
        scores={name: joined(torch.stack(climb.scores[name], 1) for climb in climbs) for name in climbs[0].scores},
        norms=joined(torch.stack(climb.norms, 1) for climb in climbs),
        skipped=joined(climb.skipped for climb in climbs),
    )


def norm_log_likelihood(latents: Tensor) -> Tensor:
    """log p(r), (B,), of the norms r of latents (B, ...) if they were standard normal noise of d numbers each.

    The norm of such noise has a chi distribution: log p(r) = (d - 1) log r - r^2 / 2 - (d / 2 - 1) log 2 - log Gamma(d
    / 2), largest at r = sqrt(d - 1). It keeps the noise in the shell that the denoiser was trained on (Samuel et al.
    2023, arXiv 2306.08687; ReNO).
    """
    flat = latents.flatten(1)
    size = flat.shape[1]
    norms = torch.linalg.vector_norm(flat, dim=1)
    constant = (size / 2 - 1) * math.log(2) + math.lgamma(size / 2)
    likelihood: Tensor = (size - 1) * norms.log() - norms.square() / 2 - constant
    return likelihood


class _Climb:
    """The ascent of one batch; tensors it has collected are on the CPU.

    Attributes:
        images, latents: of the best iterates so far, (B, ...).
        before: images of the first, (B, 3, H, W).
        totals, norms: one (B,) for each iterate.
        scores: reward name -> the same.
        skipped: how many iterates had a gradient of zero, or one that is not finite, (B,).
    """

    def __init__(
        self,
        sampler: DifferentiableSampler,
        rewards: Objective,
        prompts: list[str],
        start: Start,
        ascent: Ascent,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.sampler = sampler
        self.rewards = rewards
        self.prompts = prompts
        self.start = start
        self.ascent = ascent
        self.autocast = autocast
        precise = torch.promote_types(start.latents.dtype, torch.float32)
        self.point = start.latents.to(precise, copy=True).requires_grad_()
        self.optimiser = torch.optim.SGD([self.point], ascent.learning_rate, momentum=MOMENTUM, nesterov=True)
        self.images = self.before = self.latents = torch.empty(0)
        self.best = torch.full((len(prompts),), -math.inf)
        self.totals: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.scores: dict[str, list[Tensor]] = {name: [] for name in rewards.rewards}
        self.skipped = torch.zeros(len(prompts), dtype=torch.long)

    def iterate(self, *, last: bool) -> None:
        """Runs the chain from the present noise, keeps what is best, and unless it is the last takes a step."""
        steps = range(0 if last else self.sampler.steps)
        with torch.set_grad_enabled(not last):
            with self.autocast():
                given = self.point.to(self.start.latents.dtype)
                images = self.sampler(
                    self.prompts,
                    plan=StepPlan(self.sampler.steps, frozenset(steps)),
                    generator=self.start.generators(),
                    latents=given,
                ).images
                if not self.totals:
                    require_finite_images(images, self.sampler.pipe)
                scores: Scores = self.rewards(images, self.prompts)
            self._keep(images.detach(), scores, given.detach())
            if not last:
                self._require_gradient(scores)
                (gradient,) = torch.autograd.grad(scores.total.sum(), self.point)
        if not last:
            self._step(gradient)

    def _keep(self, images: Tensor, scores: Scores, latents: Tensor) -> None:
        total, images, latents = scores.total.detach().cpu(), still(images).float().cpu(), latents.cpu()
        if not self.totals:
            self.images, self.before, self.latents = images.clone(), images, latents.clone()
        better = total > self.best
        self.best = torch.where(better, total, self.best)
        self.images[better], self.latents[better] = images[better], latents[better]
        self.totals.append(total)
        self.norms.append(self.point.detach().flatten(1).norm(dim=1).cpu() / math.sqrt(self.point[0].numel()))
        for name, values in scores.per_reward.items():
            self.scores[name].append(values.detach().cpu())

    def _require_gradient(self, scores: Scores) -> None:
        for name, values in scores.per_reward.items():
            if self.rewards.weights[name] and not values.requires_grad:
                raise RewardError(
                    "its scores carry no gradient, so the noise cannot climb them",
                    where=f"reward {name!r}",
                    next="search among seeds instead, with best_of_n (--best-of)",
                )

    def require_way_up(self) -> None:
        """That the first iterate of one of the images had a gradient to go up.

        Raises:
            RewardError: if none had.
        """
        if bool(self.skipped.all()):
            raise RewardError(
                "its gradient in the noise is zero or not finite, so there is no way up",
                where="optimise_noise",
                next="use bfloat16 or float32 in the place of float16, raise a cap that is reached, or search among "
                "seeds instead, with best_of_n (--best-of)",
            )

    def _step(self, gradient: Tensor) -> None:
        lengths = gradient.flatten(1).norm(dim=1)
        usable = lengths.isfinite() & (lengths > 0)
        self.skipped += ~usable.cpu()
        with torch.enable_grad():
            likelihood = norm_log_likelihood(self.point).sum()
        gradient = gradient + self.ascent.norm_weight * torch.autograd.grad(likelihood, self.point)[0]
        shape = [-1, *[1] * (gradient.ndim - 1)]
        scale = (self.ascent.max_grad_norm / gradient.flatten(1).norm(dim=1)).clamp(max=1.0).view(shape)
        self.point.grad = torch.where(usable.view(shape), -scale * gradient, 0.0)
        self.optimiser.step()


@contextmanager
def _frozen(parts: Iterable[torch.nn.Module]) -> Iterator[None]:
    """No weight of the networks requires a gradient inside."""
    trained = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
