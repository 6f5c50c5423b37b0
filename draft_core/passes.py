"""One pass through a pipeline's own call: what happens at each seam while a plan is carried out.

A rollout is a pass, and so is each re-noising of it. No method's name and no family's loop is known here. Tensors wing.
May import: errors, plan, schedules, seams, activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.utils.checkpoint import checkpoint

from draft_core import seams
from draft_core.activations import convolutions_small, kept_small
from draft_core.errors import SamplerError, one_line
from draft_core.plan import StepPlan
from draft_core.schedules import posterior_mean, renoised

Generator = torch.Generator | list[torch.Generator] | None
Decode = Literal["whole", "selective", "blocks", "checkpointed", "sliced"]
Checkpointing = Literal[False, True, "selective", "blocks"]

PROBE_PROMPT = "a photograph"
NEGATIVE = "negative_prompt"  # with a number behind it for a second encoder


class Settings(Protocol):
    """What a pass has to know of its sampler, `sampler.DifferentiableSampler`."""

    pipe: Any
    num_inference_steps: int
    gradient_checkpointing: Checkpointing
    decode: Decode
    base_model: Callable[[], AbstractContextManager[Any]] | None
    call_kwargs: dict[str, Any]


class Pass:
    """One pass through the pipeline's call: what happens at each seam, and the index of the step under way."""

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, generator: Generator) -> None:
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
                    f"its call raised {type(error).__name__} ({one_line(error)})",
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
        """Refuses what is no tensor of images."""
        if not isinstance(images, torch.Tensor):
            raise SamplerError(
                f"its call returned {type(images).__name__}, not a tensor of images", where=type(self.pipe).__name__
            )

    # Between two `scheduler.step` calls everything belongs to one step.

    def records(self) -> bool:
        """Whether autograd records what belongs to the present step."""
        return False

    def set_recording(self) -> None:
        """Switches autograd's recording on or off, as the present step wants it."""
        torch.set_grad_enabled(self.caller_records and self.records())

    def on_scheduler(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of `scheduler.step`, whatever the order of its arguments."""
        return self.on_step(seams.step_call(step, args, kwargs))

    def on_step(self, call: seams.StepCall) -> Any:
        """What the pipeline gets for a scheduler step."""
        raise NotImplementedError

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline gets for a denoiser call."""
        raise NotImplementedError

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """A network that helps the denoiser along is recorded like it, and does not count as one."""
        raise NotImplementedError

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """An encoder's output; encoders are frozen."""
        with torch.no_grad():
            return forward(*args, **kwargs)

    def on_decode(self, decode: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
        """The decoder's output, its graph kept as the sampler's `decode` says."""
        how = self.sampler.decode
        if how in ("whole", "selective", "blocks") or not isinstance(latents, torch.Tensor):
            with _keeping(how, self.pipe.vae):
                return decode(latents, *args, **kwargs)
        slices = torch.split(latents, 1) if how == "sliced" else [latents]
        outputs = [_recomputed(self.pipe.vae, decode, one, *args, **kwargs) for one in slices]
        pictures = torch.cat([seams.first_of(output, "sample") for output in outputs])
        return seams.with_first(outputs[0], "sample", pictures)

    def denoise_with_gradient(self, denoiser: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """A graded denoiser call, and beside it how far it is from the base model's."""
        how = self.sampler.gradient_checkpointing
        with _keeping(how, denoiser):
            output = _recomputed(denoiser, forward, *args, **kwargs) if how is True else forward(*args, **kwargs)
        if self.sampler.base_model is not None and self.caller_records:
            with torch.no_grad(), self.sampler.base_model():
                expected = seams.tensors_in(forward(*args, **kwargs))[0]
            self.divergences.append((seams.tensors_in(output)[0] - expected).float().square().mean())
        return output

    def mean_divergence(self) -> torch.Tensor | None:
        """Over the graded denoiser calls; None without a base model, or where nothing is graded."""
        return torch.stack(self.divergences).mean() if self.divergences else None


class Blank(Pass):
    """The steps alone: each network is called once for the shape of its output, and its output is zeros from then on.

    Arguments:
        blanks: such outputs that are known already: network and shape of its input -> zeros that take no memory.
    """

    def __init__(
        self, sampler: Settings, prompts: Sequence[str] | None, blanks: dict[Any, Any], generator: Generator = None
    ) -> None:
        super().__init__(sampler, prompts, generator or torch.Generator().manual_seed(0))
        self.blanks = blanks

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


def count_steps(sampler: Settings, batch: int) -> int:
    """The `scheduler.step` calls of a run of so many prompts."""
    embedded = sampler.call_kwargs.get("prompt_embeds") is not None
    count = Blank(sampler, None if embedded else [PROBE_PROMPT] * batch, {})
    count.sample()
    return count.step


@dataclass(frozen=True)
class LastStep:
    """Where the last step of a chain starts: all that a re-noising has to know.

    Arguments:
        prompts, generator: as the chain was called.
        number: of the step, T - 1.
        x0: latents after it, detached.
        timestep: of it, as the pipeline gave it.
        state: of the scheduler before it; None where it is the first step too.
        output: of `scheduler.step` before it; some pipelines hand its further fields to the next.
        encoded: what the encoders returned, call by call.
        blanks: network and shape of its input -> an output of zeros that takes no memory.
    """

    prompts: Sequence[str] | None
    generator: Generator
    number: int
    x0: torch.Tensor
    timestep: Any
    state: dict[str, Any] | None
    output: Any
    encoded: list[Any]
    blanks: dict[Any, Any]


class Chain(Pass):
    """The whole chain, or as much of it as the plan runs, and what re-noisings need to know of it."""

    last_output: Any  # of scheduler.step
    last_step: LastStep  # once it has been taken

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        super().__init__(sampler, prompts, generator)
        self.plan = plan
        self.encoded: list[Any] = []  # what the encoders returned, call by call
        self.blanks: dict[Any, Any] = {}  # network and shape of its input -> an output of zeros that takes no memory
        self.before_last: tuple[Any, dict[str, Any] | None] = None, None  # output and state of the step before the last

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
            self.before_last = _after(output, self.pipe.scheduler)
        if self.step == self.plan.steps:
            x0 = seams.first_of(output, "prev_sample").detach()
            before, state = self.before_last
            self.last_step = LastStep(
                *(self.prompts, self.generator, self.plan.steps - 1, x0, call.timestep),
                *(state, before, self.encoded, self.blanks),
            )
        self.set_recording()
        return output

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.network(denoiser, partial(self.denoise_with_gradient, denoiser, forward), forward, args, kwargs)

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


class ShortChain(Pass):
    """A chain without gradient and without decoding, on a schedule of fewer steps: a cheap x0 to re-noise."""

    x0: torch.Tensor  # latents after the last step so far

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        super().__init__(sampler, prompts, generator)
        self.plan = plan
        self.encoded: list[Any] = []
        self.blanks: dict[Any, Any] = {}

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), **_undecoded(self.pipe), "num_inference_steps": self.plan.prefix}

    def on_step(self, call: seams.StepCall) -> Any:
        self.step += 1
        output = call.run()
        self.x0 = seams.first_of(output, "prev_sample").detach()
        return output

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        self.blanks[denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs))] = seams.blank(output)
        return output

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.on_denoise(helper, forward, *args, **kwargs)

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.encoded.append(super().on_encode(forward, *args, **kwargs))
        return self.encoded[-1]

    def last_step(self) -> LastStep:
        """The last step of the whole schedule, as if it were that of this chain.

        Raises:
            SamplerError: if the scheduler builds its last step on earlier predictions, which there are none of.
        """
        self.sample()
        schedule = Schedule(self)
        schedule.sample()
        before, state = schedule.before_last
        memory = [tensor for tensor in seams.tensors_in(state) if tensor.shape == self.x0.shape]
        if memory or schedule.two_streams:
            raise SamplerError(
                f"the last step of {type(self.pipe.scheduler).__name__} builds on earlier ones, which a shortened "
                "prefix does not have",
                where=type(self.pipe).__name__,
                next="use a scheduler without memory (DDIM, Euler), or an estimator that runs the whole chain",
            )
        return LastStep(
            *(self.prompts, self.generator, schedule.step - 1, self.x0, schedule.last_timestep),
            *(state, before, self.encoded, self.blanks),
        )


