"""A step of a chain once more, from other latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from draft_core.errors import SamplerError
from draft_core.sampling import pipelines, seams
from draft_core.sampling.chain import LastStep
from draft_core.sampling.noise_levels import renoised
from draft_core.sampling.pipeline_call import Generator, Pass, Settings, length


class Renoised(Pass):
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
        if self.last == 0 and pipelines.is_modular(self.pipe):  # no method there to replace
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
                next="use two steps or more, or a method without re-noising",
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
    batch = length(value) in lengths
    if name == "prompt" or not batch or isinstance(value[0], (int, float)):
        return value
    return value * copies if isinstance(value, list) else value.repeat(copies, *[1] * (value.ndim - 1))


def _forked(generator: Generator) -> Generator:
    """A generator of its own for the replay, seeded from the run's, so that the run's advances by one draw."""
    if generator is None or isinstance(generator, list):
        return generator and [fork for one in generator if isinstance(fork := _forked(one), torch.Generator)]
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))
