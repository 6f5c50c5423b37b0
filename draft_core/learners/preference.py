"""Diffusion-DPO: the denoiser gets better at the preferred of two images, and worse at the other, than the base model.

Wallace et al. 2024, arXiv 2311.12908, after Rafailov et al. 2023, arXiv 2305.18290; with `loss: ipo` Azar et al. 2023,
arXiv 2310.12036. The pairs come from a file, or are the best and the worst of a prompt's own samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from torch.nn.functional import logsigmoid

from draft_core.errors import RecipeError, SamplerError
from draft_core.learners.latents.encode import ImageEncoder
from draft_core.learners.learner import Batch, Loss, Score
from draft_core.learners.path_samples import PathSample
from draft_core.learners.recorded_runs import apart, record
from draft_core.learners.regression import Regression, outline_of, regress
from draft_core.preferences import TIE, preferences
from draft_core.prompt_rows import row_key
from draft_core.rewards.image_files import image_size, read_image
from draft_core.rewards.images import resize_like_pil
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import images_per_prompt


class PreferenceSettings(Protocol):
    """What the method's config says, `registry.gradient_free.DPO`."""

    pairs: Path | None
    loss: str
    beta: float
    fits: int
    levels: int


@dataclass(frozen=True)
class LatentPair:
    """Two finished latents of one prompt.

    Arguments:
        prompt: of both.
        winner, loser: (...), on the CPU.
        grade: probability that the winner is preferred, from 0.5, a tie, to 1.
        seed: what is drawn for the pair depends on this.
        counts: false for one that stands in where a process has none.
    """

    prompt: str
    winner: torch.Tensor
    loser: torch.Tensor
    grade: float
    seed: int
    counts: bool = True


