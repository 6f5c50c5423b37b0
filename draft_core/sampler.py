"""The differentiable sampler: a step plan, run through the pipeline's own call.

No family's loop is written again here. The pipeline's `__call__`, without its `torch.no_grad`, is the
sampler; three seams switch recording on for the planned steps. Tensors wing. May import: errors, plan,
protocols, seams.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch.utils.checkpoint import checkpoint

from draft_core import seams
from draft_core.errors import SamplerError
from draft_core.plan import StepPlan
from draft_core.protocols import Rollout

Generator = torch.Generator | list[torch.Generator] | None

# What a pipeline applies to finished images by way of numpy or PIL, which cuts the gradient.
IMAGE_FILTERS = ("safety_checker", "watermark")


class DifferentiableSampler:
    """Prompts to images, by any diffusers pipeline, with gradient where a plan asks for it.

    Samples are bit-identical to `pipe(prompts, num_inference_steps=..., generator=..., **call_kwargs)`.
    The gradient reaches whatever parameters of denoiser and decoder require it; prompt encoding is never
    recorded, and under `torch.no_grad` nothing is.

    Arguments:
        pipe: a diffusers pipeline with a scheduler and a denoiser (`unet` or `transformer`).
        num_inference_steps: as in the pipeline's call.
        gradient_checkpointing: recompute each graded denoiser call in the backward pass, so that a graded
            step stores its input only.
        call_kwargs: passed to every pipeline call (guidance_scale, height, negative_prompt, prompt_embeds, ...).

    Raises:
        SamplerError: if the pipeline cannot be driven, or a keyword is not one its call takes.
    """

    def __init__(
        self, pipe: Any, *, num_inference_steps: int, gradient_checkpointing: bool = False, **call_kwargs: Any
    ) -> None:
        _check_drivable(pipe)
        _check_keywords(pipe, call_kwargs)
        self.pipe = pipe
        self.num_inference_steps = num_inference_steps
        self.gradient_checkpointing = gradient_checkpointing
        self.call_kwargs = call_kwargs

    @property
    def steps(self) -> int:
        """T, the `scheduler.step` calls of one run: more than `num_inference_steps` for second-order schedulers."""
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        dynamic = {"mu": 1.0} if getattr(scheduler.config, "use_dynamic_shifting", False) else {}
        scheduler.set_timesteps(self.num_inference_steps, **dynamic)
        return len(scheduler.timesteps)

    def __call__(self, prompts: Sequence[str] | None = None, *, plan: StepPlan, generator: Generator = None) -> Rollout:
        """The images of one run of `plan`, graded as it says.

        Arguments:
            prompts: B prompts; None where `call_kwargs` carries prompt embeddings instead.
            plan: which steps are graded, of T = `self.steps`.
            generator: source of the initial noise, as in the pipeline's call, and after it of the re-noisings;
                None takes the one in `call_kwargs`, or torch's global state.

        Raises:
            SamplerError: if the plan's length is not the scheduler's, or the call gives no image tensor.
        """
        if isinstance(prompts, str) or prompts == []:
            raise SamplerError(f"prompts is {prompts!r}", where="prompts", next="give a list of one or more strings")
        rollout = _Rollout(self, prompts, plan, generator or self.call_kwargs.get("generator"))
        samples = rollout.sample()
        renoised = [_Renoising(rollout).sample() for _ in range(plan.resamples)]
        names = _prompt_of_each(prompts, len(samples))
        return Rollout(torch.cat([samples, *renoised]), names * (1 + plan.resamples), sample_count=len(samples))


class _Run:
    """One pass through the pipeline's call: what happens at each seam, and the index of the step under way."""

    def __init__(
        self, sampler: DifferentiableSampler, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator
    ) -> None:
        self.sampler = sampler
        self.prompts = prompts
        self.plan = plan
        self.generator = generator
        self.step = 0
        self.caller_records = torch.is_grad_enabled()

    def sample(self) -> torch.Tensor:
        """The images of the call, (N, 3, H, W), in [0, 1]."""
        pipe = self.sampler.pipe
        _, denoiser = seams.find_denoiser(pipe)
        with ExitStack() as stack:
            stack.enter_context(seams.grad_mode_restored())
            stack.enter_context(seams.quiet(pipe))
            stack.enter_context(seams.graph_released(pipe.scheduler))
            stack.enter_context(seams.replaced(pipe.scheduler, "step", self.on_step))
            stack.enter_context(seams.replaced(denoiser, "forward", self.on_denoise))
            for name, wrapper in (("encode_prompt", self.on_encode), ("prepare_latents", self.on_prepare)):
                if hasattr(pipe, name):
                    stack.enter_context(seams.replaced(pipe, name, wrapper))
            self.record_from_first_graded()
            output = self.call()
        self.check_images(output[0])
        images: torch.Tensor = output[0]
        return images

    def check_images(self, images: Any) -> None:
        name = type(self.sampler.pipe).__name__
        if not isinstance(images, torch.Tensor):
            raise SamplerError(f"its call returned {type(images).__name__}, not a tensor of images", where=name)
        _, denoiser = seams.find_denoiser(self.sampler.pipe)
        trains = any(parameter.requires_grad for parameter in denoiser.parameters())
        if self.caller_records and self.plan.graded and trains and not images.requires_grad:
            raise SamplerError(
                "its images carry no gradient, something between the denoiser and them cuts it",
                where=name,
                next="look for a no_grad or a detach in its decode",
            )

    def call(self) -> Any:
        prompt = {} if self.prompts is None else {"prompt": list(self.prompts)}
        fixed = {"generator": self.generator, "output_type": "pt", "return_dict": False}
        call = seams.differentiable_call(self.sampler.pipe)
        return call(
            self.sampler.pipe,
            **{**self.sampler.call_kwargs, **prompt, **fixed},
            num_inference_steps=self.sampler.num_inference_steps,
        )

    def record_from_first_graded(self) -> None:
        """Between two `scheduler.step` calls everything belongs to one step: here its recording is decided."""
        graded = self.caller_records and bool(self.plan.graded)
        torch.set_grad_enabled(graded and self.step >= min(self.plan.graded))

    def denoise_with_gradient(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.sampler.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    def on_step(self, step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def on_denoise(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def on_encode(self, encode_prompt: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def on_prepare(self, prepare_latents: Any, *args: Any, **kwargs: Any) -> Any:
        return prepare_latents(*args, **kwargs)


class _Rollout(_Run):
    """The whole chain, and what its re-noisings need to know of it."""

    encoded: list[Any]  # what encode_prompt returned, call by call
    blanks: dict[torch.Size, Any]  # shape of a denoiser input -> an output of zeros that takes no memory
    last_output: Any  # of scheduler.step
    last_timestep: Any
    x0: torch.Tensor  # latents after the last step, detached
    state_before_last: dict[str, Any] | None = None  # of the scheduler; None where the last step is the first

    def sample(self) -> torch.Tensor:
        self.encoded, self.blanks = [], {}
        images = super().sample()
        if self.step != self.plan.steps:
            raise SamplerError(
                f"it took {self.step} scheduler steps where the plan has {self.plan.steps}",
                where=type(self.sampler.pipe).__name__,
                next=f"make the plan for {self.step} steps",
            )
        return images

    def on_step(self, step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == 0:
            self.check_length()
        output = step(model_output, timestep, sample, *args, **kwargs)
        self.step += 1
        if self.step == self.plan.steps - 1:
            self.state_before_last = seams.scheduler_state(self.sampler.pipe.scheduler)
        if self.step == self.plan.steps:
            self.last_output, self.last_timestep = output, timestep
            self.x0 = seams.first_of(output, "prev_sample").detach()
        self.record_from_first_graded()
        return output

    def on_denoise(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step in self.plan.graded:
            output = self.denoise_with_gradient(forward, *args, **kwargs)
        else:
            with torch.no_grad():
                output = forward(*args, **kwargs)
        prediction = seams.first_of(output, "sample")
        blank = seams.with_first(output, "sample", prediction.detach().new_zeros(()).expand(prediction.shape))
        self.blanks[seams.denoiser_input(args, kwargs).shape] = blank
        return output

    def on_encode(self, encode_prompt: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            self.encoded.append(encode_prompt(*args, **kwargs))
        return self.encoded[-1]

    def check_length(self) -> None:
        scheduler = self.sampler.pipe.scheduler
        found = len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
        if found != self.plan.steps:
            raise SamplerError(
                f"the plan is for {self.plan.steps} steps, the scheduler takes {found}",
                where=type(scheduler).__name__,
                next="make the plan with `estimator.plan(sampler.steps, rng)`",
            )


class _Renoising(_Run):
    """The last step once more, from x0 re-noised (DRaFT-LV, Clark et al. 2024, algorithm 1).

    The pipeline's call runs again with all steps but the last one empty: the denoiser gives zeros, the
    latents stay as they are. The step before the last returns the re-noised latents and puts the
    scheduler into the state it had there in the rollout; a single-step run gets them from `prepare_latents`.
    """

    def __init__(self, rollout: _Rollout) -> None:
        self.noisy = _renoised(rollout)
        super().__init__(rollout.sampler, rollout.prompts, rollout.plan, _forked(rollout.generator))
        self.rollout = rollout
        self.encoded = iter(rollout.encoded)
        self.last = rollout.plan.steps - 1

    def on_step(self, step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == self.last:
            return step(model_output, timestep, sample, *args, **kwargs)
        self.step += 1
        if self.step == self.last:
            assert self.rollout.state_before_last is not None
            seams.restore_scheduler(self.sampler.pipe.scheduler, self.rollout.state_before_last)
            sample = self.noisy
        self.record_from_first_graded()
        return seams.with_first(self.rollout.last_output, "prev_sample", sample)

    def on_denoise(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == self.last:
            return self.denoise_with_gradient(forward, *args, **kwargs)
        return self.rollout.blanks[seams.denoiser_input(args, kwargs).shape]

    def on_encode(self, encode_prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return next(self.encoded)

    def on_prepare(self, prepare_latents: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_latents(*args, **kwargs)
        if self.last > 0:
            return prepared
        if isinstance(prepared, torch.Tensor):
            return self.noisy
        return (self.noisy, *prepared[1:])  # packed latents come with their position ids

    def record_from_first_graded(self) -> None:
        torch.set_grad_enabled(self.caller_records and self.step == self.last)


def _renoised(rollout: _Rollout) -> torch.Tensor:
    """x_1 = alpha_1 x0 + sigma_1 eps, like x0, at the noise level from which the last step started."""
    scheduler = rollout.sampler.pipe.scheduler
    x0 = rollout.x0
    noise = randn_tensor(x0.shape, generator=rollout.generator, device=x0.device, dtype=x0.dtype)
    timesteps = torch.as_tensor(rollout.last_timestep, device=x0.device).reshape(-1).expand(len(x0))
    if rollout.state_before_last is not None:  # sigma schedulers look their level up by the current index
        seams.restore_scheduler(scheduler, rollout.state_before_last)
    mix = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else None
    noisy: torch.Tensor = mix(x0, timesteps, noise) if mix else scheduler.add_noise(x0, noise, timesteps)
    return noisy


def _forked(generator: Generator) -> Generator:
    """A generator of its own for the replay, seeded from the run's, so that the run's advances by one draw."""
    if generator is None or isinstance(generator, list):
        return generator and [fork for one in generator if isinstance(fork := _forked(one), torch.Generator)]
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))


def _prompt_of_each(prompts: Sequence[str] | None, images: int) -> tuple[str, ...]:
    """The prompt of every image; pipelines keep the images of one prompt together."""
    prompts = prompts or [""]
    return tuple(prompt for prompt in prompts for _ in range(images // len(prompts)))


def _check_drivable(pipe: Any) -> None:
    name = type(pipe).__name__
    if not isinstance(pipe, DiffusionPipeline):  # modular pipelines, trees of blocks, are a kind of their own
        raise SamplerError(
            f"{name} is not a DiffusionPipeline", where="pipeline", next="use a classic diffusers pipeline"
        )
    if not hasattr(getattr(pipe, "scheduler", None), "step"):
        raise SamplerError(f"{name} has no scheduler", where="pipeline", next="use a pipeline that samples in steps")
    seams.find_denoiser(pipe)
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            raise SamplerError(
                f"the {attribute} of {name} goes through numpy and would cut the gradient",
                where="pipeline",
                next=f"set `pipe.{attribute} = None`",
            )


def _check_keywords(pipe: Any, call_kwargs: dict[str, Any]) -> None:
    name = type(pipe).__name__
    parameters = inspect.signature(seams.differentiable_call(pipe)).parameters
    for keyword in call_kwargs:
        if keyword in ("prompt", "output_type", "return_dict"):
            raise SamplerError(f"{keyword!r} is set by the sampler itself", where=f"{name} call", next="leave it out")
        # A `**kwargs` in the signature counts for nothing: pipelines keep it for deprecated names and ignore the rest.
        if keyword not in parameters:
            near = difflib.get_close_matches(keyword, parameters, n=1)
            raise SamplerError(
                f"its call takes no {keyword!r}",
                where=name,
                next=f"did you mean {near[0]!r}?" if near else "see the pipeline's documentation",
            )
