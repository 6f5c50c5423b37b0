"""Where the chains of seeds start, as a pipeline's call takes it: come here for what `latents=` means in a family.

Some calls take the noise as they would draw it, others as their denoiser sees it, packed or scaled. The form is found
by trying both, in runs without networks, and one that does not give the seed's own chain is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draft_core.errors import DraftError, SamplerError
from draft_core.evaluation.evaluate import as_evaluated
from draft_core.frames import still
from draft_core.plan import StepPlan
from draft_core.sampling import pipelines
from draft_core.sampling.chain import DryRun
from draft_core.sampling.randomness import Draw, drawn_by
from draft_core.sampling.rollout import starting_from
from draft_core.sampling.sampler import DifferentiableSampler


@dataclass(frozen=True)
class Start:
    """Where the chains of B prompts and seeds start.

    Arguments:
        latents: (B, ...), as the pipeline's call takes them.
        states: of the B generators once these are drawn: what the call draws later is then as in the plain call.
    """

    latents: Tensor
    states: tuple[Tensor, ...]

    def generators(self) -> list[torch.Generator]:
        """New generators for one call that is given latents."""
        generators = [torch.Generator("cpu") for _ in self.states]
        for generator, state in zip(generators, self.states, strict=True):
            generator.set_state(state)
        return generators


def start_of(sampler: DifferentiableSampler, prompts: Sequence[str], seeds: Sequence[int]) -> Start:
    """Latents and generators with which a call gives the images that it would draw from these seeds.

    Arguments:
        sampler: one that makes one image of each prompt.
        prompts, seeds: B of each.

    Raises:
        SamplerError: if the pipeline's call takes no latents, or cannot be given those of a seed.
    """
    pipe = sampler.pipe
    if "latents" not in pipelines.call_inputs(pipe):
        raise SamplerError(
            "its call takes no latents, so that its noise cannot be given",
            where=type(pipe).__name__,
            next="search among seeds instead, with best_of_n (--best-of)",
        )
    blanks: dict[Any, Any] = {}
    real = sampler.traits.needs_networks

    def end_of(started: DifferentiableSampler, generators: list[torch.Generator]) -> list[Tensor]:
        """The latents before the first step, and the state of every generator after the last."""
        run = DryRun(started, prompts, blanks, noted={0}, real=real, generator=generators)
        run.run()
        assert run.starts[0] is not None
        return [run.starts[0].latents, *(generator.get_state() for generator in generators)]

    with pipelines.without_traces(pipe):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        seeded = tuple(generator.get_state() for generator in generators)
        with _first_draws(generators) as draws:
            wanted = end_of(sampler, generators)
        first = [draws[place] for place in sorted(draws)] if len(draws) == len(seeds) else []
        drawn = tuple(state for _, state in first) or seeded
        for latents in _forms(sampler, wanted[0], [noise for noise, _ in first]):
            for start in (Start(latents, drawn), Start(latents, seeded)):
                try:
                    found = end_of(starting_from(sampler, latents), start.generators())
                except Exception:  # a form that the call cannot take
                    break
                if all(map(torch.equal, found, wanted)):
                    return start
    raise SamplerError(
        "its call makes other images of the latents of a seed than of the seed",
        where=type(pipe).__name__,
        next="search among seeds instead, with best_of_n (--best-of)",
    )


def images_from(
    sampler: DifferentiableSampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    latents: Tensor,
    *,
    batch_size: int = 4,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] on the CPU of chains that start from given latents; of videos the middle frame.

    Arguments:
        prompts, seeds: B of each; a seed gives what a call draws beside its initial noise.
        latents: (B, ...), as `optimise_noise` returns them.
        batch_size: images made in one call of the pipeline.
        autocast: makes the precision context that each call runs in.
        progress: called with how many images are done, and of how many.

    Raises:
        DraftError: if the latents are of another shape than those that the pipeline draws.
        SamplerError: as `start_of`.
    """
    sampler = as_evaluated(sampler)
    plan = StepPlan(sampler.steps, frozenset())
    images = []
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        start = start_of(sampler, prompts[part], seeds[part])
        given = latents[part].to(start.latents)
        if given.shape != start.latents.shape:
            raise DraftError(
                f"they are {tuple(latents.shape)}, and {type(sampler.pipe).__name__} starts {len(prompts)} such images "
                f"from {(len(prompts), *start.latents.shape[1:])}",
                where="latents",
                next="give them to the model and the size of image that they were made with",
            )
        with torch.no_grad(), autocast():
            made = sampler(prompts[part], plan=plan, generator=start.generators(), latents=given).images
        images.append(still(made).float().cpu())
        progress(min(first + batch_size, len(prompts)), len(prompts))
    return torch.cat(images)


def _forms(sampler: DifferentiableSampler, first: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """What the call may take: the noise as it was drawn, or the latents of the first step before they are scaled."""
    unscaled = (first / getattr(sampler.pipe.scheduler, "init_noise_sigma", 1.0)).to(first)
    drawn = [torch.cat([noise.to(first) for noise in draws])] if draws else []
    if drawn and drawn[0].shape != first.shape:
        return [unscaled, *drawn]
    return [*drawn, unscaled]


@contextmanager
def _first_draws(generators: Sequence[torch.Generator]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """The first noise that each of the generators gives inside, and its state after that, by its place."""
    places = {id(generator): place for place, generator in enumerate(generators)}
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def noting(draw: Draw) -> Draw:
        def drawn(*sizes: Any, **how: Any) -> Tensor:
            noise = draw(*sizes, **how)
            generator = how.get("generator")
            place = places.get(id(generator))
            if generator is not None and place is not None and place not in found:
                found[place] = noise, generator.get_state()
            return noise

        return drawn

    with drawn_by(torch, "randn", noting):
        yield found