class PreferenceLearner:
    """The margin of each pair is raised: how much more the tuned model prefers the winner than the base model does.

    With e the mean squared error of a prediction on a re-noised image, d = e - e_base, and the same noise and level for
    both images, the margin is z = -beta / 2 (d_winner - d_loser). The loss is f(z) = -log sigmoid(z), or (z - 1/2)^2
    with ipo; of a pair with the grade g it is g f(z) + (1 - g) f(-z), so that a tie pulls the margin to 0. What is
    compared is the prediction after guidance, by which samples are drawn.
    """

    needs_gradient = False
    yields_divergence = True
    needs_base_model = True

    def __init__(self, settings: PreferenceSettings) -> None:
        self.settings = settings
        self.blanks: dict[Any, Any] = {}  # of outlines
        self.encoder: ImageEncoder | None = None
        self.sizes: dict[Path, tuple[int, int]] = {}  # of the images of a file of pairs

    def check_columns(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Refuses pairs of which an image cannot be read.

        Raises:
            DraftError: naming the first such file.
        """
        if self.settings.pairs is not None:
            for pair in preferences(columns, self.settings.pairs.parent):
                for image in (pair.winner, pair.loser):
                    if image not in self.sizes:
                        self.sizes[image] = image_size(image)

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a sampler whose steps cannot be repeated from given images.

        Raises:
            SamplerError: if there is no base model, or images of a file cannot be encoded.
            RecipeError: if a call makes several images of a prompt, or has fewer steps than `levels`.
        """
        sampler.traits.check_replay(sampler.pipe)
        if images_per_prompt(sampler.call_kwargs) > 1:
            raise RecipeError(
                "the method pairs images one by one, and a call makes several of each prompt",
                where="model.call",
                next="leave that out; train.images_per_prompt says how many of its own samples are ranked",
            )
        if sampler.base_model is None:
            raise SamplerError(
                "the sampler knows no base model to compare with",
                where="DifferentiableSampler.base_model",
                next="give it one",
            )
        if self.settings.levels > sampler.steps:
            raise RecipeError(
                f"levels = {self.settings.levels} is larger than the number of sampler steps, {sampler.steps}",
                where="method.levels",
                next=f"use {sampler.steps} or less, or raise model.num_inference_steps",
            )
        if self.settings.pairs is not None and self.encoder is None:
            self.encoder = ImageEncoder(sampler)

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """`fits` optimiser steps on the pairs of a batch, each at `levels` noise levels.

        Every loss reports the mean `margin` of its pairs without ties, and their `agreement`: the share of them whose
        margin is positive, one of zero counting half. Its divergence is the mean squared difference between the
        predictions of tuned and base denoiser.
        """
        self.check(sampler)
        sampler, base = apart(sampler)
        of_all = self._of_file(batch) if self.settings.pairs is not None else self._of_samples(batch, sampler, score)
        pairs = of_all[batch.ranks.rank]
        rollout = self._outline(sampler, pairs, batch.update)
        assert rollout.origin is not None
        latents = [pair.winner for pair in pairs] + [pair.loser for pair in pairs]
        x0 = torch.stack(latents).to(rollout.origin.latents)
        counts = [sum(pair.counts for pair in part) for part in of_all]
        share = counts[batch.ranks.rank] * len(counts) / max(sum(counts), 1)
        for _ in range(self.settings.fits if sum(counts) else 1):
            steps = batch.rng.sample(range(sampler.steps), self.settings.levels)
            regressions = regress(sampler, base, rollout, x0, steps)
            value, report = self._loss(pairs, regressions)
            yield Loss(
                value,
                share=share,
                step=True,
                images=counts[batch.ranks.rank],
                divergence=_mean_divergence(regressions),
                report=report,
                notes=self._notes(batch.update),
            )

    def _of_file(self, batch: Batch) -> list[list[LatentPair]]:
        """The pairs of a batch, encoded, for this process; of the others only how many they are."""
        assert self.settings.pairs is not None
        assert self.encoder is not None
        pairs = []
        given = preferences(batch.columns, self.settings.pairs.parent)
        for prompt, pair, generator in zip(batch.prompts, given, batch.generators, strict=True):
            winner, loser = (self._encoded(image) for image in (pair.winner, pair.loser))
            pairs.append(LatentPair(prompt, winner, loser, pair.grade, generator.initial_seed()))
        return [pairs] * batch.ranks.world_size  # batches of all processes are equally large

    def _encoded(self, file: Path) -> torch.Tensor:
        """The latents of an image, (...), on the CPU; it is scaled to cover the size, and cropped in the middle."""
        assert self.encoder is not None
        image, (height, width) = read_image(file), self.encoder.size
        if image.shape[-2:] != (height, width):
            factor = max(height / image.shape[-2], width / image.shape[-1])
            tall, wide = max(round(image.shape[-2] * factor), height), max(round(image.shape[-1] * factor), width)
            top, left = (tall - height) // 2, (wide - width) // 2
            image = resize_like_pil(image, tall, wide)[..., top : top + height, left : left + width]
        return self.encoder(image)[0].cpu()

    def _of_samples(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> list[list[LatentPair]]:
        """The best against the worst sample of every prompt, dealt out to the processes.

        Raises:
            RecipeError: if no prompt has two images.
        """
        (rollout,) = record(sampler, batch, keep_trajectory=False)
        with torch.no_grad():
            rewards = score(rollout.images, rollout.prompts).total.tolist()
        assert rollout.latents is not None
        seeds = [generator.initial_seed() for generator in batch.generators]
        own = list(map(PathSample, rollout.prompts, seeds, rewards, rollout.latents.cpu().unbind()))
        groups: dict[str, list[PathSample]] = {}
        for sample in [sample for part in batch.ranks.gather(own) for sample in part]:
            groups.setdefault(row_key(sample.prompt), []).append(sample)
        if all(len(group) < 2 for group in groups.values()):
            raise RecipeError(
                "no prompt of a pass has two images, which are compared with one another",
                where="train.images_per_prompt",
                next="set it to 2 or more",
            )
        pairs = [pair for group in groups.values() if (pair := _best_and_worst(group)) is not None]
        blank = LatentPair(own[0].prompt, own[0].latents, own[0].latents, TIE, own[0].seed, counts=False)
        world_size = batch.ranks.world_size
        return [pairs[rank::world_size] or [blank] for rank in range(world_size)]

    def _outline(self, sampler: DifferentiableSampler, pairs: Sequence[LatentPair], update: int) -> Rollout:
        """Of the prompts of all winners, then of all losers, with the same noise for both of a pair."""
        seeds = [Random(f"pair {pair.seed} {update}").getrandbits(62) for pair in pairs]
        return outline_of(sampler, 2 * [pair.prompt for pair in pairs], 2 * seeds, self.blanks)

    def _loss(
        self, pairs: Sequence[LatentPair], regressions: Sequence[Regression]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean over the pairs that count, (), with gradient, and what is reported of them."""
        moved = torch.stack([level.errors - level.base_errors for level in regressions]).mean(0)
        winner, loser = moved.chunk(2)
        margins = -self.settings.beta / 2 * (winner - loser)
        grades, counts = (margins.new_tensor([getattr(pair, name) for pair in pairs]) for name in ("grade", "counts"))
        losses = preference_loss(margins, grades, self.settings.loss)
        value = (counts * losses).sum() / counts.sum().clamp(min=1)
        clear = margins.detach()[(grades > TIE) & (counts > 0)]
        if not len(clear):
            return value, {}
        return value, {
            "margin": float(clear.mean()),
            "agreement": float((clear.sign() / 2 + 0.5).mean()),
        }

    def _notes(self, update: int) -> list[str]:
        """What a person should know of a training on a file of pairs, when it begins."""
        if update or self.settings.pairs is None or self.encoder is None:
            return []
        notes = [f"trained on the pairs in {self.settings.pairs.name} alone: the rewards judge the evaluations"]
        height, width = self.encoder.size
        if other := sum(size != self.encoder.size for size in self.sizes.values()):
            notes.append(
                f"{other} of {len(self.sizes)} images of pairs are scaled and cropped to {width} x {height} pixels"
            )
        return notes

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """None: the adapter is all that is trained."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing of `state`: there is none."""


def preference_loss(margins: torch.Tensor, grades: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of each pair, (B,), with the gradient of its margin.

    Arguments:
        margins: z, (B,), positive where the winner is preferred.
        grades: probability that it should be, (B,), from 0.5 to 1.
        kind: "sigmoid", -log sigmoid(z), or "ipo", (z - 1/2)^2; each in expectation over z and -z by the grade.
    """
    if kind == "ipo":
        return margins.square() - (2 * grades - 1) * margins + 0.25
    return -grades * logsigmoid(margins) - (1 - grades) * logsigmoid(-margins)


def _best_and_worst(group: Sequence[PathSample]) -> LatentPair | None:
    """The pair of a prompt, a tie where all its rewards are equal; None of fewer than two that are finite."""
    ranked = sorted((sample for sample in group if math.isfinite(sample.reward)), key=lambda sample: sample.reward)
    if len(ranked) < 2:
        return None
    worst, best = ranked[0], ranked[-1]
    grade = 1.0 if best.reward > worst.reward else TIE
    return LatentPair(best.prompt, best.latents, worst.latents, grade, best.seed)


def _mean_divergence(regressions: Sequence[Regression]) -> torch.Tensor | None:
    found = [level.divergence for level in regressions if level.divergence is not None]
    return torch.stack(found).mean() if found else None
