"""What a recipe's rewards need of its prompts, its method and its training, found before anything loads.

Entries whose rewards live in environments of their own are asked there, and completed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draft_core.errors import DraftError, RecipeError
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import RewardConfig
from draft_core.registry.environments import Place, RewardInEnvironment, described, spec_of
from draft_core.registry.specs import MethodSpec
from draft_core.registry.validation.sections import NEAR
from draft_core.setting import images_per_prompt

SECTIONS = ("rewards", "metrics")


def check_scored(
    recipe: RecipeBase, field: str, prompts: Sequence[str], where: str, only: Sequence[int] | None = None
) -> None:
    """That the rewards or the metrics, or those `only` at some places, can score these prompts."""
    for index, reward in enumerate(getattr(recipe, field)):
        if only is not None and index not in only:
            continue
        try:
            reward.check_prompts(prompts)
        except DraftError as error:
            place = f"{where}, for {field}.{index}" + (f" ({error.where})" if error.where else "")
            raise RecipeError(error.what, where=place, next=error.next) from None


def check_frames(recipe: RecipeBase, where: str) -> None:
    """That the rewards are given as many frames of a video in training as they are to look at."""
    if recipe.train.frames is None or not recipe.method.trains_on_rewards:
        return
    for index, reward in enumerate(recipe.rewards):
        if reward.least_frames > recipe.train.frames.count:
            raise RecipeError(
                f"reward {reward.kind!r} looks at {reward.least_frames} frames of a video, and training decodes "
                f"{recipe.train.frames.count}",
                where=f"{where}: rewards.{index}",
                next=f"let it look at fewer, or set train.frames.count to {reward.least_frames} or more",
            )


def check_surrogates(recipe: RecipeBase, method: MethodSpec, catalog: Catalog, where: str) -> None:
    """That every surrogate is trained on, and divided by what it has."""
    for index, metric in enumerate(recipe.metrics):
        if metric.surrogate is not None:
            raise RecipeError(
                "a metric is not trained on, so that a surrogate would have no effect",
                where=f"{where}: metrics.{index}.surrogate",
                next="leave it out",
            )
    for index, reward in enumerate(recipe.rewards):
        if reward.surrogate is None:
            continue
        if not method.needs_gradient:
            raise RecipeError(
                f"method {method.kind!r} needs no gradient and asks the reward itself, so that a surrogate would have "
                "no effect",
                where=f"{where}: rewards.{index}.surrogate",
                next="leave it out, or take a method whose gradient flows through the reward, such as draft-k",
            )
        if spec_of(reward, catalog).scope == "group":
            raise RecipeError(
                f"the surrogate of {reward.kind!r} sees one image, and the reward compares the images of a prompt",
                where=f"{where}: rewards.{index}.surrogate",
                next="leave it out",
            )
        if columns := list(spec_of(reward, catalog).columns):
            raise RecipeError(
                f"the surrogate of {reward.kind!r} sees images and prompts, and the reward reads column {columns[0]!r}",
                where=f"{where}: rewards.{index}.surrogate",
                next="leave it out",
            )
        if reward.surrogate.space == "latent" and recipe.train.normalize == "gradient":
            raise RecipeError(
                f"the surrogate of {reward.kind!r} looks at latents, and gives images no gradient to be divided by",
                where=f"{where}: train.normalize",
                next=f"use scale, or none, or rewards.{index}.surrogate.space: image",
            )


def within_prompt(reward: RewardConfig, catalog: Catalog) -> bool:
    """Whether the scores that a reward's surrogate learns are compared between images of one prompt alone."""
    pairs = reward.surrogate.pairs if reward.surrogate else "any"
    return pairs == "prompt" or (pairs == "auto" and spec_of(reward, catalog).needs_prompt)


