"""Loads a recipe file as a validated recipe, checks what its types cannot say, and writes it as YAML again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel

from draft_core.errors import DraftError, PluginError, RecipeError, one_line, raised, short
from draft_core.prompt_rows import TEXTS, row_key
from draft_core.recipe.columns import readers, with_absolute_rows
from draft_core.recipe.paths import base_of, with_absolute_paths
from draft_core.recipe.resolve import locate_decoder, locate_pretrained, resolve_evaluation, training_prompts
from draft_core.recipe.rewards import (
    are_all_elsewhere,
    check_against_exploitation,
    check_environments_are_spelt,
    check_frames,
    check_gate,
    check_groups,
    check_scored,
    check_surrogates,
    with_environments,
)
from draft_core.recipe.schema import LARGEST_FLOAT, LARGEST_INTEGER, RecipeBase, recipe_type
from draft_core.recipe.yaml_text import dump_yaml, plain_copy, read_yaml, set_field
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import MethodConfig
from draft_core.registry.environments import spec_of
from draft_core.registry.validation.messages import validate
from draft_core.setting import IN_PARTS, SCHEDULES, PromptFile, images_per_prompt

# What the sampler is given beside the arguments of the call.
OF_SAMPLER = (
    "pipe",
    "num_inference_steps",
    "guidance_scale",
    "gradient_checkpointing",
    "decode",
    "decoder",
    "base_model",
    "noise",
)


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, catalog: Catalog | None = None
) -> RecipeBase:
    """The validated recipe of a YAML file or a mapping, with `overrides` laid over it.

    Its paths are absolute, and what they name is there. They begin at the recipe's folder; those of a mapping and of
    `overrides` at the working directory. No weight is loaded.

    Arguments:
        source: a YAML file's path, or the parsed mapping.
        overrides: "train.steps=50", "rewards.0.quality=90": values are YAML.
        catalog: what can be named; None takes what is installed.

    Raises:
        RecipeError: if it cannot be read or run; the message names the field.
        PluginError: if it names a reward that is not installed.
    """
    catalog = catalog if catalog is not None else load_catalog()
    name, base, data = ("recipe", Path(), source) if isinstance(source, Mapping) else read_yaml(Path(source))
    data = plain_copy(data)
    for override in overrides:
        set_field(data, override)
    try:
        check_environments_are_spelt(data, catalog, name)
        type_ = recipe_type(catalog, needs_rewards=not are_all_elsewhere(data))
        recipe: RecipeBase = validate(type_, data, catalog, where=name)
        recipe = with_absolute_paths(
            recipe, base_of(base, overrides), where=name, names=_names_that_are_no_paths(catalog)
        )
        recipe = with_environments(recipe, where=name, folder=base, overrides=overrides)
        recipe = _with_prompts_of_method(_with_call_of_alias(recipe, catalog), name)
        recipe = _with_absolute_rows(recipe, catalog, base_of(base, overrides), name)
        _check(recipe, catalog, name)
    except DraftError as error:
        if missing := _missing(data.get("versions"), catalog):
            raise type(error)(
                error.what,
                where=error.where,
                next=f"install what the run was made with: pip install {' '.join(missing)}",
            ) from None
        raise
    return recipe


def _with_call_of_alias(recipe: RecipeBase, catalog: Catalog) -> RecipeBase:
    """What a plugin says that suits its pipeline, where the recipe says nothing else."""
    model = recipe.model
    if model.pretrained not in catalog.pretrained:
        return recipe
    spoken = catalog.pretrained[model.pretrained].spec.call
    call = {name: value for name, value in spoken.items() if name not in model.columns}
    own = {name: call.pop(name) for name in ("num_inference_steps", "guidance_scale") if name in call}
    data = {name: getattr(model, name) for name in model.model_fields_set}
    said = {name for name, value in data.items() if value is not None}
    data.update({name: value for name, value in own.items() if name not in said})
    complete = type(model).model_validate({**data, "call": {**call, **model.call}})
    return recipe.model_copy(update={"model": complete})


def _with_prompts_of_method(recipe: RecipeBase, where: str) -> RecipeBase:
    """With the prompts in the file that the method names, where it names one.

    Raises:
        RecipeError: if the recipe says others, or none and the method neither.
    """
    file = recipe.method.prompt_file
    if file is None:
        if "prompts" in recipe.model_fields_set:
            return recipe
        raise RecipeError("the field is missing", where=f"{where}: prompts", next="give a list, or a file of prompts")
    if "prompts" not in recipe.model_fields_set:
        return recipe.model_copy(update={"prompts": PromptFile(file=str(file))})
    if str(file) not in (recipe.prompts, getattr(recipe.prompts, "file", None)):
        raise RecipeError(
            f"method {recipe.method.kind!r} trains on the prompts in {file.name}",
            where=f"{where}: prompts",
            next="leave them out",
        )
    return recipe


def _with_absolute_rows(
    recipe: RecipeBase, catalog: Catalog, folder_of: Callable[[str], Path], where: str
) -> RecipeBase:
    try:
        return with_absolute_rows(recipe, readers(recipe, catalog), folder_of)
    except RecipeError as error:
        raise RecipeError(error.what, where=f"{where}: {error.where}", next=error.next) from None


def dump_recipe(recipe: BaseModel) -> str:
    """The recipe as YAML, defaults written out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_none=True))