class Schedule(Blank):
    """The whole schedule without a network call: the scheduler as it is before its last step, for a short chain."""

    def __init__(self, chain: ShortChain) -> None:
        super().__init__(chain.sampler, chain.prompts, chain.blanks)
        self.steps = chain.plan.steps
        self.encoded = iter(chain.encoded)
        self.before_last: tuple[Any, dict[str, Any] | None] = None, None
        self.last_timestep: Any = None

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), **_undecoded(self.pipe)}

    def on_step(self, call: seams.StepCall) -> Any:
        output = super().on_step(call)
        if self.step == self.steps - 1:
            self.before_last = _after(output, self.pipe.scheduler)
        self.last_timestep = call.timestep
        return output

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return next(self.encoded)


class Renoising(Pass):
    """The last step once more, from x0 re-noised (DRaFT-LV, Clark et al. 2024, algorithm 1).

    The pipeline's call runs again with all steps but the last one empty: the denoiser gives zeros, the
    latents stay as they are. The step before the last returns the re-noised latents and puts the
    scheduler into the state it had there in the rollout; a single-step run gets them with its initial latents.

    Arguments:
        start: of the last step.
        noisy: the re-noised latents, those of all samples once or several times.
    """

    def __init__(self, sampler: Settings, start: LastStep, noisy: torch.Tensor) -> None:
        self.noisy = noisy
        self.copies = len(noisy) // len(start.x0)
        prompts = None if start.prompts is None else list(start.prompts) * self.copies
        super().__init__(sampler, prompts, _forked(start.generator))
        self.start = start
        self.encoded = iter(start.encoded)
        self.last = start.number
        if self.last:
            self.stub = seams.repeated({"": start.output}, start.x0.shape, self.copies)[""]

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        return [*super().further_seams(), (self.pipe, "prepare_latents", self.on_prepare)]

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        if self.copies > 1:
            embedded = self.sampler.call_kwargs.get("prompt_embeds")
            prompts = embedded if self.start.prompts is None else self.start.prompts
            lengths = {len(self.start.x0)} | (set() if prompts is None else {len(prompts)})
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
            assert self.start.state is not None
            state = seams.repeated(self.start.state, self.start.x0.shape, self.copies)
            seams.restore_scheduler(self.pipe.scheduler, state)
            sample = self.noisy
        self.set_recording()
        return seams.with_first(self.stub, "prev_sample", sample)

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if self.step == self.last:
            self.set_recording()
            return self.denoise_with_gradient(denoiser, forward, args, kwargs)
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
        blanks = self.start.blanks
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


