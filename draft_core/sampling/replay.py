"""Steps of a run once more, from latents that the caller gives: what re-noising and other methods are built on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from diffusers.utils.torch_utils import randn_tensor

from draft_core.errors import DraftError, SamplerError
from draft_core.sampling import pipelines, seams
from draft_core.sampling.chain import DryRun
from draft_core.sampling.noise_levels import noise_level, renoised
from draft_core.sampling.pipeline_call import Forward, PipelineCall, Settings
from draft_core.sampling.randomness import Generator, repeated, state_of
from draft_core.sampling.rollout import AnySampler, Origin, Rollout, StepOutput, StepStart, identity
from draft_core.setting import images_per_prompt

# Of latents that are taken for noise alone: the most that x0 may weigh beside it, and their size be off.
PURE = 0.1

Visit = Callable[[StepOutput], None]


class _Over(BaseException):
    """Leaves the pipeline's call once all wanted steps are taken; no pipeline catches it."""


@final
class Replay:
    """The pipeline's call again with all steps but the given ones empty: networks give zeros, latents stay.

    The step before a given one returns the given latents, and puts the scheduler into the state that it had there in
    the run; the first step gets them with its initial latents. The call draws what it drew in the run.

    Arguments:
        origin: of the run.
        given: step number -> latents before it: of the whole batch, or of several such batches in one.
        visit: called at each of these steps, before the scheduler's own; it may backpropagate at once.
    """

    def __init__(self, sampler: Settings, origin: Origin, given: Mapping[int, torch.Tensor], visit: Visit) -> None:
        self.sampler = sampler
        self.pipe = sampler.pipe
        self.origin = origin
        self.given = dict(given)
        self.visit = visit
        self.last = max(self.given)
        self.decodes = False
        self.copies = len(self.given[self.last]) // len(origin.latents)
        self.encoded = iter(origin.encoded)
        self.number = 0
        self.stub: Any = None  # a step's output, whose latents are replaced
        self.call: PipelineCall

    def images(self) -> torch.Tensor:
        """The images that the last step leads to, (N, 3, H, W) in [0, 1]; it must be among the given ones."""
        self.decodes = True
        images: torch.Tensor = self._run()
        return images

    def steps(self) -> None:
        """The given steps, and nothing decoded."""
        try:
            self._run()
        except _Over:
            return

    def _run(self) -> Any:
        prompts = None if self.origin.prompts is None else list(self.origin.prompts) * self.copies
        origin = self.origin
        noise = repeated(origin.generator, origin.noise_state, len(origin.latents), self.copies, origin.drawn)
        with noise as generator:
            self.call = PipelineCall(self.sampler, prompts, generator)
            return self.call.run(self)

    def records(self) -> bool:
        """What belongs to a given step, and the decoding after the last."""
        return self.number in self.given

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """For a batch `copies` times as large; without the decoder where no images are wanted."""
        origin, first = self.origin, self.given.get(0)
        if self.copies > 1:
            embedded = self.sampler.call_kwargs.get("prompt_embeds")
            prompts = embedded if origin.prompts is None else origin.prompts
            whole = {"generator", *self.sampler.columns.arguments}  # of as many prompts as there are here already
            lengths = {len(origin.latents)} | (set() if prompts is None else {len(prompts)})
            arguments = {
                name: value if name in whole else _repeated(name, value, self.copies, lengths)
                for name, value in arguments.items()
            }
        if first is not None and pipelines.is_modular(self.pipe):  # no method there to replace
            arguments["latents"] = first / getattr(self.pipe.scheduler, "init_noise_sigma", 1.0)
        return arguments if self.decodes else {**arguments, **pipelines.undecoded(self.pipe)}

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """The initial latents, where the first step is given."""
        return [(self.pipe, "prepare_latents", self._prepare)] if 0 in self.given else []

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own at given steps; at others the latents stay, or become those of the next."""
        number, sample = self.number, call.sample
        if number in self.given:
            if number == 0:
                self._check_start(sample)
            self.visit(StepOutput(self.pipe.scheduler, number, call, self.sampler.noise))
            if number == self.last:
                if not self.decodes:
                    raise _Over
                return self.call.stepped(call)
            sample = sample.detach()
        self.number += 1
        stub = None
        if self.number in self.given:
            start = self._start(self.number)
            assert start.state is not None
            memory = seams.repeated(start.state, self.origin.latents.shape, self.copies)
            seams.restore_memory(pipelines.remembering(self.pipe), memory)
            sample = self.given[self.number]
            stub = start.output
        if stub is None:
            stub = self._start(min(number for number in self.given if number >= self.number)).output
        stub = seams.repeated(stub, self.origin.latents.shape, self.copies)
        return seams.with_first(stub, "prev_sample", sample)

    def _start(self, number: int) -> StepStart:
        return self.origin.starts[number]

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """With gradient at given steps; zeros at others."""
        if self.number in self.given:
            return record(args, kwargs)
        shapes = seams.shapes_of(seams.denoiser_input(args, kwargs))
        blanks = self.origin.blanks
        if (network, shapes) not in blanks:  # a larger batch than the run's
            enlarged = (
                _enlarged(blank, recorded, shapes, self.copies)
                for (known, recorded), blank in blanks.items()
                if known is network
            )
            blanks[network, shapes] = next(blank for blank in enlarged if blank is not None)
        return blanks[network, shapes]

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returned in the run; for a larger batch what it returns now."""
        return encode() if self.copies > 1 else next(self.encoded)

    def _check_start(self, latents: torch.Tensor) -> None:
        """The first step has none before it to hand the latents in by, and a call may not take them as they are."""
        given = self.given[0]
        same_shape = latents.shape == given.shape
        if not same_shape or not torch.allclose(latents.to(given.dtype), given, rtol=1e-2, atol=1e-3):
            raise SamplerError(
                "its first step cannot be started from given latents",
                where=type(self.pipe).__name__,
                next="replay later steps; for re-noising use two steps or more",
            )

    def _prepare(self, prepare_latents: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_latents(*args, **kwargs)
        if isinstance(prepared, torch.Tensor):
            return self.given[0]
        return (self.given[0], *prepared[1:])  # packed latents come with their position ids


def outline(
    sampler: Settings, prompts: Sequence[str] | None, steps: int, generator: Generator, blanks: dict[Any, Any]
) -> Rollout:
    """A run without its networks and without images: what replays need to start any step from latents of elsewhere.

    Arguments:
        prompts: B prompts.
        steps: T of the sampler.
        generator: as in the sampler's call; what is re-noised draws from it afterwards.
        blanks: of earlier outlines by this sampler, or empty; a network of unknown output is called once, and added.
    """
    noise_state, made_by = state_of(generator), identity(sampler)
    dry = DryRun(sampler, prompts, blanks, noted=range(steps), generator=generator)
    with torch.no_grad():
        dry.run()
    origin = Origin(
        prompts=prompts,
        generator=generator,
        noise_state=noise_state,
        latents=dry.latents,
        starts=dry.starts,
        encoded=dry.encoded,
        blanks=blanks,
        first=dry.first,
        made_by=made_by,
    )
    return Rollout(dry.latents.new_empty(0), (), sample_count=0, origin=origin)


def keeps_apart(sampler: AnySampler) -> bool:
    """Whether a call of two prompts gives each of them its own value of the sampler's columns.

    The inputs of its networks are compared: those of one prompt must not change with the value of the other. Some calls
    read a list as several values for one prompt, or only its first item, and others refuse it.
    """
    trial, blanks = copy.copy(sampler), dict[Any, Any]()
    vars(trial)["takes_each"] = True
    with pipelines.without_traces(trial.pipe):
        for real in (False, True):  # some look into their networks
            try:
                seen = [_inputs_of(trial, rows, blanks, real) for rows in trial.columns.tried()]
            except (DraftError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError):
                continue
            return len({len(inputs) for inputs in seen}) == 1 and all(map(_is_apart, *seen))
    return False


def _inputs_of(sampler: Settings, rows: Sequence[str], blanks: dict[Any, Any], real: bool) -> list[torch.Tensor]:
    """What the networks are given in a call of two prompts, each tensor with its rows in the order of the prompts."""
    torch.manual_seed(0)
    images = len(rows) * images_per_prompt(sampler.call_kwargs)
    generators = [torch.Generator().manual_seed(number) for number in range(images)]
    noting = _Noting(DryRun(sampler, rows, blanks, real=real, generator=generators), images)
    noting.dry.call.run(noting)
    return noting.inputs


class _Noting:
    """A dry run that notes what the networks are given."""

    def __init__(self, dry: DryRun, images: int) -> None:
        self.dry = dry
        self.images = images
        self.inputs: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dry, name)

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            tensors = [tensor.float().cpu() for tensor in seams.tensors_in(value)]
            if isinstance(value, list) and len({tensor.shape for tensor in tensors}) == 1:  # one for each image
                tensors = [torch.stack(tensors)]
            self.inputs += [_by_image(tensor, self.images) for tensor in tensors]
        return self.dry.network(network, record, forward, args, kwargs)


