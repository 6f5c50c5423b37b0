"""Held-out images drawn from fixed seeds, and their scores: the library's `evaluate`, which runs and `sample` share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from draft_core.display import MOST, gallery
from draft_core.errors import DraftError, RewardError, SamplerError, list_of_prompts, require_from_one
from draft_core.evaluation import image_measures
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.frames import still
from draft_core.plan import StepPlan
from draft_core.rewards.images import to_pil
from draft_core.rewards.objective import Objective
from draft_core.rewards.protocol import check_takes, scope, takes
from draft_core.sampling.pipelines import call_inputs, has_float16, networks
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import IMAGE_COUNTS


class NotFiniteError(SamplerError):
    """Images of a pipeline that hold NaN or infinite numbers: no score of them means anything."""


@dataclass(frozen=True)
class Evaluation:
    """Images of some prompts and their scores.

    Arguments:
        prompts: P prompts.
        seeds: S seeds; every prompt has one image from each.
        images: (P S, 3, H, W) in [0, 1] on the CPU, those of one prompt side by side; of a video its middle frame.
        scores: reward name -> (P S,) before its weight.
        components: "REWARD: PART" -> (P S,), of the rewards that tell what their score is made of.
        motion: of videos, measure -> (P S,), as `image_measures.motion` gives it; empty of images.
        watched: what `watch` kept of videos, on the CPU; None of images.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor
    scores: Mapping[str, Tensor]
    components: Mapping[str, Tensor] = field(default_factory=dict)
    motion: Mapping[str, Tensor] = field(default_factory=dict)
    watched: Tensor | None = None

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all images."""
        return {name: float(scores.mean()) for name, scores in self.scores.items()}

    def _repr_html_(self) -> str:
        captions = [f"{prompt}, seed {seed}" for prompt in self.prompts for seed in self.seeds][:MOST]
        for name, values in self.scores.items():
            numbers = values[:MOST].tolist()
            captions = [f"{caption}, {name} {it:.4g}" for caption, it in zip(captions, numbers, strict=True)]
        return gallery([*map(to_pil, still(self.images[:MOST]))], captions, of=len(self.images))


def evaluate(
    sampler: DifferentiableSampler,
    rewards: Objective,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = 4,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = lambda part: [part],
    keep: Callable[[Tensor], Tensor] | None = None,
    watch: Callable[[Tensor], Tensor] | None = None,
) -> Evaluation:
    """Images of the pipeline as it is now, one for each prompt and seed, and their scores; builds no graph.

    An image depends on its prompt and its seed alone: plain diffusers makes the same one from
    `pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), ...)`. Where the sampler's call makes several
    images of a prompt, it makes one here: the seeds say how many there are. The sampler's `noise` is left out.

    Arguments:
        sampler: of the pipeline, with or without a LoRA.
        rewards: what scores the images; `Objective({})` for images without scores.
        prompts: P prompts, at least one.
        seeds: S seeds, at least one, whole numbers from 0 to 2^64 - 1.
        batch_size: images made in one call of the pipeline, 1 or more.
        autocast: makes the precision context that each call runs in.
        progress: called with how many images are done, and of how many.
        share: (rank, world size) of this process: it makes every `world size`-th image, from number `rank` on; all
            make equally many, some of them twice where they do not come out even.
        gather: gives what each process made, by rank.
        keep: what is kept of images (N, 3, H, W) or videos (N, F, 3, H, W) after they are scored; `still` if left out.
        watch: what is kept of videos beside that, one row each.

    Returns:
        images (P S, 3, H, W) in [0, 1] on the CPU, of each prompt all seeds in turn; and scores, float32 (P S,), in the
        units of their rewards, before weights.

    Raises:
        DraftError: if `prompts` is one text or `seeds` one number, or there are none of them, or `batch_size` is not
            from 1 on.
        RewardError: if a reward fails or breaks its contract, or takes videos where the model makes images.
        SamplerError: if the pipeline cannot be called so; as `NotFiniteError`, if an image is not finite.
    """
    prompts = list_of_prompts(prompts, where="evaluate")
    if isinstance(seeds, int):
        raise DraftError(f"the seeds are one number, {seeds}", where="evaluate", next="give a list, such as range(4)")
    if not seeds:
        raise DraftError("there are no seeds", where="evaluate", next="give at least one")
    require_from_one(batch_size, where="evaluate: batch_size")
    if batch_size > 1:
        sampler.takes_each  # noqa: B018  found once, and not anew for every copy
    sampler = as_evaluated(sampler)
    if "video" in map(takes, rewards.rewards.values()):
        makes_videos = sampler.traits.frames is not None
        check_takes(dict(rewards.rewards.items()), makes_videos=makes_videos, model=type(sampler.pipe).__name__)
    group_size = _together(rewards, seeds)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    groups = [pairs[first : first + group_size] for first in range(0, len(pairs), group_size)]
    rank, world_size = share
    rounds = math.ceil(len(groups) / world_size)
    own = [groups[(turn * world_size + rank) % len(groups)] for turn in range(rounds)]
    plan = StepPlan(sampler.steps, frozenset())
    images: list[Tensor] = []
    watched: list[Tensor] = []
    numbers: list[tuple[dict[str, Tensor], ...]] = []  # scores, components and motion of a batch
    if world_size > 1 and not _share_calls(pairs, sampler):
        batch_size = 1  # all processes make equally many calls, which sharded denoisers make together
    done = 0

    def drawn(batch: Sequence[tuple[str, int]]) -> Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in batch]
        samples = sampler([prompt for prompt, _ in batch], plan=plan, generator=generators).images
        require_finite_images(samples, sampler.pipe)
        return samples

    # What is scored at once: a batch; where images of a prompt are compared, all of them, whatever the batches.
    scored = own if group_size > 1 else _batches([pair for group in own for pair in group], batch_size, sampler)
    for batch in scored:
        names = [prompt for prompt, _ in batch]
        with torch.no_grad(), autocast():
            parts = [drawn(part) for part in _batches(batch, batch_size, sampler)]
            samples = parts[0] if len(parts) == 1 else torch.cat(parts)
            made = {name: rewards.components_of(name, samples, names, group_size) for name in rewards.rewards}
            of_rewards = {name: of_reward for name, (of_reward, _) in made.items()}
            of_parts = {f"{name}: {part}": of_part for name, (_, of) in made.items() for part, of_part in of.items()}
            levels = samples.float()
            numbers.append((of_rewards, of_parts, image_measures.motion(levels)))
        images.append((keep or still)(levels).cpu())
        if watch is not None and levels.ndim == 5:
            watched.append(watch(levels).cpu())
        done += len(batch)
        progress(min(done * world_size, len(pairs)), len(pairs))
    _require_one_size({size for part in gather([*{image.shape[-2:] for image in images}]) for size in part}, sampler)
    videos = torch.cat(watched) if watched else None
    gathered = gather((torch.cat(images), *map(_joined, zip(*numbers, strict=True)), videos))
    scores, components, motion = (
        {name: _in_order([made[kind][name] for made in gathered], len(pairs), group_size) for name in gathered[0][kind]}
        for kind in (1, 2, 3)
    )
    return Evaluation(
        tuple(prompts),
        tuple(seeds),
        _in_order([made[0] for made in gathered], len(pairs), group_size),
        scores,
        components,
        motion,
        None if videos is None else _in_order([made[4] for made in gathered], len(pairs), group_size),
    )


def _together(rewards: Objective, seeds: Sequence[int]) -> int:
    """How many images of a prompt one process draws and scores together: all where they are compared, else each alone.

    Raises:
        RewardError: if they are compared, and there is one of each prompt.
    """
    compared = [name for name, reward in rewards.rewards.items() if scope(reward) == "group"]
    if compared and len(seeds) < 2:
        raise RewardError(
            "it compares the images of a prompt, and an evaluation with one seed has one of each",
            where=f"reward {compared[0]!r}",
            next="give two seeds or more; in a recipe, evaluation.images_per_prompt",
        )
    return len(seeds) if compared else 1


def _share_calls(pairs: Sequence[tuple[str, int]], sampler: DifferentiableSampler) -> bool:
    """Whether all prompts can be drawn in one call, but for their number."""
    (first, _), *others = pairs
    return all(sampler.columns.may_share_a_call(first, other, lambda: sampler.takes_each) for other, _ in others)


def _require_one_size(sizes: Collection[Sequence[int]], sampler: DifferentiableSampler) -> None:
    """That all images have one height and width: an evaluation compares them with one another."""
    if len(sizes) > 1:
        (height, width), (tall, wide), *_ = sorted(map(tuple, sizes))
        raise SamplerError(
            f"its images are {width} x {height} and {wide} x {tall} pixels, and an evaluation compares images of one "
            "size",
            where=type(sampler.pipe).__name__,
            next="give its prompts images of one size, or say height and width in the call where it takes them",
        )


def _batches(
    pairs: Sequence[tuple[str, int]], batch_size: int, sampler: DifferentiableSampler
) -> Iterator[list[tuple[str, int]]]:
    """The pairs in their order, as many at once as can be drawn in one call: images of one size, say."""
    batch: list[tuple[str, int]] = []
    for pair in pairs:
        fits = not batch or sampler.columns.may_share_a_call(batch[0][0], pair[0], lambda: sampler.takes_each)
        if len(batch) == batch_size or not fits:
            yield batch
            batch = []
        batch.append(pair)
    yield batch


def evaluation_sampler(sampler: DifferentiableSampler, settings: EvaluationSettings) -> DifferentiableSampler:
    """The sampler with the steps and the guidance of the evaluations; where they have none, `sampler` itself.

    Raises:
        SamplerError: if the pipeline's call takes no guidance.
    """
    steps, scale = settings.num_inference_steps, settings.guidance_scale
    if steps is None and scale is None:
        return sampler
    guidance = {} if scale is None else {"guidance_scale": scale}
    if guidance and "guidance_scale" not in call_inputs(sampler.pipe):
        raise SamplerError(
            f"the call of {type(sampler.pipe).__name__} takes no guidance_scale",
            where="evaluation.guidance_scale",
            next="leave it out: evaluations then have the guidance of training",
        )
    return DifferentiableSampler(
        sampler.pipe,
        num_inference_steps=sampler.num_inference_steps if steps is None else steps,
        gradient_checkpointing=sampler.gradient_checkpointing,
        decode=sampler.decode,
        base_model=sampler.base_model,
        columns=sampler.columns,
        **{**sampler.call_kwargs, **guidance},
    )


def as_evaluated(sampler: DifferentiableSampler) -> DifferentiableSampler:
    """The sampler with one image for each prompt and generator, of all frames and the own decoder, without noise."""
    single = copy.copy(sampler)
    single.noise, single.frames, single.decoder = 0.0, None, None
    single.call_kwargs = {**sampler.call_kwargs, **{name: 1 for name in IMAGE_COUNTS if name in sampler.call_kwargs}}
    return single


def require_finite_images(images: Tensor, pipe: Any) -> None:
    """Refuses images of which one holds NaN or an infinite number.

    Raises:
        NotFiniteError: with how many, and what may help.
    """
    bad = int((~images.isfinite().flatten(1).all(1)).sum())
    if not bad:
        return
    raise NotFiniteError(
        f"{bad} of {len(images)} images that it drew are not finite",
        where=type(pipe).__name__,
        next="use bfloat16 or float32 (model.dtype): float16 ends at 65504, and decoders exceed that"
        if has_float16(networks(pipe).values())
        else "look at its weights, its guidance and its other call arguments",
    )


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> the values of all batches, on the CPU."""
    if any(batch.keys() != batches[0].keys() for batch in batches):
        raise RewardError(
            "a reward tells other components of one batch than of another",
            where="evaluation",
            next="its plugin must name the same parts at every call, with NaN where one does not apply",
        )
    return {name: torch.cat([batch[name] for batch in batches]).cpu() for name in batches[0]}


def _in_order(parts: Sequence[Tensor], total: int, group_size: int) -> Tensor:
    """The first `total` of what the processes made by turns, a group at a time, in the order of the pairs."""
    turns = [part.view(-1, group_size, *part.shape[1:]) for part in parts]
    return torch.stack(turns, dim=1).flatten(0, 2)[:total]