def renoised_start(sampler: Settings, start: LastStep) -> torch.Tensor:
    """x_1 = alpha_1 x0 + sigma_1 eps, like x0, at the noise level from which the last step starts."""
    x0 = start.x0
    noise = randn_tensor(x0.shape, generator=start.generator, device=x0.device, dtype=x0.dtype)
    if start.state is not None:  # sigma schedulers look their level up by the current index
        seams.restore_scheduler(sampler.pipe.scheduler, start.state)
    return renoised(sampler.pipe.scheduler, x0, start.timestep, noise)


def _after(output: Any, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """The output of a step, detached, and the scheduler's state after it."""
    return seams.mapped(torch.Tensor.detach, output), seams.scheduler_state(scheduler)


def _undecoded(pipe: Any) -> dict[str, Any]:
    """The argument by which a call leaves the decoder out; a modular one has none."""
    return {} if seams.is_modular(pipe) else {"output_type": "latent"}


def lengths(arguments: dict[str, Any]) -> list[int]:
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


def has_blocks(*networks: Any) -> bool:
    """Whether diffusers can checkpoint each of these networks block by block."""
    return all(getattr(network, "_supports_gradient_checkpointing", False) for network in networks)


def _keeping(how: Any, network: Any) -> AbstractContextManager[Any]:
    """What is recorded inside keeps as much as is asked for."""
    if how == "blocks" and torch.is_grad_enabled() and not network.is_gradient_checkpointing:
        # It stays on, for the backward pass may ask again; without recording it does nothing.
        network.enable_gradient_checkpointing()
    return kept_small() if how == "selective" else nullcontext()


def _recomputed(network: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of the network's function, its intermediate results computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)

    def smaller(*args: Any, **kwargs: Any) -> Any:  # what the backward pass computes again takes less memory too
        with convolutions_small(network):
            return function(*args, **kwargs)

    return checkpoint(smaller, *args, use_reentrant=False, **kwargs)


def _forked(generator: Generator) -> Generator:
    """A generator of its own for the replay, seeded from the run's, so that the run's advances by one draw."""
    if generator is None or isinstance(generator, list):
        return generator and [fork for one in generator if isinstance(fork := _forked(one), torch.Generator)]
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))
