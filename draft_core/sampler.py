"""The differentiable sampler: a step plan, run through the pipeline's own call.

No family's loop is written again here. The pipeline's `__call__`, without its `torch.no_grad`, is the
sampler; its seams switch recording on for the planned steps. Tensors wing. May import: errors, plan,
protocols, schedules, seams.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property, partial
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.utils.checkpoint import checkpoint

from draft_core import seams
from draft_core.errors import SamplerError
from draft_core.plan import StepPlan
from draft_core.protocols import Rollout
from draft_core.schedules import posterior_mean, renoised

Generator = torch.Generator | list[torch.Generator] | None
Decode = Literal["whole", "checkpointed", "sliced"]

# What a pipeline applies to finished images by way of numpy or PIL, which cuts the gradient.
IMAGE_FILTERS = ("safety_checker", "watermark")

PROBE_PROMPT = "a photograph"
NEGATIVE = "negative_prompt"  # with a number behind it for a second encoder


class DifferentiableSampler:
    """Prompts to images, by any diffusers pipeline, with gradient where a plan asks for it.

    Samples are bit-identical to `pipe(prompts, num_inference_steps=..., generator=..., **call_kwargs)`, unless
    `decode` is "sliced". The gradient reaches whatever parameters of denoiser and decoder require it; text encoders
    are never recorded, and under `torch.no_grad` nothing is.

    Arguments:
        pipe: a diffusers pipeline, classic or modular, with a scheduler and a denoiser (`unet` or `transformer`).
        num_inference_steps: as in the pipeline's call.
        gradient_checkpointing: recompute each graded denoiser call in the backward pass, so that a graded
            step stores its input only.
        decode: "whole" stores all that the decoder's backward pass needs, for all images; "checkpointed" recomputes
            it; "sliced" decodes and recomputes one image at a time: least memory, and the last bit may differ.
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
        gradient_checkpointing: bool = False,
        decode: Decode = "whole",
        base_model: Callable[[], AbstractContextManager[Any]] | None = None,
        **call_kwargs: Any,
    ) -> None:
        _check_drivable(pipe)
        _check_keywords(pipe, call_kwargs)
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
        traces = seams.state_restored(self.pipe, self.pipe.scheduler, *seams.guiders(self.pipe).values())
        with torch.no_grad(), torch.random.fork_rng(devices=[]), traces:
            for batch in [1, *_lengths(self.call_kwargs)]:  # an `image` of two items, say, may need two prompts
                try:
                    return _Count(self, batch).sampled_steps()
                except Exception as error:
                    errors.append(error)
        raise errors[0]

    def __call__(self, prompts: Sequence[str] | None = None, *, plan: StepPlan, generator: Generator = None) -> Rollout:
        """The images of one run of `plan`, graded as it says, the re-noised ones behind the samples.

        Arguments:
            prompts: B prompts; None where `call_kwargs` carries prompt embeddings instead.
            plan: which steps are graded, of T = `self.steps`.
            generator: source of the initial noise, as in the pipeline's call, and after it of the re-noisings;
                None takes the one in `call_kwargs`, or torch's global state.

        Raises:
            SamplerError: if the plan's length is not the scheduler's, or the call gives no image tensor.
        """
        passes = list(self.passes(prompts, plan=plan, generator=generator))
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
        generator: Generator = None,
        over_all: Callable[[torch.Tensor], torch.Tensor] = lambda drift: drift,
    ) -> Iterator[Rollout]:
        """The samples, then their re-noised copies, each when it is asked for, so that one can be
        backpropagated before the next is made; arguments and errors as in `__call__`.

        With `plan.max_drift` the passes end after the first that drifted further from the samples.

        Arguments:
            over_all: from the mean squared drift of this batch, (), to that of everything that ends together with it.
        """
        if isinstance(prompts, str) or prompts == []:
            raise SamplerError(f"prompts is {prompts!r}", where="prompts", next="give a list of one or more strings")
        if plan.steps != self.steps:
            raise SamplerError(
                f"the plan is for {plan.steps} steps, {type(self.pipe).__name__} takes {self.steps}",
                where="plan",
                next="make the plan with `estimator.plan(sampler.steps, rng)`",
            )
        rollout = _Rollout(self, prompts, plan, generator or self.call_kwargs.get("generator"))
        samples = rollout.sample()
        if plan.resamples and rollout.two_streams:
            raise SamplerError(
                "it copies its scheduler for a second chain, which cannot be replayed from its last step",
                where=type(self.pipe).__name__,
                next="use an estimator without re-noising",
            )
        names = _prompt_of_each(prompts, len(samples))
        yield Rollout(samples, names, sample_count=len(samples), divergence=rollout.mean_divergence())
        samples = samples.detach()
        noisy = [_renoised(rollout) for _ in range(plan.resamples)]
        for batch in [torch.cat(noisy)] if plan.together and noisy else noisy:
            renoising = _Renoising(rollout, batch)
            images = renoising.sample()
            yield Rollout(images, names * renoising.copies, sample_count=0, divergence=renoising.mean_divergence())
            if plan.max_drift is not None:
                drift = over_all((images.detach() - samples).float().square().mean()).sqrt()
                if float(drift) > plan.max_drift:
                    return


