"""The pipeline's own call, steered: what happens at its scheduler's step, its networks and its encoders.

No method's name and no family's loop is known here. A `Steering` decides; the classes that do are in `chain` and
`replay`, and none inherits from another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Literal, Protocol

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils.torch_utils import randn_tensor

from draft_core.errors import SamplerError, one_line
from draft_core.frames import FrameChoice
from draft_core.prompt_rows import TEXTS, plain
from draft_core.rewards.columns import CallColumns
from draft_core.sampling import base_model, pipelines, seams
from draft_core.sampling.call_traits import CallTraits
from draft_core.sampling.decoders.kept import decoded, kept_as_it_is, types_of
from draft_core.sampling.decoders.tiles import decoded_by_tiles
from draft_core.sampling.decoders.tiny import TinyDecoder
from draft_core.sampling.noise_levels import general_step
from draft_core.sampling.randomness import Generator
from draft_core.sampling.recomputing.calls import keeping, recorded

Forward = Callable[..., Any]
Decode = Literal["whole", "selective", "blocks", "checkpointed", "sliced", "tiles", "unrecorded"]
Checkpointing = Literal[False, True, "selective", "blocks", "lean", "halves", "sliced"]


class Settings(Protocol):
    """What a call has to know of its sampler, `sampler.DifferentiableSampler`."""

    pipe: Any
    num_inference_steps: int | None
    gradient_checkpointing: Checkpointing
    decode: Decode
    base_model: Callable[[], AbstractContextManager[Any]] | None
    kl_relative: float
    noise: float
    frames: FrameChoice | None
    call_kwargs: dict[str, Any]
    columns: CallColumns
    decoder: TinyDecoder | None

    @property
    def takes_each(self) -> bool: ...


FRAME_BY_FRAME = (AutoencoderKL, AutoencoderTiny)  # decoders that take the frames of a video as so many images


class Steering(Protocol):
    """What decides at each seam of one call."""

    def records(self) -> bool:
        """Whether autograd records what belongs to the present step: all between two calls of `scheduler.step`."""
        ...

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The keywords of the pipeline's call, from those that the sampler would give."""
        ...

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """Owner, name and wrapper of further methods to replace, where they exist."""
        ...

    def step(self, call: seams.StepCall) -> Any:
        """What the pipeline gets for a scheduler step."""
        ...

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """What the pipeline gets for a call of a denoiser, or of a network that helps it along.

        Arguments:
            record: the call with gradient, its graph kept as the sampler says; takes `args` and `kwargs`.
            forward: the call as it is.
        """
        ...

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the pipeline gets for the call of a frozen encoder, which `encode` makes."""
        ...


class PipelineCall:
    """One call of a sampler's pipeline.

    Arguments:
        sampler: the pipeline and how it is called.
        prompts: B prompts; None where the call is given embeddings.
        generator: source of noise.

    Attributes:
        traits: what the call was seen to do; complete afterwards.
        squares: of each recorded denoiser call its mean, (), and `Rollout.squares`.
        decoded: what the decoder was given, one for each of its calls, with gradient.
    """

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, generator: Generator) -> None:
        self.sampler, self.pipe = sampler, sampler.pipe
        self.prompts, self.generator = prompts, generator
        self.of_rows = sampler.columns.of(prompts, sampler)
        self.caller_records = torch.is_grad_enabled()
        self.traits = CallTraits()
        self.squares: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.predicted: list[Any] = []  # the graph nodes of what recorded denoiser calls returned
        self.decoder_types: list[torch.dtype] = []  # of the decoder's weights at the start of the call
        self.decoded: list[torch.Tensor] = []
        self.video_length = 0  # frames in the latents of the scheduler's steps; 0 where they hold none

    def run(self, steering: Steering) -> Any:
        """What the call returns: images (N, 3, H, W) in [0, 1], or latents where the steering asks for those."""
        with ExitStack() as stack:
            stack.enter_context(seams.in_use(self.pipe, pipelines.steered(self.pipe)))
            stack.enter_context(seams.grad_mode_restored())
            stack.enter_context(pipelines.quiet(self.pipe))
            stack.enter_context(seams.graph_released(*pipelines.remembering(self.pipe)))

            def step(original: Any, *args: Any, **kwargs: Any) -> Any:
                given = seams.step_call(original, args, kwargs)
                output = steering.step(given)
                self.video_length = given.sample.shape[2] if given.sample.ndim == 5 else 0
                self.traits.saw_step(given)
                self._set_recording(steering)
                return output

            def schedule(original: Any, *args: Any, **kwargs: Any) -> Any:
                self.traits.saw_schedule()
                self._set_recording(steering)  # of what a modular call makes of given latents
                return original(*args, **kwargs)

            def network(module: Any, record: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
                self._set_recording(steering)  # a modular pipeline's call switches it off at its start
                self.traits.saw_network(module, kwargs)
                return steering.network(module, partial(record, module, forward), forward, args, kwargs)

            def encode(forward: Any, *args: Any, **kwargs: Any) -> Any:
                return steering.encode(partial(_frozen, forward, *args, **kwargs))

            stepping = stack.enter_context(seams.replaced(self.pipe.scheduler, "step", step))
            for denoiser in pipelines.find_denoisers(self.pipe).values():
                stack.enter_context(seams.replaced(denoiser, "forward", partial(network, denoiser, self._denoise)))
            for helper in pipelines.modules_named(self.pipe, "controlnet").values():
                stack.enter_context(seams.replaced(helper, "forward", partial(network, helper, _help)))
            for encoder in pipelines.modules_named(self.pipe, "encoder").values():
                stack.enter_context(seams.replaced(encoder, "forward", encode))
            for owner, name, wrapper in [
                (self.pipe.scheduler, "set_timesteps", schedule),
                (getattr(self.pipe, "vae", None), "decode", self._decode),
                *steering.further_seams(),
                *(self.sampler.columns.computed.seams() if self.sampler.columns.computed else ()),
            ]:
                if hasattr(owner, name):
                    stack.enter_context(seams.replaced(owner, name, wrapper))
            call = stack.enter_context(pipelines.differentiable(self.pipe))
            stack.callback(self.predicted.clear)
            self.decoder_types = types_of(getattr(self.pipe, "vae", None))
            self._set_recording(steering)
            try:
                images = call(**steering.arguments(self._arguments()))
            except (TypeError, ValueError) as error:  # how pipelines refuse their arguments
                raise _refused(self.pipe, error) from error
            except Exception as error:
                misshapen = self._latents() is not None and type(error) is RuntimeError
                if type(error) is not Exception and not misshapen:
                    raise
                raise _refused(self.pipe, error) from error  # latents; or an output type without tensors, of LDM3D
            self.traits.two_streams = stepping.copied
            if not isinstance(images, torch.Tensor):
                raise SamplerError(
                    f"its call returned {type(images).__name__}, not a tensor of images", where=type(self.pipe).__name__
                )
            self._require_gradient(images)
        if images.ndim == 5 and self.decoded:
            self.traits.frames = images.shape[1]
            if self.sampler.frames is not None:
                return images[:, list(self.sampler.frames.of(images.shape[1]))]
        return images

    def stepped(self, call: seams.StepCall) -> Any:
        """What the scheduler's own step gives, or with the sampler's `noise` the general one, drawn from the generator.

        The scheduler's memory is then that after its own step.
        """
        if not self.sampler.noise:
            return call.run()
        gaussian = general_step(self.pipe.scheduler, call, self.sampler.noise)
        mean, source = gaussian.mean, self.generator
        noise = randn_tensor(mean.shape, generator=source, device=mean.device, dtype=mean.dtype)
        output = call.run()
        latents = (mean + gaussian.std * noise).to(seams.first_of(output, "prev_sample").dtype)
        return seams.with_first(output, "prev_sample", latents)

    def _require_gradient(self, images: torch.Tensor) -> None:
        """That the images depend on a recorded prediction: a decoder that is trained gives them a gradient anyway.

        Where the decoder is not recorded, what it is given must.
        """
        latents = self._latents()
        if self.sampler.decode == "unrecorded" and self.decoded:
            images = self.decoded[0]
        if self.caller_records and self.predicted and latents is not None and latents.requires_grad:
            start = torch.autograd.graph.get_gradient_edge(latents).node
            if not reaches(images.grad_fn, [start]):
                raise SamplerError(
                    "its images carry no gradient of the latents that it starts from",
                    where=type(self.pipe).__name__,
                    next="give latents.detach(); something in its call cuts them off",
                )
        denoisers = pipelines.find_denoisers(self.pipe).values()
        trains = any(parameter.requires_grad for denoiser in denoisers for parameter in denoiser.parameters())
        if self.caller_records and trains and self.predicted and not reaches(images.grad_fn, self.predicted):
            raise SamplerError(
                "its images carry no gradient of the denoiser, something between it and them cuts it",
                where=type(self.pipe).__name__,
                next="look for a no_grad or a detach in its loop and its decode",
            )

    def _latents(self) -> torch.Tensor | None:
        """What the call is given to start from; None where it draws that."""
        return self.sampler.call_kwargs.get("latents")

    def _set_recording(self, steering: Steering) -> None:
        torch.set_grad_enabled(self.caller_records and steering.records())

    def seen(self) -> dict[str, Any]:
        """What a `Rollout` says of it: how far it is from the base model, and what the decoder was given."""
        means = [mean for mean, _ in self.squares]
        return {
            "divergence": torch.stack(means).mean() if means else None,
            "squares": tuple(of_rows for _, of_rows in self.squares),
            "decoded": self.decoded[0] if len(self.decoded) == 1 else None,
        }

    def _arguments(self) -> dict[str, Any]:
        prompt = {} if self.prompts is None else self._texts(self.prompts)
        steps = self.sampler.num_inference_steps
        return {
            **self.sampler.call_kwargs,
            **prompt,
            **self.of_rows,
            "generator": self.generator,
            "output_type": "pt",
            **({} if steps is None else {"num_inference_steps": steps}),
        }

    def _texts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Prompts, and what the call is given for the other encoders and to lead away from, each of one type.

        One text stands for every prompt, and one prompt is a bare string: some pipelines take no list at all.
        """
        further = {name: value for name, value in self.sampler.call_kwargs.items() if TEXTS.fullmatch(name)}
        for name, value in further.items():
            if isinstance(value, list) and (not value or len(prompts) % len(value)):  # copies of a batch take turns
                raise SamplerError(
                    f"{name} has {len(value)} texts for {len(prompts)} {'prompt' if len(prompts) == 1 else 'prompts'}",
                    where=type(self.pipe).__name__,
                    next="give one text, which stands for every prompt, or one for each",
                )
        texts = {name: text for name, value in further.items() if (text := _one_text(value)) is not None}
        if len(prompts) == 1:
            return {"prompt": plain(prompts)[0], **texts}
        return {"prompt": list(plain(prompts)), **{name: [text] * len(prompts) for name, text in texts.items()}}

    def _decode(self, decode: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
        """The decoder's output, its graph kept as the sampler's `decode` says; zeros for frames that are not chosen."""
        first, chosen, total = sum(map(len, self.decoded)), self.sampler.frames, self.video_length
        self.decoded.append(latents)
        if chosen is None or not total or latents.ndim != 4 or not isinstance(self.pipe.vae, FRAME_BY_FRAME):
            return self._decode_all(decode, latents, *args, **kwargs)
        numbers = set(chosen.of(total))
        kept = [place for place in range(len(latents)) if (first + place) % total in numbers]
        output = self._decode_all(decode, latents[kept or [0]], *args, **kwargs)
        images = seams.first_of(output, "sample")
        whole = images.new_zeros(len(latents), *images.shape[1:])
        if kept:
            whole = whole.index_copy(0, torch.tensor(kept, device=whole.device), images)
        return seams.with_first(output, "sample", whole)

    def _decode_all(self, decode: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
        """The output of the decoder, or of what stands in for it, its graph kept as the sampler's `decode` says."""
        how, network, tiny = self.sampler.decode, self.pipe.vae, self.sampler.decoder
        if tiny is not None:
            network, decode = tiny.vae, tiny.decode
        elif how != "unrecorded" and torch.is_grad_enabled() and types_of(network) != self.decoder_types:
            network = kept_as_it_is(network)
            decode = network.decode
        if how == "tiles":
            return decoded_by_tiles(network, decode, latents, *args, **kwargs)
        return decoded(how, network, decode, latents, *args, **kwargs)

    def _denoise(self, denoiser: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        """A recorded denoiser call, and beside it how far it is from the base model's."""
        how = self.sampler.gradient_checkpointing
        with keeping(how, denoiser):
            output = recorded(how, denoiser, forward, *args, **kwargs)
        self.predicted += [tensor.grad_fn for tensor in seams.tensors_in(output)]
        if self.sampler.base_model is not None and self.caller_records:
            with torch.no_grad(), self.sampler.base_model():
                expected = forward(*args, **kwargs)
            base_model.hold_back(output, expected, self.sampler.kl_relative)
            self.squares.append(base_model.means_between(output, expected))
        return output


def _refused(pipe: Any, error: Exception) -> SamplerError:
    return SamplerError(
        f"its call raised {type(error).__name__} ({one_line(error)})",
        where=type(pipe).__name__,
        next="see what its call takes; the sampler asks for tensors, by output_type: pt",
    )


def _help(helper: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """A network that helps the denoiser along is recorded like it, and does not count as one."""
    return forward(*args, **kwargs)


def reaches(end: Any, nodes: Sequence[Any]) -> bool:
    """Whether the graph behind a node leads to one of the others; a tensor without gradient has None for its node."""
    wanted, seen, open_ends = {node for node in nodes if node is not None}, set(), [end]
    while open_ends:
        node = open_ends.pop()
        if node in wanted:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            open_ends += [before for before, _ in node.next_functions]
    return False


def _frozen(forward: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return forward(*args, **kwargs)


def _one_text(value: Any) -> str | None:
    """The text of a string or of a list that holds one; of anything else None."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if isinstance(value, str) else None