def check_against_exploitation(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    """That what an entry says against exploitation has an effect, and can be computed."""
    for index, metric in enumerate(recipe.metrics):
        for field in _against_exploitation(metric):
            raise RecipeError(
                "a metric is not trained on, so that this would have no effect",
                where=f"{where}: metrics.{index}.{field}",
                next="leave it out",
            )
    for index, reward in enumerate(recipe.rewards):
        spec, place = spec_of(reward, catalog), f"{where}: rewards.{index}"
        for field in _against_exploitation(reward) if not recipe.method.trains_on_rewards else ():
            raise RecipeError(
                f"method {recipe.method.kind!r} scores no image in training, as it is set here",
                where=f"{place}.{field}",
                next="leave it out",
            )
        if reward.worst_within is None:
            continue
        if reward.surrogate is not None:
            problem = "the surrogate is trained on, and the worst is that of the reward itself"
        elif not spec.differentiable:
            problem = f"reward {reward.kind!r} has no gradient, by which the worst is found"
        elif spec.scope == "group":
            problem = f"reward {reward.kind!r} compares the images of a prompt, and the worst is that of one image"
        else:
            continue
        raise RecipeError(problem, where=f"{place}.worst_within", next="leave it out")


def check_gate(
    recipe: RecipeBase, method: MethodSpec, catalog: Catalog, where: str, prompts: Sequence[str], of_prompts: str
) -> None:
    """That the metrics of `regularizers.kl_gate` are there, and can score what is trained on.

    Arguments:
        prompts: of the training, which `of_prompts` names.
    """
    place, kinds = f"{where}: regularizers.kl_gate", [metric.kind for metric in recipe.metrics]
    for kind in recipe.regularizers.kl_gate:
        if kinds.count(kind) != 1:
            problem = f"metrics hold {kinds.count(kind) or 'no'} {kind!r}, and it must be one"
            advice = f"name one of {', '.join(kinds)}" if kinds else "add it to metrics"
        elif recipe.regularizers.kl_gate.count(kind) > 1:
            problem, advice = f"it names {kind!r} twice", "leave one of them out"
        elif not (method.gates_divergence and recipe.method.trains_on_rewards):
            problem = f"method {method.kind!r} does not weigh how far each scored image is from the base model"
            advice = "leave it out, or take another method"
        elif spec_of(recipe.metrics[kinds.index(kind)], catalog).scope == "group":
            problem, advice = f"metric {kind!r} compares the images of a prompt", "name another"
        else:
            continue
        raise RecipeError(problem, where=place, next=advice)
    gating = [index for index, kind in enumerate(kinds) if kind in recipe.regularizers.kl_gate]
    check_scored(recipe, "metrics", prompts, of_prompts, only=gating)


def _against_exploitation(reward: RewardConfig) -> list[str]:
    """The fields of an entry that say how training takes its scores."""
    fields = {"cap": reward.cap is not None, "worst_within": reward.worst_within is not None}
    return [field for field, is_said in fields.items() if is_said]


def check_groups(recipe: RecipeBase, catalog: Catalog, where: str, *, images_evaluated: int) -> None:
    """That rewards which compare the images of a prompt are given several, in training and in evaluations.

    Arguments:
        images_evaluated: of each prompt.
    """
    in_groups = {
        f"{field}.{index}": reward.kind
        for field in ("rewards", "metrics")
        for index, reward in enumerate(getattr(recipe, field))
        if spec_of(reward, catalog).scope == "group"
    }
    if not in_groups:
        return
    compares = f"reward {next(iter(in_groups.values()))!r} compares the images of a prompt"
    if images_evaluated < 2:
        raise RecipeError(
            f"{compares}, and an evaluation has one of each",
            where=f"{where}: evaluation.images_per_prompt",
            next="set it to 2 or more",
        )
    if not (recipe.method.trains_on_rewards and any(place.startswith("rewards") for place in in_groups)):
        return
    if recipe.train.images_per_prompt * images_per_prompt(recipe.model.call) < 2:
        raise RecipeError(
            f"{compares}, and a pass has one of each",
            where=f"{where}: train.images_per_prompt",
            next="set it to 2 or more; it divides train.batch_size",
        )
    if not recipe.method.scores_groups:
        raise RecipeError(
            f"{compares}, and method {recipe.method.kind!r} scores them apart, as it is set here",
            where=f"{where}: method",
            next="set method.minibatches to 1, or take another method",
        )


def are_all_elsewhere(data: Any) -> bool:
    """Whether each reward and metric of a recipe, as YAML says it, has an environment of its own."""
    lists = [data.get(section) for section in SECTIONS] if isinstance(data, Mapping) else []
    entries = [entry for listed in lists if isinstance(listed, list) for entry in listed]
    return bool(entries) and all(isinstance(entry, Mapping) and "environment" in entry for entry in entries)


def check_environments_are_spelt(data: Any, catalog: Catalog, where: str) -> None:
    """That no entry of a kind which is not installed here has a field that is almost called `environment`.

    The kind would else be refused as unknown, though it is right in the environment that was meant.
    """
    for section in SECTIONS if isinstance(data, Mapping) else ():
        listed = data.get(section)
        for index, entry in enumerate(listed if isinstance(listed, list) else ()):
            if not isinstance(entry, Mapping) or "environment" in entry or str(entry.get("kind")) in catalog.rewards:
                continue
            if near := difflib.get_close_matches("environment", map(str, entry), n=1, cutoff=NEAR):
                raise RecipeError(
                    f"unknown field {near[0]!r}",
                    where=f"{where}: {section}.{index}.{near[0]}",
                    next="did you mean 'environment'?",
                )


def with_environments(recipe: RecipeBase, *, where: str, folder: Path, overrides: Sequence[str]) -> RecipeBase:
    """The recipe, each such entry as its environment completes it; no reward is made.

    Arguments:
        where: the recipe, for errors.
        folder: of its file, where relative paths begin.
        overrides: "field=value" from the command line, whose paths begin at the working directory.

    Raises:
        DraftError: if an environment cannot be used, or refuses an entry.
    """
    found: dict[Place, RewardInEnvironment] = {}
    fields: dict[Place, tuple[str, int]] = {}
    for section in SECTIONS:
        for index, config in enumerate(getattr(recipe, section)):
            if isinstance(config, RewardInEnvironment):
                at = f"{section}.{index}"
                whole = any(f"{at}.".startswith(f"{override.partition('=')[0]}.") for override in overrides)
                inner = tuple(it.removeprefix(f"{at}.") for it in overrides if it.startswith(f"{at}."))
                place = Place(f"{where}: {at}", Path.cwd() if whole else folder.absolute(), inner)
                found[place], fields[place] = config, (section, index)
    if not found:
        return recipe
    sections = {section: list(getattr(recipe, section)) for section in SECTIONS}
    for (section, index), complete in zip(fields.values(), described(found), strict=True):
        sections[section][index] = complete
    return recipe.model_copy(update={section: tuple(entries) for section, entries in sections.items()})