class _Run:
    """One pass through the pipeline's call: what happens at each seam, and the index of the step under way."""

    def __init__(self, sampler: DifferentiableSampler, prompts: Sequence[str] | None, generator: Generator) -> None:
        self.sampler = sampler
        self.pipe = sampler.pipe
        self.prompts = prompts
        self.generator = generator
        self.step = 0
        self.caller_records = torch.is_grad_enabled()
        self.two_streams = False  # whether the call copied its scheduler, for a chain of its own
        self.divergences: list[torch.Tensor] = []  # one for each graded denoiser call

    def sample(self) -> torch.Tensor:
        """The images of the call, (N, 3, H, W), in [0, 1]."""
        denoisers = seams.find_denoisers(self.pipe)
        with ExitStack() as stack:
            stack.enter_context(seams.grad_mode_restored())
            stack.enter_context(seams.quiet(self.pipe))
            stack.enter_context(seams.graph_released(self.pipe.scheduler))
            stepping = stack.enter_context(seams.replaced(self.pipe.scheduler, "step", self.on_scheduler))
            for denoiser in denoisers.values():
                stack.enter_context(seams.replaced(denoiser, "forward", partial(self.on_denoise, denoiser)))
            for helper in seams.modules_named(self.pipe, "controlnet").values():
                stack.enter_context(seams.replaced(helper, "forward", partial(self.on_control, helper)))
            for encoder in seams.modules_named(self.pipe, "encoder").values():
                stack.enter_context(seams.replaced(encoder, "forward", self.on_encode))
            for owner, name, wrapper in self.further_seams():
                if hasattr(owner, name):
                    stack.enter_context(seams.replaced(owner, name, wrapper))
            call = stack.enter_context(seams.differentiable(self.pipe))
            self.set_recording()
            try:
                images = call(**self.arguments())
            except (TypeError, ValueError) as error:  # how pipelines refuse their arguments
                raise SamplerError(
                    f"its call raised {type(error).__name__} ({' '.join(str(error).split())})",
                    where=type(self.pipe).__name__,
                    next="see what its call takes",
                ) from error
        self.check_images(images)
        self.two_streams = stepping.copied
        return images

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """Owner, name and wrapper of methods that not every pipeline has."""
        return [(getattr(self.pipe, "vae", None), "decode", self.on_decode)]

    def arguments(self) -> dict[str, Any]:
        """What the pipeline's call is called with."""
        prompt = {} if self.prompts is None else self.texts(self.prompts)
        fixed = {
            "generator": self.generator,
            "output_type": "pt",
            "num_inference_steps": self.sampler.num_inference_steps,
        }
        return {**self.sampler.call_kwargs, **prompt, **fixed}

    def texts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Prompts and negative prompts as pipelines want them: of one type, and one prompt as a bare string."""
        negative = {name: value for name, value in self.sampler.call_kwargs.items() if name.startswith(NEGATIVE)}
        if len(prompts) == 1:  # some take no list at all
            ones = {name: value[0] for name, value in negative.items() if _is_one_text(value)}
            return {"prompt": prompts[0], **ones}
        many = {name: [value] * len(prompts) for name, value in negative.items() if isinstance(value, str)}
        return {"prompt": list(prompts), **many}

    def check_images(self, images: Any) -> None:
        if not isinstance(images, torch.Tensor):
            raise SamplerError(
                f"its call returned {type(images).__name__}, not a tensor of images", where=type(self.pipe).__name__
            )

    # Between two `scheduler.step` calls everything belongs to one step.

    def records(self) -> bool:
        """Whether autograd records what belongs to the present step."""
        return False

    def set_recording(self) -> None:
        torch.set_grad_enabled(self.caller_records and self.records())

    def on_scheduler(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        return self.on_step(seams.step_call(step, args, kwargs))

    def on_step(self, call: seams.StepCall) -> Any:
        raise NotImplementedError

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """A network that helps the denoiser along is recorded like it, and does not count as one."""
        raise NotImplementedError

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return forward(*args, **kwargs)

    def on_decode(self, decode: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
        how = self.sampler.decode
        if how == "whole" or not isinstance(latents, torch.Tensor):
            return decode(latents, *args, **kwargs)
        slices = torch.split(latents, 1) if how == "sliced" else [latents]
        outputs = [_recomputed(decode, one, *args, **kwargs) for one in slices]
        pictures = torch.cat([seams.first_of(output, "sample") for output in outputs])
        return seams.with_first(outputs[0], "sample", pictures)

    def denoise_with_gradient(self, forward: Any, args: Any, kwargs: Any) -> Any:
        output = (
            _recomputed(forward, *args, **kwargs) if self.sampler.gradient_checkpointing else forward(*args, **kwargs)
        )
        if self.sampler.base_model is not None and self.caller_records:
            with torch.no_grad(), self.sampler.base_model():
                expected = seams.tensors_in(forward(*args, **kwargs))[0]
            self.divergences.append((seams.tensors_in(output)[0] - expected).float().square().mean())
        return output

    def mean_divergence(self) -> torch.Tensor | None:
        """Over the graded denoiser calls; None without a base model, or where nothing is graded."""
        return torch.stack(self.divergences).mean() if self.divergences else None


class _Count(_Run):
    """A run that only counts its steps: each denoiser is called once for the shape of its output."""

    def __init__(self, sampler: DifferentiableSampler, batch: int) -> None:
        embedded = sampler.call_kwargs.get("prompt_embeds") is not None
        super().__init__(sampler, None if embedded else [PROBE_PROMPT] * batch, torch.Generator().manual_seed(0))
        self.blanks: dict[Any, Any] = {}

    def sampled_steps(self) -> int:
        self.sample()
        return self.step

    def on_step(self, call: seams.StepCall) -> Any:
        self.step += 1
        return call.run()

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        key = (denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if key not in self.blanks:
            self.blanks[key] = seams.blank(forward(*args, **kwargs))
        return self.blanks[key]

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.on_denoise(helper, forward, *args, **kwargs)


class _Rollout(_Run):
    """The whole chain, or as much of it as the plan runs, and what re-noisings need to know of it."""

    last_output: Any  # of scheduler.step
    output_before_last: Any  # of the step before the last; some pipelines hand its further fields to the next
    last_timestep: Any
    x0: torch.Tensor  # latents after the last step, detached

    def __init__(
        self, sampler: DifferentiableSampler, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator
    ) -> None:
        super().__init__(sampler, prompts, generator)
        self.plan = plan
        self.encoded: list[Any] = []  # what the encoders returned, call by call
        self.blanks: dict[Any, Any] = {}  # network and shape of its input -> an output of zeros that takes no memory
        self.state_before_last: dict[str, Any] | None = None  # of the scheduler; None where the last step is the first

    def sample(self) -> torch.Tensor:
        images = super().sample()
        if self.step != self.plan.steps:
            raise SamplerError(
                f"it took {self.step} scheduler steps where the plan has {self.plan.steps}",
                where=type(self.pipe).__name__,
                next=f"make the plan for {self.step} steps",
            )
        return images

    def records(self) -> bool:
        return bool(self.plan.graded) and self.step >= min(self.plan.graded)

    def left(self) -> bool:
        """Whether the chain was left at an earlier step."""
        return self.step > self.plan.last

    def on_step(self, call: seams.StepCall) -> Any:
        if self.left():
            output = seams.with_first(self.last_output, "prev_sample", call.sample)
        elif self.step == self.plan.stop_at:
            mean = posterior_mean(self.pipe.scheduler, call.model_output, call.timestep, call.sample)
            self.last_output = call.run()
            output = seams.with_first(self.last_output, "prev_sample", mean)
        else:
            output = self.last_output = call.run()
        self.step += 1
        if self.step == self.plan.steps - 1:
            self.output_before_last = seams.mapped(torch.Tensor.detach, output)
            self.state_before_last = seams.scheduler_state(self.pipe.scheduler)
        if self.step == self.plan.steps:
            self.last_timestep = call.timestep
            self.x0 = seams.first_of(output, "prev_sample").detach()
        self.set_recording()
        return output

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.network(denoiser, partial(self.denoise_with_gradient, forward), forward, args, kwargs)

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.network(helper, lambda args, kwargs: forward(*args, **kwargs), forward, args, kwargs)

    def network(self, network: Any, graded: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        key = (network, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if self.left() and key in self.blanks:
            return self.blanks[key]
        self.set_recording()  # a modular pipeline's call switches it off at its start
        if self.step in self.plan.graded:
            if self.plan.detach_input:
                args, kwargs = seams.with_detached_input(args, kwargs)
            output = graded(args, kwargs)
        else:
            with torch.no_grad():
                output = forward(*args, **kwargs)
        self.blanks[key] = seams.blank(output)
        return output

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.encoded.append(super().on_encode(forward, *args, **kwargs))
        return self.encoded[-1]

    def check_images(self, images: Any) -> None:
        super().check_images(images)
        denoisers = seams.find_denoisers(self.pipe).values()
        trains = any(parameter.requires_grad for denoiser in denoisers for parameter in denoiser.parameters())
        if self.caller_records and self.plan.graded and trains and not images.requires_grad:
            raise SamplerError(
                "its images carry no gradient, something between the denoiser and them cuts it",
                where=type(self.pipe).__name__,
                next="look for a no_grad or a detach in its decode",
            )


class _Renoising(_Run):
    """The last step once more, from x0 re-noised (DRaFT-LV, Clark et al. 2024, algorithm 1).

    The pipeline's call runs again with all steps but the last one empty: the denoiser gives zeros, the
    latents stay as they are. The step before the last returns the re-noised latents and puts the
    scheduler into the state it had there in the rollout; a single-step run gets them with its initial latents.

    Arguments:
        noisy: the re-noised latents, those of all samples once or several times.
    """

    def __init__(self, rollout: _Rollout, noisy: torch.Tensor) -> None:
        self.noisy = noisy
        self.copies = len(noisy) // len(rollout.x0)
        prompts = None if rollout.prompts is None else list(rollout.prompts) * self.copies
        super().__init__(rollout.sampler, prompts, _forked(rollout.generator))
        self.rollout = rollout
        self.encoded = iter(rollout.encoded)
        self.last = rollout.plan.steps - 1
        if self.last:
            self.stub = seams.repeated({"": rollout.output_before_last}, rollout.x0.shape, self.copies)[""]

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        return [*super().further_seams(), (self.pipe, "prepare_latents", self.on_prepare)]

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        if self.copies > 1:
            embedded = self.sampler.call_kwargs.get("prompt_embeds")
            prompts = embedded if self.rollout.prompts is None else self.rollout.prompts
            lengths = {len(self.rollout.x0)} | (set() if prompts is None else {len(prompts)})
            arguments = {name: _repeated(name, value, self.copies, lengths) for name, value in arguments.items()}
        if self.last == 0 and seams.is_modular(self.pipe):  # no method there to replace
            arguments["latents"] = self.noisy / getattr(self.pipe.scheduler, "init_noise_sigma", 1.0)
        return arguments

    def records(self) -> bool:
        return self.step == self.last

    def on_step(self, call: seams.StepCall) -> Any:
        if self.step == self.last:
            if self.last == 0:
                self.check_start(call.sample)
            return call.run()
        self.step += 1
        sample = call.sample
        if self.step == self.last:
            assert self.rollout.state_before_last is not None
            state = seams.repeated(self.rollout.state_before_last, self.rollout.x0.shape, self.copies)
            seams.restore_scheduler(self.pipe.scheduler, state)
            sample = self.noisy
        self.set_recording()
        return seams.with_first(self.stub, "prev_sample", sample)

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == self.last:
            self.set_recording()
            return self.denoise_with_gradient(forward, args, kwargs)
        return self.blank_of(denoiser, args, kwargs)

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == self.last:
            self.set_recording()
            return forward(*args, **kwargs)
        return self.blank_of(helper, args, kwargs)

    def check_start(self, latents: torch.Tensor) -> None:
        """A single step has none before it to hand the latents in by, and a call may not take them as they are."""
        same_shape = latents.shape == self.noisy.shape
        if not same_shape or not torch.allclose(latents.to(self.noisy.dtype), self.noisy, rtol=1e-2, atol=1e-3):
            raise SamplerError(
                "its only step cannot be started from re-noised latents",
                where=type(self.pipe).__name__,
                next="use two steps or more, or an estimator without re-noising",
            )

    def blank_of(self, network: Any, args: Any, kwargs: Any) -> Any:
        shapes = seams.shapes_of(seams.denoiser_input(args, kwargs))
        blanks = self.rollout.blanks
        if (network, shapes) not in blanks:  # a larger batch than the rollout's
            enlarged = (
                _enlarged(blank, recorded, shapes, self.copies)
                for (known, recorded), blank in blanks.items()
                if known is network
            )
            blanks[network, shapes] = next(blank for blank in enlarged if blank is not None)
        return blanks[network, shapes]

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.copies > 1:
            return super().on_encode(forward, *args, **kwargs)
        return next(self.encoded)

    def on_prepare(self, prepare_latents: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_latents(*args, **kwargs)
        if self.last > 0:
            return prepared
        if isinstance(prepared, torch.Tensor):
            return self.noisy
        return (self.noisy, *prepared[1:])  # packed latents come with their position ids


def _renoised(rollout: _Rollout) -> torch.Tensor:
    """x_1 = alpha_1 x0 + sigma_1 eps, like x0, at the noise level from which the last step started."""
    x0 = rollout.x0
    noise = randn_tensor(x0.shape, generator=rollout.generator, device=x0.device, dtype=x0.dtype)
    if rollout.state_before_last is not None:  # sigma schedulers look their level up by the current index
        seams.restore_scheduler(rollout.pipe.scheduler, rollout.state_before_last)
    return renoised(rollout.pipe.scheduler, x0, rollout.last_timestep, noise)


def _lengths(arguments: dict[str, Any]) -> list[int]:
    """How many items the call's lists and batches hold, each number once; 0 and 1 are left out."""
    return sorted({_length(value) for value in arguments.values()} - {0, 1})