def _by_image(tensor: torch.Tensor, images: int) -> torch.Tensor:
    """(rows of an image, images, ...) of a batch or of several in one; without a row for each image (1, 1, ...)."""
    if tensor.ndim and len(tensor) and len(tensor) % images == 0:
        return tensor.view(-1, images, *tensor.shape[1:])
    return tensor[None, None]


def _is_apart(same: torch.Tensor, mixed: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether in (a, b) the first half is that of (a, a), and the second that of (b, b); either of the images in each
    batch, or of all rows, where those of one image follow each other."""
    if not same.shape == mixed.shape == other.shape:
        return False
    images = same.shape[1]
    if images == 1:
        return _close(same, mixed) and _close(mixed, other)
    half, whole = images // 2, [tensor.flatten(0, 1) for tensor in (same, mixed, other)]
    middle = len(whole[0]) // 2
    in_batches = _close(same[:, :half], mixed[:, :half]) and _close(mixed[:, half:], other[:, half:])
    return in_batches or (_close(whole[0][:middle], whole[1][:middle]) and _close(whole[1][middle:], whole[2][middle:]))


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal but for the rounding of kernels."""
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()) if first.numel() else 0.0)


def unvisited(output: StepOutput) -> None:
    """A visit that does nothing."""


def renoise(sampler: Settings, rollout: Rollout, number: int, x0: torch.Tensor) -> torch.Tensor:
    """alpha x0 + sigma eps at the level of a step that the rollout kept; as `renoised_start`."""
    assert rollout.origin is not None
    with seams.in_use(sampler.pipe, pipelines.steered(sampler.pipe), before_call=True):
        return renoised_start(sampler, rollout.origin, number, x0)


