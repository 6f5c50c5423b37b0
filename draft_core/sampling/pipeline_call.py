"""One pass through a pipeline's own call: what happens at each seam while a plan is carried out.

A rollout is a pass, and so is each re-noising of it. No method's name and no family's loop is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from draft_core.errors import SamplerError, one_line
from draft_core.sampling import pipelines, seams
from draft_core.sampling.recomputation import convolutions_small, kept_small

Generator = torch.Generator | list[torch.Generator] | None
Decode = Literal["whole", "selective", "blocks", "checkpointed", "sliced"]
Checkpointing = Literal[False, True, "selective", "blocks"]
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
        self.divergences: list[torch.Tensor] = []  # one for each recorded denoiser call

    def sample(self) -> torch.Tensor:
        """The images of the call, (N, 3, H, W), in [0, 1]."""
        denoisers = pipelines.find_denoisers(self.pipe)
        with ExitStack() as stack:
            stack.enter_context(seams.grad_mode_restored())
            stack.enter_context(pipelines.quiet(self.pipe))
            stack.enter_context(seams.graph_released(self.pipe.scheduler))
            stepping = stack.enter_context(seams.replaced(self.pipe.scheduler, "step", self.on_scheduler))
            for denoiser in denoisers.values():
                stack.enter_context(seams.replaced(denoiser, "forward", partial(self.on_denoise, denoiser)))
            for helper in pipelines.modules_named(self.pipe, "controlnet").values():
                stack.enter_context(seams.replaced(helper, "forward", partial(self.on_control, helper)))
            for encoder in pipelines.modules_named(self.pipe, "encoder").values():
                stack.enter_context(seams.replaced(encoder, "forward", self.on_encode))
            for owner, name, wrapper in self.further_seams():
                if hasattr(owner, name):
                    stack.enter_context(seams.replaced(owner, name, wrapper))
            call = stack.enter_context(pipelines.differentiable(self.pipe))
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
        images = torch.cat([seams.first_of(output, "sample") for output in outputs])
        return seams.with_first(outputs[0], "sample", images)

    def denoise_with_gradient(self, denoiser: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """A recorded denoiser call, and beside it how far it is from the base model's."""
        how = self.sampler.gradient_checkpointing
        with _keeping(how, denoiser):
            output = _recomputed(denoiser, forward, *args, **kwargs) if how is True else forward(*args, **kwargs)
        if self.sampler.base_model is not None and self.caller_records:
            with torch.no_grad(), self.sampler.base_model():
                expected = seams.tensors_in(forward(*args, **kwargs))[0]
            self.divergences.append((seams.tensors_in(output)[0] - expected).float().square().mean())
        return output

    def mean_divergence(self) -> torch.Tensor | None:
        """Over the recorded denoiser calls; None without a base model, or where nothing is recorded."""
        return torch.stack(self.divergences).mean() if self.divergences else None


def length(value: Any) -> int:
    """The items of a list or a batch; 0 for anything else."""
    batched = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)
    return len(value) if batched else 0


def _is_one_text(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


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