def _length(value: Any) -> int:
    """The items of a list or a batch; 0 for anything else."""
    batched = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)
    return len(value) if batched else 0


def _is_one_text(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def _enlarged(blank: Any, recorded: tuple[torch.Size, ...], shapes: tuple[torch.Size, ...], copies: int) -> Any:
    """The blank output that belongs to an input of these shapes, from one that belongs to the recorded, or None.

    Each shape must be the recorded one, or that of so many batches; or there are so many lists of it.
    """
    if shapes == recorded * copies:
        return seams.listed(blank, copies)
    pairs = zip(shapes, recorded, strict=False)
    fits = all(shape == one or (len(one) and shape == (copies * one[0], *one[1:])) for shape, one in pairs)
    if not fits or len(shapes) != len(recorded):
        return None
    return seams.mapped(lambda zero: zero[:1].expand(len(zero) * copies, *zero.shape[1:]), blank)


def _repeated(name: str, value: Any, copies: int, lengths: set[int]) -> Any:
    """An argument of the call that holds one item for each prompt or image, so often; prompts are so already."""
    batch = _length(value) in lengths
    if name == "prompt" or not batch or isinstance(value[0], (int, float)):
        return value
    return value * copies if isinstance(value, list) else value.repeat(copies, *[1] * (value.ndim - 1))


def _recomputed(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The function's output, its intermediate results computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


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
    inputs = seams.call_inputs(pipe)
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