def renoised_start(
    sampler: Settings, origin: Origin, number: int | None = None, x0: torch.Tensor | None = None
) -> torch.Tensor:
    """alpha x0 + sigma eps, like x0, at the noise level from which a step starts.

    Arguments:
        number: of the step, kept by the run; the last one if left out.
        x0: shaped like the run's latents; those after its last step if left out.
    """
    remembering = pipelines.remembering(sampler.pipe)
    x0 = origin.latents if x0 is None else x0
    start = origin.last if number is None else origin.starts[number]
    scale = _noise_scale(sampler, origin)
    noise = randn_tensor(x0.shape, generator=origin.generator, device=x0.device, dtype=x0.dtype)
    if start.state is not None:  # sigma schedulers look their level up by the current index
        seams.restore_memory(remembering, start.state)
    return renoised(sampler.pipe.scheduler, x0, start.timestep, noise if scale == 1 else scale * noise)


def _noise_scale(sampler: Settings, origin: Origin) -> float:
    """The deviation of the noise in the pipeline's latents, which its scheduler does not know: `noise_scale` of PRX.

    Raises:
        SamplerError: if the chain starts from noise of another size than this says.
    """
    pipe, start = sampler.pipe, origin.first
    declared = float(getattr(getattr(pipe, "config", None), "noise_scale", 1.0))
    if start is None or start.state is None or sampler.call_kwargs.get("latents") is not None:
        return declared
    seams.restore_memory(pipelines.remembering(pipe), start.state)
    alpha, sigma = noise_level(pipe.scheduler, start.timestep, start.latents)
    if bool(alpha > PURE * sigma):  # it starts from an image
        return declared
    found = float(start.latents.float().square().mean().sqrt() / sigma)
    if abs(found / declared - 1) > PURE + 4 / math.sqrt(2 * start.latents.numel()):
        raise SamplerError(
            f"its chain starts from noise {found:.2g} times as large as its scheduler's level, so that the level to "
            "re-noise to is not known",
            where=type(pipe).__name__,
            next="use a method without re-noising",
        )
    return declared


def _enlarged(blank: Any, recorded: tuple[torch.Size, ...], shapes: tuple[torch.Size, ...], copies: int) -> Any:
    """The blank output that belongs to an input of these shapes, from one that belongs to the recorded, or None.

    Each shape must be the recorded one, or that of `copies` batches; or the recorded ones come `copies` times.
    """
    if shapes == recorded * copies:
        return seams.listed(blank, copies)
    pairs = zip(shapes, recorded, strict=False)
    fits = all(
        shape == before or (len(before) and shape == (copies * before[0], *before[1:])) for shape, before in pairs
    )
    if not fits or len(shapes) != len(recorded):
        return None
    return seams.mapped(lambda zero: zero[:1].expand(len(zero) * copies, *zero.shape[1:]), blank)


def _repeated(name: str, value: Any, copies: int, lengths: set[int]) -> Any:
    """An argument of the call, repeated if it holds one item for each prompt or image; prompts are repeated already."""
    if isinstance(value, list) and len(value) not in lengths:  # an image for each of several networks, say
        return [_repeated(name, item, copies, lengths) if isinstance(item, torch.Tensor) else item for item in value]
    if name == "prompt" or pipelines.length(value) not in lengths or isinstance(value[0], (int, float)):
        return value
    return value * copies if isinstance(value, list) else value.repeat(copies, *[1] * (value.ndim - 1))
