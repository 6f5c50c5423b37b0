"""A method that trains on learnt stand-ins of some rewards, and keeps these fitted to the rewards meanwhile."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from statistics import fmean
from typing import Any

import torch

from draft_core.errors import RewardError, SamplerError
from draft_core.learners.learner import Batch, Learner, Loss, Ranks, Score
from draft_core.plan import StepPlan
from draft_core.rewards.objective import NOTHING, Objective, Scores
from draft_core.sampling.randomness import from_seed
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import images_per_prompt
from draft_core.surrogates.fitting import rank_correlation
from draft_core.surrogates.prompt_features import PromptFeatures
from draft_core.surrogates.surrogate import Scored, Surrogate

OF_EACH = 4  # images of one prompt in the warm-up, so that some can be compared
TEACHER, AGREEMENT = "{} itself", "{} rank agreement"  # names of numbers in `StepReport.learner`


@dataclass
class Judged:
    """The first images of a pass, which surrogates have scored and the rewards themselves may.

    Arguments:
        images: (N, 3, H, W) in [0, 1], detached.
        prompts: N.
        inputs: reward name -> what its surrogate saw, as that remembers it.
        guesses: reward name -> its surrogate's scores, (N,).
    """

    images: torch.Tensor
    prompts: Sequence[str]
    inputs: Mapping[str, torch.Tensor]
    guesses: Mapping[str, torch.Tensor]


class SurrogateLearner:
    """Another learner, whose gradient is that of surrogates; the rewards themselves only judge.

    Before the first update the rewards score samples of the model, and each surrogate is fitted to those of its own.
    Then, every `refresh` updates, they score the first images of each pass, and the surrogates are fitted again after
    the first loss of it. All processes fit the same network to the images of all.

    Arguments:
        learner: the method, one that backpropagates through the rewards.
        surrogates: reward name -> its surrogate.
        objective: the rewards; those without a surrogate are trained on themselves.
        prompts: of the training; the warm-up draws from them.
        seed: of the run.
        batch_size: images in one call of the warm-up.
    """

    def __init__(
        self,
        learner: Learner,
        surrogates: Mapping[str, Surrogate],
        objective: Objective,
        *,
        prompts: Sequence[str],
        seed: int,
        batch_size: int,
    ) -> None:
        self.learner, self.surrogates, self.objective = learner, dict(surrogates), objective
        self.prompts, self.seed, self.batch_size = prompts, seed, batch_size
        self.needs_gradient, self.yields_divergence = learner.needs_gradient, learner.yields_divergence
        self.needs_base_model = getattr(learner, "needs_base_model", False)
        self.gates_divergence = getattr(learner, "gates_divergence", False)
        self.trains_through_sampler = getattr(learner, "trains_through_sampler", False)
        self.of_latents = [name for name, it in self.surrogates.items() if it.settings.space == "latent"]
        self.looks_at_latents_alone = len(self.of_latents) == len(objective.rewards)
        self.features: PromptFeatures | None = None

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a sampler that the method, or a surrogate, cannot be trained with.

        Raises:
            SamplerError: if it makes videos, or has no `vae` whose input is the latents of a surrogate.
            DraftError: as the method's own check.
        """
        if check := getattr(self.learner, "check", None):
            check(sampler)
        pipe = type(sampler.pipe).__name__
        if hasattr(sampler.pipe, "video_processor"):
            raise SamplerError(
                f"a surrogate looks at images, and {pipe} makes videos",
                where=f"reward {next(iter(self.surrogates))!r}: surrogate",
                next="leave it out, or train on the reward by a method that needs no gradient",
            )
        if self.of_latents and not hasattr(getattr(sampler.pipe, "vae", None), "decode"):
            raise SamplerError(
                f"{pipe} has no vae.decode whose latents it could look at",
                where=f"reward {self.of_latents[0]!r}: surrogate.space",
                next="use image",
            )
        if self.looks_at_latents_alone and sampler.decode != "whole":
            raise SamplerError(
                "nothing is decoded with a gradient, as all rewards have surrogates that look at latents",
                where="model.decode",
                next="leave it out",
            )
        self._features(sampler)

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """Those of the method, by the surrogates' scores.

        The first one carries what the rewards themselves said of its images: their mean, the surrogate's rank
        correlation with them before it was fitted to them (Spearman's), and how many images they scored.
        """
        asked, notes = 0, list[str]()
        if not all(surrogate.network for surrogate in self.surrogates.values()):
            asked = self._warm_up(batch, sampler, notes)
            notes += self._notes(sampler)
        judged: list[Judged] = []
        drawn = _without_recorded_decoder(sampler) if self.looks_at_latents_alone else sampler
        new: dict[str, Scored] = {}
        for number, loss in enumerate(self.learner.losses(batch, drawn, partial(self._score, sampler, score, judged))):
            if number:
                yield loss
                continue
            report: dict[str, float] = {}
            due = [name for name, it in self.surrogates.items() if _is_due(it, batch.update)]
            if judged and due:
                new = {name: self._refreshed(name, judged[0], batch.ranks, report, notes) for name in due}
                if len(self.surrogates) == len(self.objective.rewards):  # else `score` has counted these images
                    asked += len(judged[0].images)
            yield replace(
                loss, report={**loss.report, **report}, notes=[*loss.notes, *notes], queries=loss.queries + asked
            )
            for name, rows in new.items():
                self.surrogates[name].learn(rows, self._features(sampler))
                _make_equal(self.surrogates[name], batch.ranks)

    def _score(
        self,
        sampler: DifferentiableSampler,
        score: Score,
        judged: list[Judged],
        images: torch.Tensor,
        prompts: Sequence[str],
        *,
        latents: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] = NOTHING,
    ) -> Scores:
        """The score that the method is given: surrogates' in the place of their rewards'."""
        self._require_latents(latents)
        features = self._features(sampler)(prompts)
        guesses, inputs = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        with torch.autocast(images.device.type, enabled=False):
            for name, surrogate in self.surrogates.items():
                surrogate.to(images.device)
                seen = surrogate.input_of(images, latents)
                guesses[name] = surrogate.score(seen, None if features is None else features.to(seen.device))
                inputs[name] = seen
        if not judged:
            kept = {name: self.surrogates[name].remembered(seen) for name, seen in inputs.items()}
            judged.append(Judged(images.detach(), prompts, kept, {name: it.detach() for name, it in guesses.items()}))
        return score(images, prompts, latents=latents, known={**known, **guesses})

    def _require_latents(self, latents: torch.Tensor | None) -> None:
        if self.of_latents and latents is None:
            raise RewardError(
                "it is not known which latents the images were decoded from",
                where=f"reward {self.of_latents[0]!r}: surrogate.space",
                next="use image",
            )

    def _asked(self, name: str, images: torch.Tensor, prompts: Sequence[str]) -> list[float]:
        """What the reward itself says."""
        with torch.no_grad():
            scores: list[float] = self.objective.scores_of(name, images, prompts).tolist()
        return scores

    def _refreshed(self, name: str, judged: Judged, ranks: Ranks, report: dict[str, float], notes: list[str]) -> Scored:
        """What the reward itself says of the images of a pass, and what is reported of that."""
        scores = self._asked(name, judged.images, judged.prompts)
        guesses = [value for part in ranks.gather(judged.guesses[name].tolist()) for value in part]
        rows = _pooled(judged.inputs[name], judged.prompts, scores, ranks)
        finite = [place for place, value in enumerate(rows.scores) if math.isfinite(value)]
        known = [rows.scores[place] for place in finite]
        if known:
            report[TEACHER.format(name)] = fmean(known)
        agreement = rank_correlation([guesses[place] for place in finite], known)
        if math.isfinite(agreement):
            report[AGREEMENT.format(name)] = agreement
        return _sound(name, rows, notes)

    def _warm_up(self, batch: Batch, sampler: DifferentiableSampler, notes: list[str]) -> int:
        """Fits every surrogate to samples of the model; how many images this process had scored.

        Raises:
            RewardError: if nothing can be learnt from a reward's scores of them.
        """
        ranks, copies = batch.ranks, images_per_prompt(sampler.call_kwargs)
        wanted = {name: math.ceil(it.settings.warmup / copies) for name, it in self.surrogates.items()}
        most, of_each = max(*wanted.values(), ranks.world_size), max(1, OF_EACH // copies)
        draws = Random(f"warm-up {self.seed}")
        chosen = [draws.choice(self.prompts) for _ in range(0, most, of_each)]
        seeds = [draws.getrandbits(62) for _ in range(most)]
        own = range(most * ranks.rank // ranks.world_size, most * (ranks.rank + 1) // ranks.world_size)
        inputs: dict[str, list[torch.Tensor]] = {name: [] for name in self.surrogates}
        texts: dict[str, list[str]] = {name: [] for name in self.surrogates}
        scores: dict[str, list[float]] = {name: [] for name in self.surrogates}
        asked = 0
        for first in range(0, len(own), self.batch_size):
            items = own[first : first + self.batch_size]
            rollout = _drawn(
                sampler, [chosen[item // of_each] for item in items], [seeds[item] for item in items], copies
            )
            self._require_latents(rollout.decoded)
            asked += len(rollout.images)
            for name, surrogate in self.surrogates.items():
                count = max(0, min(items.stop, wanted[name]) - items.start) * copies
                seen = surrogate.input_of(rollout.images, rollout.decoded)
                inputs[name].append(surrogate.remembered(seen)[:count])
                texts[name] += rollout.prompts[:count]
                scores[name] += self._asked(name, rollout.images[:count], rollout.prompts[:count]) if count else []
        for name, surrogate in self.surrogates.items():
            rows = _sound(name, _pooled(torch.cat(inputs[name]), texts[name], scores[name], ranks), notes)
            if not surrogate.can_learn_from(rows):
                raise RewardError(
                    f"its surrogate has nothing to learn from: the scores of {len(rows.scores)} samples of the model "
                    "do not differ where they are compared",
                    where=f"reward {name!r}",
                    next="raise surrogate.warmup, or set surrogate.pairs to any",
                )
            surrogate.begin(rows, self._features(sampler), rollout.images.device)
            _make_equal(surrogate, ranks)
        return asked

    def _features(self, sampler: DifferentiableSampler) -> PromptFeatures:
        if self.features is None:
            self.features = PromptFeatures(sampler.pipe)
        return self.features

    def _notes(self, sampler: DifferentiableSampler) -> list[str]:
        """What the user did not ask for."""
        notes = []
        if self.looks_at_latents_alone:
            notes.append(
                "nothing is decoded with a gradient: every reward has a surrogate that looks at latents; images are "
                "decoded without one"
            )
        if missing := self._features(sampler).missing:
            notes.append(f"surrogates do not see the prompts: {missing}")
        return notes

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """The method's own; surrogates have an optimiser of their own."""
        return self.learner.modules()

    def state_dict(self) -> Mapping[str, Any]:
        """What the method remembers, and of every surrogate its network, optimiser and scored images."""
        surrogates = {name: surrogate.state_dict() for name, surrogate in self.surrogates.items()}
        return {"method": self.learner.state_dict(), "surrogates": surrogates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        self.learner.load_state_dict(state["method"])
        for name, surrogate in self.surrogates.items():
            surrogate.load_state_dict(state["surrogates"][name])


def _is_due(surrogate: Surrogate, update: int) -> bool:
    refresh = surrogate.settings.refresh
    return refresh > 0 and (update + 1) % refresh == 0


def _without_recorded_decoder(sampler: DifferentiableSampler) -> DifferentiableSampler:
    sampler.traits  # noqa: B018  found once, and not anew for every copy
    undecoded = copy.copy(sampler)
    undecoded.decode = "unrecorded"
    return undecoded


def _drawn(sampler: DifferentiableSampler, prompts: Sequence[str], seeds: Sequence[int], copies: int) -> Rollout:
    """Samples without gradient, `copies` of each prompt; only the first of a call's global draws is seeded."""
    generators = [
        torch.Generator("cpu").manual_seed(Random(f"copy {seed} {copy}").getrandbits(62))
        for seed in seeds
        for copy in range(copies)
    ]
    with torch.no_grad(), from_seed(seeds[0]):
        return sampler(prompts, plan=StepPlan(sampler.steps, frozenset()), generator=generators)


def _pooled(inputs: torch.Tensor, prompts: Sequence[str], scores: Sequence[float], ranks: Ranks) -> Scored:
    """The scored images of all processes, by rank."""
    parts = ranks.gather((inputs, list(prompts), list(scores)))
    return Scored(
        torch.cat([seen for seen, _, _ in parts]),
        [text for _, texts, _ in parts for text in texts],
        [value for _, _, values in parts for value in values],
    )


def _sound(name: str, rows: Scored, notes: list[str]) -> Scored:
    """Those with finite latents and scores."""
    seen = rows.inputs.float().isfinite().flatten(1).all(1).tolist()
    kept = [place for place, score in enumerate(rows.scores) if seen[place] and math.isfinite(score)]
    if missing := len(rows.scores) - len(kept):
        notes.append(f"the surrogate of {name!r} does not learn from {missing} images whose scores are not finite")
    return Scored(rows.inputs[kept], [rows.prompts[place] for place in kept], [rows.scores[place] for place in kept])


def _make_equal(surrogate: Surrogate, ranks: Ranks) -> None:
    """The mean over processes, which have computed the same but for what a GPU leaves open."""
    assert surrogate.network is not None
    if ranks.world_size > 1:
        for weight in surrogate.network.parameters():
            weight.data = ranks.mean(weight.data)
