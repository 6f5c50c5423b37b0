"""The differentiable sampler: a step plan, run through the pipeline's own call.

No family's loop is written again here. The pipeline's `__call__`, without its `torch.no_grad`, is the
sampler; its seams switch recording on for the planned steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, get_args

import torch
from diffusers import AutoencoderTiny

from draft_core.errors import SamplerError
from draft_core.frames import FrameChoice
from draft_core.plan import Renoising, StepPlan, check_choice, check_whole
from draft_core.rewards.columns import CallColumns
from draft_core.sampling import pipelines, seams
from draft_core.sampling.call_traits import CallTraits, batchable, check_recorded, has_density, step_size
from draft_core.sampling.chain import PlannedRun, See, ShortRun, lengths, unseen, watched
from draft_core.sampling.decoders.checks import check_decoder
from draft_core.sampling.decoders.tiny import TinyDecoder
from draft_core.sampling.noise_levels import check_eta
from draft_core.sampling.pipeline_call import Checkpointing, Decode
from draft_core.sampling.randomness import Generator, checked_source
from draft_core.sampling.replay import Replay, Visit, keeps_apart, renoised_start, unvisited
from draft_core.sampling.rollout import Origin, Rollout, check_given, check_same_sampler, starting_from
from draft_core.setting import RECOMPUTING, SCHEDULES

NO_RENOISING = Renoising()
NO_COLUMNS = CallColumns()


class DifferentiableSampler:
    """Prompts to images, by any diffusers pipeline, with gradient where a plan asks for it.

    Samples are bit-identical to `pipe(prompts, num_inference_steps=..., generator=..., **call_kwargs)`, unless
    `decode` is "sliced" or "tiles". One negative prompt stands for each prompt, as a list, which most calls make of it
    themselves; where one leaves it alone (HunyuanVideo), samples are those of the call with the list. The gradient
    reaches whatever parameters of denoiser and decoder require it; text encoders are never recorded, and under
    `torch.no_grad` nothing is.

    Arguments:
        pipe: a diffusers pipeline, classic or modular, with a scheduler and a denoiser (`unet` or `transformer`).
        num_inference_steps: as in the pipeline's call; None for a call that takes none.
        gradient_checkpointing: recompute each recorded denoiser call in the backward pass, so that a grad step stores
            its input only; "lean" likewise, keeping less at a time; equal but for last bits "halves", one half of the
            batch after the other, and "sliced", one row of it; "blocks" one block of the denoiser; "selective" what
            costs next to nothing, `recomputing.selective`.
        decode: "whole" stores all that the decoder's backward pass needs, for all images; "selective" recomputes of it
            what costs next to nothing, "blocks" one block after another, and "checkpointed" all of it at once; "sliced"
            recomputes one image at a time, and the last bit may differ; "tiles" one tile of it, where the decoder works
            in tiles. "unrecorded" leaves images without gradient, for who takes that of `Rollout.decoded`.
        base_model: makes a context inside which the denoiser is the untuned one; with it each rollout carries its
            `divergence` from that.
        noise: 0 leaves the scheduler's steps as they are. Up to 1 it is the eta of the general step
            (`noise_levels.gaussian_between`), which a scheduler that draws no noise then takes in the place of its own:
            samples are other than the pipeline's, of the same distribution up to the size of the steps.
        frames: of videos, those that are decoded with a gradient and returned; None for all. Where the decoder takes
            frames one by one (AutoencoderKL), it is given these alone, and the last bit may differ.
        columns: arguments of the call for which each prompt, a `PromptRow`, has a value of its own.
        decoder: decodes in the place of the pipeline's own decoder, which `evaluate` takes all the same.
        call_kwargs: passed to every pipeline call (guidance_scale, height, negative_prompt, prompt_embeds, image, ...).

    Attributes:
        kl_relative: `base_model.hold_back`'s share at each recorded call; a trainer's, and 0 before.

    Raises:
        SamplerError: if the pipeline cannot be driven, a keyword is not one its call takes, `num_inference_steps` is
            not a whole number from 1 on, `noise` is outside 0..1, or `decode` or `gradient_checkpointing` is none of
            their values.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        num_inference_steps: int | None,
        gradient_checkpointing: Checkpointing = False,
        decode: Decode = "whole",
        base_model: Callable[[], AbstractContextManager[Any]] | None = None,
        noise: float = 0.0,
        frames: FrameChoice | None = None,
        columns: CallColumns = NO_COLUMNS,
        decoder: AutoencoderTiny | None = None,
        **call_kwargs: Any,
    ) -> None:
        pipelines.check_drivable(pipe)
        pipelines.check_keywords(pipe, {**call_kwargs, **columns.names}, takes_steps=num_inference_steps is not None)
        if num_inference_steps is not None:
            check_whole("DifferentiableSampler.num_inference_steps", num_inference_steps, at_least=1)
        check_choice("decode", decode, get_args(Decode))
        check_choice("gradient_checkpointing", gradient_checkpointing, get_args(Checkpointing))
        check_decoder(pipe, decode, decoder)
        blocks = decode == "blocks" and decoder is None  # which a tiny one has
        pipelines.check_blocks(pipe, denoisers=gradient_checkpointing == "blocks", decoder=blocks)
        self.pipe = pipe
        self.num_inference_steps = num_inference_steps
        self.gradient_checkpointing, self.decode = gradient_checkpointing, decode
        self.base_model, self.kl_relative = base_model, 0.0
        check_eta(noise, where="DifferentiableSampler.noise")
        self.noise = noise
        self.frames, self.columns = frames, columns
        self.decoder = None if decoder is None else TinyDecoder(decoder)
        self.call_kwargs = call_kwargs

    @property
    def steps(self) -> int:
        """T, the `scheduler.step` calls of one run, counted in a dry run that calls each network once.

        A whole number of 1 or more; more than `num_inference_steps` for second-order schedulers, and fewer where the
        call starts from an image.

        Raises:
            SamplerError: if the call takes no step of the pipeline's scheduler, or refuses its arguments.
        """
        return self.traits.steps

    @cached_property
    def traits(self) -> CallTraits:
        """What the pipeline's call was seen to do in a run that calls the real denoiser only once."""
        return self.watch()

    @cached_property
    def noisy_steps(self) -> frozenset[int]:
        """The steps that draw noise, the scheduler's own or `noise`: those that have a log-probability.

        Raises:
            SamplerError: if `call_traits.has_density` refuses a step.
        """
        noisy = set[int]()

        def see(number: int, call: seams.StepCall) -> None:
            source = torch.Generator().manual_seed(number)  # a prediction of zeros would hide what a step remembers
            prediction = torch.randn(call.model_output.shape, generator=source).to(call.model_output)
            if has_density(self.pipe.scheduler, seams.with_prediction(call, prediction), self.noise):
                noisy.add(number)

        self.watch(see)
        return frozenset(noisy)

    @cached_property
    def step_sizes(self) -> tuple[float, ...]:
        """h_t of each step x_{t+1} = x_t + h_t v_t, T numbers: of a flow's Euler steps the differences of noise levels.

        Raises:
            SamplerError: if the steps draw noise, or do anything else (`call_traits.step_size`).
        """
        if self.noise:
            raise SamplerError("its steps draw noise", where="DifferentiableSampler.noise", next="set it to 0")
        sizes = dict[int, float]()
        self.watch(lambda number, call: sizes.update({number: step_size(self.pipe.scheduler, call)}))
        return tuple(sizes[number] for number in range(len(sizes)))

    @cached_property
    def takes_each(self) -> bool:
        """Whether the call takes a list of values for `columns`, one for each prompt; found by a call of two."""
        return not self.columns.names or keeps_apart(self)

    def watch(self, see: See = unseen) -> CallTraits:
        """What a run shows that calls the real denoiser only once, and `see` each of its steps."""
        if self.decoder is not None:
            self.decoder.fit(self)
        errors: list[Exception] = []
        with pipelines.without_traces(self.pipe):
            for real in (False, True):  # some look into their networks
                for batch in [1, *lengths(self.call_kwargs)]:  # an `image` of two items, say, may need two prompts
                    try:
                        return self._stepping(watched(self, batch, see, real=real))
                    except Exception as error:
                        errors.append(error)
        raise errors[0]

    def _stepping(self, traits: CallTraits) -> CallTraits:
        if not traits.steps:
            raise SamplerError(
                "its call takes no step of its own scheduler" + (", it steps copies of it" * traits.two_streams),
                where=type(self.pipe).__name__,
                next="use a pipeline whose call steps `pipe.scheduler` itself",
            )
        return traits

    def __call__(
        self,
        prompts: Sequence[str] | None = None,
        *,
        plan: StepPlan,
        renoising: Renoising = NO_RENOISING,
        generator: Generator = None,
        latents: torch.Tensor | None = None,
    ) -> Rollout:
        """The images of one run of `plan`, recorded as it says, the re-noised ones behind the samples.

        Arguments:
            prompts: B prompts; None where `call_kwargs` carries prompt embeddings instead.
            plan: which steps are recorded, of T = `self.steps`.
            renoising: how many re-noised copies follow the samples; steps and drift in it are for the trainer.
            generator: source of the initial noise, as in the pipeline's call, and after it of the re-noisings;
                None takes the one in `call_kwargs`, or torch's global state.
            latents: to start from in the place of drawn noise, as the pipeline's call takes them: in its shape, before
                they are scaled to the first noise level. The gradient reaches them if step 0 is a grad step.

        Raises:
            SamplerError: if the plan's length is not the scheduler's, the call gives no image tensor, or it cannot
                start from the latents or give them the gradient that they require.
        """
        passes = list(self.passes(prompts, plan=plan, renoising=renoising, generator=generator, latents=latents))
        divergences = [rollout.divergence for rollout in passes if rollout.divergence is not None]
        decoded = [rollout.decoded for rollout in passes if rollout.decoded is not None]
        return Rollout(
            images=torch.cat([rollout.images for rollout in passes]),
            prompts=tuple(prompt for rollout in passes for prompt in rollout.prompts),
            sample_count=passes[0].sample_count,
            divergence=torch.stack(divergences).mean() if divergences else None,
            latents=passes[0].latents,
            decoded=torch.cat(decoded) if len(decoded) == len(passes) else None,
            trajectory=passes[0].trajectory,
            origin=passes[0].origin,
        )

    def passes(
        self,
        prompts: Sequence[str] | None = None,
        *,
        plan: StepPlan,
        renoising: Renoising = NO_RENOISING,
        generator: Generator = None,
        latents: torch.Tensor | None = None,
    ) -> Iterator[Rollout]:
        """The samples, unless the plan's prefix is short, and then the re-noised copies.

        Each is made when it is asked for, so that one can be backpropagated before the next is made.

        Arguments:
            prompts, plan, renoising, generator, latents: as in `__call__`.

        Raises:
            SamplerError: as in `__call__`.
        """
        if isinstance(prompts, str) or (prompts is not None and not len(prompts)):
            raise SamplerError(f"prompts is {prompts!r}", where="prompts", next="give a list of one or more strings")
        if prompts is not None and "prompt" not in pipelines.call_inputs(self.pipe):
            raise SamplerError(
                "its call takes no prompt", where=type(self.pipe).__name__, next="give None in the place of the prompts"
            )
        if plan.steps != self.steps:
            raise SamplerError(
                f"the plan is for {plan.steps} steps, {type(self.pipe).__name__} takes {self.steps}",
                where="plan",
                next="make the plan with `method.plan(sampler.steps, rng)`",
            )
        if latents is not None:
            started = starting_from(self, latents)
            yield from started.passes(prompts, plan=plan, renoising=renoising, generator=generator)
            return
        generator = checked_source(generator, self.call_kwargs.get("generator"))
        renoising.check_follows(plan)
        check_recorded(self.call_kwargs.get("latents"), plan)
        self.traits.check_plan(self.pipe, plan, renoising, recomputes=self.gradient_checkpointing in RECOMPUTING)
        if plan.prefix is None:
            run = PlannedRun(self, prompts, plan, generator)
            samples = run.sample()
            origin = run.origin()
            yield Rollout(
                samples,
                pipelines.prompt_of_each(prompts, len(samples)),
                sample_count=len(samples),
                latents=None if origin is None else origin.latents,
                **run.call.seen(),
                trajectory=tuple(run.trajectory),
                origin=origin,
            )
            del samples, run  # or their graph would live as long as the re-noisings are made
            if not renoising.copies:
                return
        else:
            origin = self._short_origin(prompts, plan, generator)
        assert origin is not None  # a chain that is left early is refused above
        yield from self._renoisings(origin, renoising)

    def replay(
        self, rollout: Rollout, given: Mapping[int, torch.Tensor], visit: Visit = unvisited, *, decode: bool = False
    ) -> torch.Tensor | None:
        """Takes steps of a run again from given latents, through the pipeline's own call; other steps cost nothing.

        The call draws what it drew in the run, whatever that was for. Autograd records the given steps if the caller
        records; what `visit` backpropagates at once needs the memory of one denoiser call.

        Arguments:
            rollout: of this sampler, by a plan with `keep_trajectory` unless only the last step is given.
            given: step number -> latents before it, of shape, type and device of `rollout.latents`, or several such
                batches in one.
            visit: called at each of these steps with its `StepOutput`.
            decode: return the images that the last step leads to, (N, 3, H, W) in [0, 1]; it must be given.

        Returns:
            The images, or None without `decode`.

        Raises:
            SamplerError: if the run did not keep one of these steps, was sampled with another pipeline, scheduler or
                keywords, or cannot be replayed; if latents are of another shape, type or device than the run's; if
                `visit` samples with the same pipeline.
        """
        origin = _rollout(rollout).origin
        if not callable(visit):
            raise SamplerError(f"visit is {visit!r}", where="visit", next="give a function of a `StepOutput`, or none")
        if origin is None:
            raise SamplerError(
                "it was left early, or holds re-noised images alone",
                where="rollout",
                next="replay what `sampler(...)` gave for a plan without stop_at",
            )
        sampler = starting_from(self, origin.made_by.get("latents"))
        check_same_sampler(origin, sampler)
        check_given(origin, given, decode=decode)
        self.traits.check_replay(self.pipe)
        replay = Replay(sampler, origin, given, visit)
        if decode:
            return replay.images()
        replay.steps()
        return None

    def _short_origin(self, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> Origin:
        if names := [name for name in SCHEDULES if self.call_kwargs.get(name) is not None]:
            raise SamplerError(
                f"the call is given its {names[0]}, so its prefix cannot have a schedule of its own",
                where=type(self.pipe).__name__,
                next="leave them out, or use a method that runs the whole chain",
            )
        return ShortRun(self, prompts, plan, generator).origin()

    def _renoisings(self, origin: Origin, renoising: Renoising) -> Iterator[Rollout]:
        with seams.in_use(self.pipe, pipelines.steered(self.pipe), before_call=True):
            noisy = [renoised_start(self, origin) for _ in range(renoising.copies)]
        for batch in [torch.cat(noisy)] if renoising.batched and noisy else noisy:
            replay = Replay(self, origin, {origin.last.number: batch}, unvisited)
            with batchable(self.pipe) if replay.copies > 1 else nullcontext():
                images = replay.images()
            names = pipelines.prompt_of_each(origin.prompts, len(images) // replay.copies) * replay.copies
            yield Rollout(images, names, sample_count=0, **replay.call.seen())


def _rollout(value: Any) -> Rollout:
    if not isinstance(value, Rollout):
        raise SamplerError(f"it is a {type(value).__name__}", where="rollout", next="give what `sampler(...)` returned")
    return value
