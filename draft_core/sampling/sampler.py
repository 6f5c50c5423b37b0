"""The differentiable sampler: a step plan, run through the pipeline's own call.

No family's loop is written again here. The pipeline's `__call__`, without its `torch.no_grad`, is the
sampler; its seams switch recording on for the planned steps.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch

from draft_core.errors import SamplerError
from draft_core.plan import Renoising, StepPlan
from draft_core.sampling import pipelines, seams
from draft_core.sampling.chain import Chain, LastStep, ShortChain, count_steps, lengths
from draft_core.sampling.pipeline_call import Checkpointing, Decode, Generator, has_blocks
from draft_core.sampling.replay import Renoised, renoised_start
from draft_core.sampling.rollout import Rollout

# What a pipeline applies to finished images by way of numpy or PIL, which cuts the gradient.
IMAGE_FILTERS = ("safety_checker", "watermark")

# Arguments by which a call's schedule is given whole, so that it cannot be made shorter.
SCHEDULES = ("timesteps", "sigmas")


NO_RENOISING = Renoising()


class DifferentiableSampler:
    """Prompts to images, by any diffusers pipeline, with gradient where a plan asks for it.

    Samples are bit-identical to `pipe(prompts, num_inference_steps=..., generator=..., **call_kwargs)`, unless
    `decode` is "sliced". The gradient reaches whatever parameters of denoiser and decoder require it; text encoders
    are never recorded, and under `torch.no_grad` nothing is.

    Arguments:
        pipe: a diffusers pipeline, classic or modular, with a scheduler and a denoiser (`unet` or `transformer`).
        num_inference_steps: as in the pipeline's call.
        gradient_checkpointing: recompute each recorded denoiser call in the backward pass, so that a grad step stores
            its input only; "blocks" one block of the denoiser after another, so that no more than one is ever stored
            whole; "selective" only what costs next to nothing, `activations.kept_small`.
        decode: "whole" stores all that the decoder's backward pass needs, for all images; "selective" recomputes of it
            what costs next to nothing, "blocks" one block after another, and "checkpointed" all of it at once; "sliced"
            decodes and recomputes one image at a time, and the last bit may differ.
        base_model: makes a context inside which the denoiser is the untuned one; with it each rollout carries its
            `divergence` from that.
        call_kwargs: passed to every pipeline call (guidance_scale, height, negative_prompt, prompt_embeds, image, ...).

    Raises:
        SamplerError: if the pipeline cannot be driven, or a keyword is not one its call takes.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        num_inference_steps: int,
        gradient_checkpointing: Checkpointing = False,
        decode: Decode = "whole",
        base_model: Callable[[], AbstractContextManager[Any]] | None = None,
        **call_kwargs: Any,
    ) -> None:
        _check_drivable(pipe)
        _check_keywords(pipe, call_kwargs)
        _check_blocks(pipe, denoisers=gradient_checkpointing == "blocks", decoder=decode == "blocks")
        self.pipe = pipe
        self.num_inference_steps = num_inference_steps
        self.gradient_checkpointing = gradient_checkpointing
        self.decode = decode
        self.base_model = base_model
        self.call_kwargs = call_kwargs

    @cached_property
    def steps(self) -> int:
        """T, the `scheduler.step` calls of one run, counted in one that calls the real denoiser only once.

        More than `num_inference_steps` for second-order schedulers, and fewer where the call starts from an image.
        """
        errors: list[Exception] = []
        traces = seams.state_restored(self.pipe, self.pipe.scheduler, *pipelines.guiders(self.pipe).values())
        with torch.no_grad(), torch.random.fork_rng(devices=[]), traces:
            for batch in [1, *lengths(self.call_kwargs)]:  # an `image` of two items, say, may need two prompts
                try:
                    return count_steps(self, batch)
                except Exception as error:
                    errors.append(error)
        raise errors[0]

    def __call__(
        self,
        prompts: Sequence[str] | None = None,
        *,
        plan: StepPlan,
        renoising: Renoising = NO_RENOISING,
        generator: Generator = None,
    ) -> Rollout:
        """The images of one run of `plan`, recorded as it says, the re-noised ones behind the samples.

        Arguments:
            prompts: B prompts; None where `call_kwargs` carries prompt embeddings instead.
            plan: which steps are recorded, of T = `self.steps`.
            renoising: how many re-noised copies follow the samples; steps and drift in it are for the trainer.
            generator: source of the initial noise, as in the pipeline's call, and after it of the re-noisings;
                None takes the one in `call_kwargs`, or torch's global state.

        Raises:
            SamplerError: if the plan's length is not the scheduler's, or the call gives no image tensor.
        """
        passes = list(self.passes(prompts, plan=plan, renoising=renoising, generator=generator))
        divergences = [one.divergence for one in passes if one.divergence is not None]
        return Rollout(
            images=torch.cat([one.images for one in passes]),
            prompts=tuple(prompt for one in passes for prompt in one.prompts),
            sample_count=passes[0].sample_count,
            divergence=torch.stack(divergences).mean() if divergences else None,
        )

    def passes(
        self,
        prompts: Sequence[str] | None = None,
        *,
        plan: StepPlan,
        renoising: Renoising = NO_RENOISING,
        generator: Generator = None,
    ) -> Iterator[Rollout]:
        """The samples, unless the plan's prefix is short, then their re-noised copies, each when it is asked for, so
        that one can be backpropagated before the next is made; arguments and errors as in `__call__`.
        """
        if isinstance(prompts, str) or prompts == []:
            raise SamplerError(f"prompts is {prompts!r}", where="prompts", next="give a list of one or more strings")
        if plan.steps != self.steps:
            raise SamplerError(
                f"the plan is for {plan.steps} steps, {type(self.pipe).__name__} takes {self.steps}",
                where="plan",
                next="make the plan with `method.plan(sampler.steps, rng)`",
            )
        generator = generator or self.call_kwargs.get("generator")
        _check_renoising(plan, renoising)
        if plan.prefix is None:
            chain = Chain(self, prompts, plan, generator)
            samples = chain.sample()
            names = _prompt_of_each(prompts, len(samples))
            yield Rollout(samples, names, sample_count=len(samples), divergence=chain.mean_divergence())
            if not renoising.copies:
                return
            if chain.two_streams:
                raise _no_replay(self.pipe)
            start = chain.last_step
        else:
            start = self._short_start(prompts, plan, generator)
        yield from self._renoisings(start, renoising)

    def _short_start(self, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> LastStep:
        if given := [name for name in SCHEDULES if self.call_kwargs.get(name) is not None]:
            raise SamplerError(
                f"the call is given its {given[0]}, so its prefix cannot have a schedule of its own",
                where=type(self.pipe).__name__,
                next="leave them out, or use a method that runs the whole chain",
            )
        return ShortChain(self, prompts, plan, generator).last_step()

    def _renoisings(self, start: LastStep, renoising: Renoising) -> Iterator[Rollout]:
        noisy = [renoised_start(self, start) for _ in range(renoising.copies)]
        for batch in [torch.cat(noisy)] if renoising.batched and noisy else noisy:
            replay = Renoised(self, start, batch)
            images = replay.sample()
            names = _prompt_of_each(start.prompts, len(images) // replay.copies) * replay.copies
            yield Rollout(images, names, sample_count=0, divergence=replay.mean_divergence())


def _check_renoising(plan: StepPlan, renoising: Renoising) -> None:
    if plan.stop_at is not None and renoising.copies:
        raise SamplerError(
            "a chain that is left early has no last step to re-noise to",
            where="StepPlan.stop_at",
            next="use either stop_at or re-noised copies",
        )
    if plan.prefix is not None and (not renoising.copies or renoising.max_drift is not None):
        problem = "makes no samples to drift from" if renoising.copies else "gives no images without re-noised copies"
        raise SamplerError(
            f"a shortened prefix {problem}", where="StepPlan.prefix", next="use Renoising(copies=1), without max_drift"
        )


def _no_replay(pipe: Any) -> SamplerError:
    return SamplerError(
        "it copies its scheduler for a second chain, which cannot be replayed from its last step",
        where=type(pipe).__name__,
        next="use a method without re-noising",
    )


def _prompt_of_each(prompts: Sequence[str] | None, images: int) -> tuple[str, ...]:
    """The prompt of every image; pipelines keep the images of one prompt together."""
    prompts = prompts or [""]
    return tuple(prompt for prompt in prompts for _ in range(images // len(prompts)))


def _check_drivable(pipe: Any) -> None:
    name = type(pipe).__name__
    if not (callable(pipe) and hasattr(pipe, "components")):
        raise SamplerError(f"{name} is no diffusers pipeline", where="pipeline", next="give a pipeline, loaded")
    scheduler: Any = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step"):
        raise SamplerError(f"{name} has no scheduler", where="pipeline", next="use a pipeline that samples in steps")
    if missing := [key for key in seams.STEP_ARGUMENTS if key not in inspect.signature(scheduler.step).parameters]:
        raise SamplerError(
            f"the step of its {type(scheduler).__name__} takes no {' and no '.join(missing)}",
            where=name,
            next="use another scheduler",
        )
    pipelines.find_denoiser(pipe)
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            raise SamplerError(
                f"the {attribute} of {name} goes through numpy and would cut the gradient",
                where="pipeline",
                next=f"set `pipe.{attribute} = None`",
            )


def _check_blocks(pipe: Any, *, denoisers: bool, decoder: bool) -> None:
    """That diffusers can checkpoint what is to be recomputed block by block."""
    networks = list(pipelines.find_denoisers(pipe).values()) if denoisers else []
    for network in [*networks, *([getattr(pipe, "vae", None)] if decoder else [])]:
        if not has_blocks(network):
            raise SamplerError(
                f"{type(network).__name__} cannot be recomputed block by block",
                where=type(pipe).__name__,
                next="use another way to save memory",
            )


def _check_keywords(pipe: Any, call_kwargs: dict[str, Any]) -> None:
    name = type(pipe).__name__
    inputs = pipelines.call_inputs(pipe)
    for keyword in call_kwargs:
        if keyword in ("prompt", "output_type", "return_dict"):
            raise SamplerError(f"{keyword!r} is set by the sampler itself", where=f"{name} call", next="leave it out")
        if keyword not in inputs:
            near = difflib.get_close_matches(keyword, inputs, n=1)
            raise SamplerError(
                f"its call takes no {keyword!r}",
                where=name,
                next=f"did you mean {near[0]!r}?" if near else "see the pipeline's documentation",
            )