# What validation alone cannot see


def _check(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    if "\0" in str(recipe.output):
        raise RecipeError("a folder's name cannot hold a zero byte", where=f"{where}: output", next="name another")
    for path, number in _numbers(recipe.model_dump()):
        if abs(number) > (LARGEST_FLOAT if isinstance(number, float) else LARGEST_INTEGER):
            raise RecipeError(
                f"{short(repr(number))} is larger than a run can compute with",
                where=f"{where}: {path}",
                next="give a smaller number",
            )
    if own := [name for name in OF_SAMPLER if name in recipe.model.call]:
        raise RecipeError(
            f"{own[0]!r} cannot be given there",
            where=f"{where}: model.call",
            next=f"write model.{own[0]}" if own[0] in type(recipe.model).model_fields else "leave it out",
        )
    for name, value in recipe.model.call.items():
        if TEXTS.fullmatch(name) and isinstance(value, list) and len(value) != 1:
            raise RecipeError(
                f"it has {len(value)} texts, and which image would get which is left open",
                where=f"{where}: model.call.{name}",
                next="give one text: it stands for every prompt",
            )
    whole = [name for name in SCHEDULES if recipe.model.call.get(name) is not None]
    if whole and recipe.evaluation and recipe.evaluation.num_inference_steps is not None:
        raise RecipeError(
            f"model.call.{whole[0]} says which steps the sampler takes",
            where=f"{where}: evaluation.num_inference_steps",
            next="leave one of them out",
        )
    prompts = f"{where}: {recipe.method.prompt_file or 'prompts'}"
    trained = training_prompts(recipe, catalog, where=prompts)
    try:
        recipe.method.check_prompts(trained.columns)
    except DraftError as error:
        raise RecipeError(error.what, where=prompts, next=error.next) from None
    if recipe.method.trains_on_rewards:
        check_scored(recipe, "rewards", trained.prompts, prompts)
    evaluation, held_out = resolve_evaluation(recipe, catalog, where=f"{where}: ", whole=True)
    if recipe.held_out_prompts is not None:
        for field in ("rewards", "metrics"):
            check_scored(recipe, field, held_out, f"{where}: evaluation.prompts")
        seen = {(row_key(prompt), getattr(prompt, "folder", None)) for prompt in trained.prompts}
        if both := [prompt for prompt in held_out if (row_key(prompt), getattr(prompt, "folder", None)) in seen]:
            raise RecipeError(
                f"{len(both)} of its prompts are also trained on, first {both[0]!r}",
                where=f"{where}: evaluation.prompts",
                next="evaluate on prompts that are not trained on",
            )
    method = catalog.method(recipe.method.kind).spec
    check_frames(recipe, where)
    check_surrogates(recipe, method, catalog, where)
    check_against_exploitation(recipe, catalog, where)
    check_groups(recipe, catalog, where, images_evaluated=evaluation.images_per_prompt)
    for index, reward in enumerate(recipe.rewards if method.needs_gradient else ()):
        if not spec_of(reward, catalog).differentiable and reward.surrogate is None:
            trainable = [kind for kind, entry in catalog.rewards.items() if entry.spec.differentiable]
            methods = [kind for kind, entry in catalog.methods.items() if not entry.spec.needs_gradient]
            or_method = f"take a method that needs none ({', '.join(methods)}), " if methods else ""
            raise RecipeError(
                f"reward {reward.kind!r} has no gradient, which method {method.kind!r} needs",
                where=f"{where}: rewards.{index}.kind",
                next=f"{or_method}set surrogate, or train on one of "
                f"{', '.join(trainable)}, and name {reward.kind!r} under metrics",
            )
    if recipe.train.normalize != "none" and not recipe.method.trains_on_rewards:
        raise RecipeError(
            f"method {method.kind!r} scores no image in training, as it is set here",
            where=f"{where}: train.normalize",
            next="leave it out",
        )
    if recipe.train.normalize == "gradient" and not method.needs_gradient:
        raise RecipeError(
            f"method {method.kind!r} takes no gradient of the rewards",
            where=f"{where}: train.normalize",
            next="use scale, or none",
        )
    of_each_prompt = recipe.train.images_per_prompt * images_per_prompt(recipe.model.call)
    try:
        recipe.method.check_batch(recipe.train.batch_size, of_each_prompt)
    except RecipeError as error:
        raise RecipeError(error.what, where=f"{where}: {error.where}", next=error.next) from None
    check_gate(recipe, method, catalog, where, trained.prompts, prompts)
    if recipe.regularizers.kl and not method.yields_divergence:
        raise RecipeError(
            f"method {method.kind!r} does not say how far it is from the base model, so the term would have no effect",
            where=f"{where}: regularizers.kl",
            next="leave it out, or use lora_norm",
        )
    if recipe.regularizers.kl_relative and not method.trains_through_sampler:
        raise RecipeError(
            f"method {method.kind!r} does not backpropagate the scores through the sampler",
            where=f"{where}: regularizers.kl_relative",
            next="leave it out, or use kl or lora_norm"
            if method.yields_divergence
            else "leave it out, or use lora_norm",
        )
    _check_sharding(recipe, where)
    _check_plan(recipe, catalog, where)
    locate_pretrained(recipe.model.pretrained, catalog, where=f"{where}: model.pretrained")
    if recipe.model.decoder is not None:
        if not recipe.method.trains_on_rewards:
            raise RecipeError(
                f"method {method.kind!r} decodes no image in training, as it is set here",
                where=f"{where}: model.decoder",
                next="leave it out",
            )
        locate_decoder(recipe.model.decoder, where=f"{where}: model.decoder")
    try:
        dump_recipe(recipe).encode()
    except Exception as error:  # `model.call` may hold whatever YAML can say; pydantic and ruamel.yaml raise many kinds
        raise RecipeError(
            f"it cannot be written down again ({short(one_line(error))})",
            where=f"{where}: model.call",
            next="give numbers, texts, lists and mappings",
        ) from error


def _check_sharding(recipe: RecipeBase, where: str) -> None:
    """That the denoiser is none that cannot be spread over processes."""
    model = recipe.model
    kept_whole = {
        "users": (model.users is not None, "attention to users is"),
        "quantization": (model.quantization is not None, "quantised weights are"),
        "compile": (model.compile != "none", "compiled blocks are"),
        "gradient_checkpointing": (
            model.gradient_checkpointing in IN_PARTS,
            "calls that are computed again in one piece or by parts of a batch are",
        ),
    }
    for field, (is_said, what) in kept_whole.items() if recipe.train.sharding != "none" else ():
        if is_said:
            raise RecipeError(
                f"{what} not spread over processes",
                where=f"{where}: train.sharding",
                next=f"leave it out, or leave out model.{field}",
            )


def _check_plan(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    """That the method can use this number of steps, or the number that a scheduler may make of it."""
    steps = recipe.model.num_inference_steps
    try:
        if (refusal := _refusal(recipe.method, steps)) and not _refusal(recipe.method, _most_steps(steps)):
            refusal = None
    except Exception as error:  # of a plugin's method, or of the plan that it makes
        entry = catalog.method(recipe.method.kind)
        reason = error.what if isinstance(error, DraftError) else raised(error)
        raise PluginError(
            f"{recipe.method.kind!r} of {entry.distribution} makes no plan for {steps} sampler steps ({short(reason)})",
            where=f"{where}: method",
            next="change its fields or model.num_inference_steps, or tell its author",
        ) from error
    if refusal:
        raise RecipeError(refusal.what, where=f"{where}: {refusal.where}", next=refusal.next)


def _most_steps(inference_steps: int) -> int:
    """The most calls of `scheduler.step`: Heun's two a step but for the last, or PNDM's twelve before it settles."""
    return max(2 * inference_steps - 1, inference_steps + 9)


def _refusal(method: MethodConfig, steps: int) -> RecipeError | None:
    """Why the method cannot use this number of steps."""
    try:
        method.check_steps(steps)
    except RecipeError as error:
        return error
    return None


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers inside a value, each with the fields that lead to it."""
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{path}.{key}".lstrip("."))


def _missing(versions: Any, catalog: Catalog) -> list[str]:
    """What a run names among its versions and is no longer installed, as pip takes it."""
    if not isinstance(versions, dict):
        return []
    installed = {canonicalize_name(str(distribution.name)) for distribution in importlib.metadata.distributions()}
    here = {"python", *catalog.versions(), *installed}
    return [f"{name}=={version}" for name, version in versions.items() if canonicalize_name(str(name)) not in here]


def _names_that_are_no_paths(catalog: Catalog) -> Mapping[str, Collection[str]]:
    lists = catalog.prompt_lists()
    return {"model.pretrained": catalog.pretrained, "prompts": lists, "evaluation.prompts": lists}
