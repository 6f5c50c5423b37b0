"""What a pipeline's call does beside one plain chain, and which plans that rules out; read before the first update.

A call is watched while it runs without its networks (`chain.DryRun`), and again in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.errors import SamplerError, one_line
from draft_core.plan import Renoising, StepPlan
from draft_core.sampling import seams
from draft_core.sampling.noise_levels import check_told, gaussian_of

WHOLE = "use a method that runs the whole chain, without early stops and re-noising"


@dataclass
class CallTraits:
    """What one call of a pipeline was seen to do.

    Arguments:
        steps: calls of its scheduler's step.
        two_streams: it copied its scheduler, for a second chain.
        chains: how often it went through its schedule; 1 is the common case.
        told: arguments of its steps under which the noise level is not known.
        caches: its denoiser keeps something from one step for the next: keys and values, or whole outputs.
        frames: of each video that it makes; None where it makes images.
        needs_networks: it takes more from its networks than their outputs, so that none can be left out.
    """

    steps: int = 0
    two_streams: bool = False
    chains: int = 1
    told: tuple[str, ...] = ()
    caches: bool = False
    frames: int | None = None
    needs_networks: bool = False

    def saw_step(self, call: seams.StepCall) -> None:
        """Notes a step of the scheduler."""
        self.steps += 1
        self.told = self.told or call.told

    def saw_schedule(self) -> None:
        """Notes that the schedule was set: anew, if steps were taken already."""
        self.chains += self.steps > 0

    def saw_network(self, network: Any, arguments: Mapping[str, Any]) -> None:
        """Notes a call of a denoiser."""
        handed = any("cache" in name and bool(seams.remembered(value)) for name, value in arguments.items())
        self.caches = self.caches or handed or bool(getattr(network, "is_cache_enabled", False))

    def check_plan(self, pipe: Any, plan: StepPlan, renoising: Renoising, *, recomputes: bool) -> None:
        """Refuses what would train on wrong numbers.

        Raises:
            SamplerError: naming the pipeline, what its call does, and what to use instead.
        """
        if plan.stop_at is not None:
            self._check_one_chain(pipe)
            check_told(pipe.scheduler, self.told)
        if renoising.copies or plan.prefix is not None:
            self.check_replay(pipe)
            check_told(pipe.scheduler, self.told)
        if not self.caches:
            return
        if plan.grad_steps and 0 not in plan.grad_steps:
            raise _refusal(
                pipe,
                "its denoiser keeps keys and values, or outputs, of its first step for the later ones, whose gradient "
                "would lack that part",
                "record the first step too (method draft), or switch the cache off (use_kv_cache: false, where the "
                "call takes it)",
            )
        if plan.grad_steps and recomputes:
            raise _refusal(
                pipe,
                "its denoiser keeps keys and values, or outputs, from step to step, which cannot be computed again",
                "switch gradient_checkpointing off",
            )

    def check_replay(self, pipe: Any) -> None:
        """Refuses calls that cannot be repeated from the middle.

        Raises:
            SamplerError: naming the pipeline, what its call does, and what to use instead.
        """
        if self.two_streams:
            raise _refusal(
                pipe,
                "it copies its scheduler for a second chain, which cannot be replayed from its last step",
                "use a method without re-noising",
            )
        self._check_one_chain(pipe)
        if self.caches:
            raise _refusal(
                pipe,
                "its denoiser keeps keys and values, or outputs, from step to step, which a replay would lack",
                "use a method without re-noising",
            )

    def _check_one_chain(self, pipe: Any) -> None:
        if self.chains > 1:
            raise _refusal(pipe, f"its call runs {self.chains} chains one after another", WHOLE)
        if self.needs_networks:
            raise _refusal(
                pipe, "its call looks into its denoiser at every step, so that no step can be left out", WHOLE
            )


def has_density(scheduler: Any, call: seams.StepCall, noise: float) -> bool:
    """Whether a step draws noise, its own or `noise`: the latents after it then have a density given those before it.

    Raises:
        SamplerError: if its noise cannot be replaced, or the step builds on earlier predictions.
    """
    gaussian = gaussian_of(scheduler, call, noise)
    if not bool((gaussian.std > 0).all()):
        return False
    before = seams.scheduler_state(scheduler)
    seams.restore_scheduler(scheduler, seams.altered(before, call.sample.shape))
    other = gaussian_of(scheduler, call, noise)
    seams.restore_scheduler(scheduler, before)
    if not torch.equal(gaussian.mean, other.mean):
        raise SamplerError(
            f"a step of {type(scheduler).__name__} builds on earlier predictions, so that it has no distribution given "
            "its latents alone",
            where="scheduler",
            next="use a stochastic scheduler without memory (DDIM with eta, DDPM, Euler ancestral), or solver_order 1",
        )
    return True


def step_size(scheduler: Any, call: seams.StepCall) -> float:
    """h of a step that adds h times the prediction to the latents and does nothing else, as Euler's of a flow do.

    Raises:
        SamplerError: naming a scheduler whose step does anything else.
    """
    before, shape = seams.scheduler_state(scheduler), call.sample.shape
    source = torch.Generator().manual_seed(0)
    latents, prediction = (torch.randn(shape, generator=source).to(call.sample.device) for _ in range(2))

    def after(latents: torch.Tensor, prediction: torch.Tensor, state: seams.State) -> torch.Tensor:
        seams.restore_scheduler(scheduler, state)
        output: torch.Tensor = seams.first_of(call.run(sample=latents, model_output=prediction), "prev_sample")
        return output

    size = float(after(torch.zeros_like(latents), torch.ones_like(latents), before).flatten()[0])
    states = (before, seams.altered(before, shape))  # a step that builds on earlier predictions gives two answers
    found = [after(latents, prediction, state) for state in states]
    seams.restore_scheduler(scheduler, before)
    expected = latents + size * prediction
    if not size or not all(torch.allclose(other, expected, rtol=1e-3, atol=1e-4) for other in found):
        raise SamplerError(
            f"a step of {type(scheduler).__name__} does more than add a multiple of the prediction to the latents, so "
            "that its share in x0 is not known",
            where="scheduler",
            next="use a flow-matching model with Euler steps, or a method without weights of this kind",
        )
    return size


@contextmanager
def batchable(pipe: Any) -> Iterator[None]:
    """What a call of another batch than the run's may raise, as one sentence; memory that runs out stays as it is."""
    try:
        yield
    except (SamplerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SamplerError(
            f"several copies cannot be made in one batch: its call raised {type(error).__name__} ({one_line(error)})",
            where=type(pipe).__name__,
            next="leave out `batched`, and copies are made one after another",
        ) from error


def _refusal(pipe: Any, what: str, advice: str) -> SamplerError:
    return SamplerError(what, where=type(pipe).__name__, next=advice)


def check_recorded(latents: Any, plan: StepPlan) -> None:
    """That a plan records the whole way back to latents that require a gradient.

    Raises:
        SamplerError: naming the step from which it records.
    """
    requires = isinstance(latents, torch.Tensor) and latents.requires_grad and torch.is_grad_enabled()
    if not requires or 0 in plan.grad_steps:
        return
    begins = f"records from step {min(plan.grad_steps)} on" if plan.grad_steps else "records nothing"
    raise SamplerError(
        f"they require a gradient, which needs step 0 recorded, and the plan {begins}",
        where="latents",
        next=f"use StepPlan({plan.steps}, grad_steps=range({plan.steps})), or give latents.detach()",
    )
