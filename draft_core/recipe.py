"""The recipe: everything one run needs, in one YAML file, validated whole before anything is built.

The type is made from the catalog, one union of all installed rewards, so that a misspelt field of a
plugin is found here and an editor can complete it from `draft schema`. Names wing, no torch here.
May import: errors, config, catalog, estimators.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails, PydanticCustomError

from draft_core.catalog import Catalog, load_catalog
from draft_core.config import Config, EstimatorConfig, Field, RewardConfig
from draft_core.errors import DraftError, PluginError, RecipeError
from draft_core.estimators import DraftLV

MOST_STEPS = 10_000  # of a sampler; pipelines are trained on 1000
MOST = 100_000  # images of one pass, passes of one update, or ranks of a LoRA
LARGEST_INTEGER = 2**63 - 1  # of a tensor
LARGEST_FLOAT = 2.0**128 * (1 - 2.0**-24)  # single precision, which a run computes in
LARGEST_SEED = 2**62  # what is added to it still fits torch's generators
DEEPEST = 64  # nested levels of a recipe's YAML
LARGEST = 100_000  # values in a recipe's YAML, each alias counted as what it stands for
SHOWN = 200  # characters of a value in an error
UNDER_WAY = (0, 0)


Beta = Annotated[float, Field(ge=0, lt=1)]


def _no(value: Any) -> Any:
    """The word "no" where a YAML parser took it for false."""
    return "no" if value is False else value


class LoraConfig(Config):
    """The LoRA that is trained (Hu et al. 2022, arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=MOST, description="Rank r of the two factors.")
    alpha: float | None = Field(None, gt=0, description="Scale is alpha / rank; left out, the scale is 1.")
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Name endings of the denoiser's layers to adapt, linear or convolutional; left out, all attention.",
    )


class ModelConfig(Config):
    """The pipeline to tune, and how it samples."""

    pretrained: str = Field(
        description="An alias from a plugin (emoji), a folder in diffusers' format, or a hub name (org/model)."
    )
    num_inference_steps: int = Field(20, ge=1, le=MOST_STEPS, description="Sampler steps, as in the pipeline's call.")
    guidance_scale: float | None = Field(None, ge=0, description="As in the call; left out, the pipeline's default.")
    call: dict[str, Any] = Field({}, description="Further arguments of the call, such as height or negative_prompt.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the frozen weights; the LoRA is always float32."
    )
    gradient_checkpointing: bool | Literal["selective", "blocks"] = Field(
        False,
        description="Recompute graded denoiser calls in the backward pass, one more call each: with `true` at once, so "
        "that many graded steps take no more memory than one; with `blocks` one block after another, which takes least "
        "for few graded steps. `selective` recomputes norms, activations and casts alone: half the memory of a UNet.",
    )
    decode: Literal["whole", "selective", "blocks", "checkpointed", "sliced"] = Field(
        "whole",
        description="How the decoder's backward pass gets what it needs: stored for all pictures; norms and "
        "activations recomputed, which halves it; recomputed one block after another; recomputed at once; or at once "
        "for one picture at a time, which is equal but for the last bits.",
    )
    tiled_decode: bool = Field(
        False, description="Decode in overlapping tiles, for large pictures; the seams are blended, so pixels change."
    )
    remember_prompts: bool = Field(
        False,
        description="Encode each prompt once, by itself, and remember it; on a GPU the text encoders then stay in main "
        "memory. In batches of several prompts the samples may differ in the last bits from the pipeline's own call.",
    )
    lora: LoraConfig = Field(LoraConfig(), description="The LoRA that is trained.")


class RegularizersConfig(Config):
    """What holds the tuned model near the base model; each is a weight, and 0 leaves the term out."""

    kl: float = Field(
        0.0,
        ge=0,
        description="Mean squared difference between tuned and base denoiser along the graded steps (DRaFT+). Costs "
        "one more denoiser call for each graded one, and no memory for a second model.",
    )
    lora_norm: float = Field(0.0, ge=0, description="Squared Frobenius norm of what the LoRA adds to the weights.")


class TrainConfig(Config):
    """The optimisation: AdamW on the LoRA."""

    steps: int = Field(100, ge=1, description="Number of updates.")
    batch_size: int = Field(8, ge=1, le=MOST, description="Prompts in one pass, one image each.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MOST, description="Passes in one update.")
    learning_rate: float = Field(4e-4, gt=0, description="Rate after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Updates over which the rate rises linearly.")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's averaging factors.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decoupled decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients with a larger L2 norm are scaled down to it.")
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no)] = Field(
        "no", description="Autocast around sampling and scoring."
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="With `full` each of several processes holds a part of the frozen denoiser (FSDP2), gathered block "
        "by block while it computes: less memory, more traffic. The LoRA stays whole.",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Of prompts, noise and plans.")
    normalize: Literal["none", "scale", "gradient"] = Field(
        "none",
        description="What each reward is divided by before its weight: nothing, the running spread of its scores, or "
        "the running norm of its gradient in the picture, so that rewards of different units can be weighed.",
    )
    max_skipped: int = Field(
        10,
        ge=0,
        description="So many optimiser steps may be skipped for numbers that are not finite; one more ends the run.",
    )


class CheckpointConfig(Config):
    """How often a run saves itself."""

    every: int = Field(50, ge=1, description="Updates between checkpoints; the last update is always saved.")
    keep: int = Field(2, ge=1, description="How many checkpoints stay on disk.")


class EvaluationConfig(Config):
    """What is looked at before, during and after: same seeds, prompts that are not trained on."""

    prompts: str | tuple[str, ...] = Field(description="Like the recipe's prompts; none of them is trained on.")
    count: int = Field(16, ge=1, description="How many of the prompts, from the first.")
    images_per_prompt: int = Field(
        2, ge=1, le=MOST, description="Pictures of each prompt; diversity needs two or more."
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="Picture i of each prompt starts from the noise of seed + i."
    )
    every: int = Field(
        25, ge=1, description="Updates between looks; the first and the last update are always looked at."
    )
    tolerance: float = Field(
        2.0,
        gt=0,
        description="How far a score that is not trained may fall, in standard deviations between the base model's "
        "pictures, before the run counts as collapsing.",
    )
    on_collapse: Literal["stop", "warn"] = Field(
        "stop", description="What to do when the trained reward rises while other scores or diversity are lost."
    )
    scales: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75),
        description="Factors of the finished LoRA at which the first four prompts are drawn once more, one picture "
        "each, for the report's slider; an empty list draws none.",
    )


class RecipeBase(Config):
    """All of a recipe but the rewards, whose type depends on what is installed."""

    model: ModelConfig = Field(description="The pipeline to tune, and how it samples.")
    prompts: str | tuple[str, ...] = Field(
        description="What to train on: a list, the name of a plugin's list (emoji-train), or a text file."
    )
    estimator: EstimatorConfig = Field(DraftLV(), description="How the gradient is estimated.")
    rewards: Sequence[RewardConfig]
    train: TrainConfig = Field(TrainConfig(), description="The optimisation.")
    regularizers: RegularizersConfig = Field(
        RegularizersConfig(), description="What holds the tuned model near the base model."
    )
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="How often the run saves itself.")
    evaluation: EvaluationConfig | None = Field(
        None, description="Pictures and scores on the way; left out, some of the training prompts are looked at."
    )
    measures: Sequence[RewardConfig] = ()
    processes: int = Field(
        1,
        ge=1,
        description="How many processes train together on this machine, each with its own GPU where there are GPUs; an "
        "update has so many times `train.batch_size` images. Under `accelerate launch` that says how many.",
    )
    device: Literal["cpu", "cuda", "mps"] | None = Field(
        None, description="Where to run; left out, a GPU where there is one. What is named must exist."
    )
    tensorboard: bool = Field(False, description="Also write TensorBoard files into the output folder.")
    output: Path = Field(Path("runs/draft"), description="The folder of the run.")
    versions: dict[str, str] | None = Field(
        None, description="Filled in by the run: what was installed when it started."
    )


def recipe_type(catalog: Catalog) -> type[RecipeBase]:
    """The recipe model whose `rewards` and `measures` are unions of everything in `catalog`.

    Raises:
        PluginError: if no reward is installed; a union of nothing would accept anything.
    """
    entries: Any = tuple[reward_type(catalog), ...]  # type: ignore[misc]
    return create_model(
        "Recipe",
        __base__=RecipeBase,
        __doc__="One run: what is tuned, on which prompts and rewards, and how.",
        estimator=(
            estimator_type(catalog),
            Field(DraftLV(), description="How the gradient is estimated; `draft estimators` lists the methods."),
        ),
        rewards=(entries, Field(min_length=1, description="What to maximise: a weighted sum.")),
        measures=(
            entries,
            Field((), description="Further rewards, measure-only ones too, to score the evaluation with."),
        ),
    )


def reward_type(catalog: Catalog) -> Any:
    """The union of all reward configs in `catalog`, told apart by `kind`."""
    if not catalog.rewards:
        broken = [f"{plugin.distribution} is broken ({plugin.reason})" for plugin in catalog.broken]
        raise PluginError(
            "; ".join(["no reward plugin is installed", *broken]),
            next="install one, for example `pip install draft-reward-jpeg`",
        )
    union = reduce(or_, (entry.spec.config for entry in catalog.rewards.values()))
    if len(catalog.rewards) > 1:
        return Annotated[union, Field(discriminator="kind")]
    # pydantic discriminates no union of one, and would let its only member's default stand in for the kind.
    return Annotated[union, BeforeValidator(_with_kind)]


def estimator_type(catalog: Catalog) -> Any:
    """The union of all estimator configs in `catalog`, told apart by `kind`."""
    union = reduce(or_, (entry.spec.config for entry in catalog.estimators.values()))
    return Annotated[union, Field(discriminator="kind")]


def _with_kind(entry: Any) -> Any:
    if isinstance(entry, Mapping) and "kind" not in entry:
        raise PydanticCustomError("union_tag_not_found", "it does not say its kind")
    return entry


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, catalog: Catalog | None = None
) -> RecipeBase:
    """The validated recipe of a YAML file or a mapping, with `overrides` laid over it.

    Paths of prompt files are resolved against the recipe's folder. No weight is loaded.

    Arguments:
        source: a YAML file's path, or the parsed mapping.
        overrides: "train.steps=50", "rewards.0.quality=90": values are YAML.
        catalog: what can be named; None takes what is installed.

    Raises:
        RecipeError: if it cannot be read or run; the message names the field.
        PluginError: if it names a reward that is not installed.
    """
    catalog = catalog if catalog is not None else load_catalog()
    name, base, data = ("recipe", Path(), source) if isinstance(source, Mapping) else _read(Path(source))
    data = _plain(data)
    for override in overrides:
        set_field(data, override)
    try:
        recipe = validate(recipe_type(catalog), data, catalog, where=name)
        recipe = _with_absolute_prompts(recipe, base, catalog)
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


def dump_recipe(recipe: BaseModel) -> str:
    """The recipe as YAML, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def set_field(data: dict[str, Any], override: str) -> None:
    """Lays one "path.to.field=value" over `data`, in place.

    Raises:
        RecipeError: if it is not of that form, or the path runs through something that is no mapping or list.
    """
    path, equals, text = override.partition("=")
    where = f"--set {_short(override)}"
    if not equals or not path:
        raise RecipeError("it is not of the form field=value", where=where, next="write for example train.steps=50")
    try:
        value = _parse(text)
    except ValueError as error:
        raise RecipeError(f"its value is not YAML ({_one_line(error)})", where=where, next="quote it") from error
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(f"its path has {len(parents) + 1} parts", where=where, next="check the path")
    place: Any = data
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else _list_item(place, key, where)
    if isinstance(place, dict):
        place[last] = value
    else:
        _list_item(place, last, where)
        place[int(last)] = value


def resolve_prompts(prompts: str | Sequence[str], catalog: Catalog, *, where: str = "prompts") -> list[str]:
    """The prompts that a list, a plugin's list name or a text file stands for.

    Raises:
        RecipeError: if there is no such list or file, or it holds no prompt.
    """
    if isinstance(prompts, str):
        path = catalog.prompt_lists().get(prompts, Path(prompts))
        if not _exists(Path.is_file, path):
            raise RecipeError(
                str(catalog.unknown("prompt list or file", _short(prompts), catalog.prompt_lists())).rstrip("."),
                where=where,
            )
        try:
            prompts = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"{path} cannot be read as text ({_one_line(error)})", where=where) from error
    found = [line for prompt in prompts if (line := prompt.strip())]
    if not found:
        raise RecipeError("there are no prompts", where=where, next="give at least one prompt")
    return found


def validate(type_: Any, data: Any, catalog: Catalog, *, where: str) -> Any:
    """`data` as a value of `type_`.

    Raises:
        RecipeError, PluginError: one sentence on the first problem, with the number of further ones.
    """
    try:
        return TypeAdapter(type_).validate_python(data)
    except ValidationError as error:
        problems = _without_echoes(error.errors(include_url=False, include_context=True))
    raise _readable(problems[0], len(problems) - 1, data, catalog, where)


# What validation alone cannot see


def _check(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    if "\0" in str(recipe.output):
        raise RecipeError("a folder's name cannot hold a zero byte", where=f"{where}: output", next="name another")
    for path, number in _numbers(recipe.model_dump()):
        if abs(number) > (LARGEST_FLOAT if isinstance(number, float) else LARGEST_INTEGER):
            raise RecipeError(
                f"{_short(repr(number))} is larger than a run can compute with",
                where=f"{where}: {path}",
                next="give a smaller number",
            )
    trained = resolve_prompts(recipe.prompts, catalog, where=f"{where}: prompts")
    if recipe.evaluation:
        held_out = resolve_prompts(recipe.evaluation.prompts, catalog, where=f"{where}: evaluation.prompts")
        if both := [prompt for prompt in held_out if prompt in set(trained)]:
            raise RecipeError(
                f"{len(both)} of its prompts are also trained on, first {both[0]!r}",
                where=f"{where}: evaluation.prompts",
                next="evaluate on prompts that are not trained on",
            )
    for index, reward in enumerate(recipe.rewards):
        if not catalog.reward(reward.kind).spec.differentiable:
            trainable = [kind for kind, entry in catalog.rewards.items() if entry.spec.differentiable]
            raise RecipeError(
                f"reward {reward.kind!r} has no gradient, it only measures",
                where=f"{where}: rewards.{index}.kind",
                next=f"train on one of {', '.join(trainable)}, and name {reward.kind!r} under measures",
            )
    try:
        recipe.estimator.plan(recipe.model.num_inference_steps, Random(0))
    except RecipeError as error:
        raise RecipeError(error.what, where=f"{where}: {error.where}", next=error.next) from None
    locate_pretrained(recipe.model.pretrained, catalog, where=f"{where}: model.pretrained")
    try:
        dump_recipe(recipe).encode()
    except Exception as error:  # `model.call` may hold whatever YAML can say; pydantic and PyYAML raise many kinds
        raise RecipeError(
            f"it cannot be written down again ({_short(_one_line(error))})",
            where=f"{where}: model.call",
            next="give numbers, texts, lists and mappings",
        ) from error


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
    here = {"python", *catalog.versions(), *(str(each.name) for each in importlib.metadata.distributions())}
    return [f"{name}=={version}" for name, version in versions.items() if name not in here]


def locate_pretrained(name: str, catalog: Catalog, *, where: str = "model") -> str:
    """The folder of a pipeline alias or path, or `name` itself where it has the form of a hub name.

    Raises:
        RecipeError: if it is none of the three.
    """
    if name in catalog.pretrained:
        return str(catalog.pretrained[name].spec.folder)
    folder = Path(name)
    if _exists(Path.is_dir, folder):
        if not any((folder / index).is_file() for index in ("model_index.json", "modular_model_index.json")):
            raise RecipeError(
                f"folder {name} holds no model_index.json", where=where, next="give a folder in diffusers' format"
            )
        return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    error = catalog.unknown("model", _short(name), catalog.pretrained, where=where)
    raise RecipeError(
        error.what, where=where, next=f"{error.next}; a folder must exist, a hub name has the form org/model"
    )


def _with_absolute_prompts(recipe: RecipeBase, base: Path, catalog: Catalog) -> RecipeBase:
    def absolute(prompts: str | tuple[str, ...]) -> str | tuple[str, ...]:
        known = catalog.prompt_lists()
        if isinstance(prompts, str) and prompts not in known and _exists(Path.is_file, base / prompts):
            return str((base / prompts).resolve())
        return prompts

    update: dict[str, Any] = {"prompts": absolute(recipe.prompts)}
    if recipe.evaluation:
        update["evaluation"] = recipe.evaluation.model_copy(update={"prompts": absolute(recipe.evaluation.prompts)})
    return recipe.model_copy(update=update)


# From text to data, from pydantic's errors to sentences


def _read(path: Path) -> tuple[str, Path, Mapping[str, Any]]:
    try:
        data = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), next="check the path of the recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({_one_line(error)})", where=str(path)) from error
    except ValueError as error:
        raise RecipeError(
            f"it is not plain YAML ({_one_line(error)})", where=str(path), next="mend it at that line"
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"it holds {type(data).__name__}, not fields", where=str(path), next="see `draft schema` for the fields"
        )
    return str(path), path.parent, data


def _parse(text: str) -> Any:
    """What plain YAML says.

    Raises:
        ValueError: if it is none, names a field twice, or would unfold to more than a recipe can hold.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _measure(node, {})
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # beside YAMLError, PyYAML lets through what its constructors stumble over
        raise ValueError(_short(_one_line(error)) or type(error).__name__) from error


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node holds, every alias unfolded, and in how many levels."""
    if known.get(id(node)) == UNDER_WAY:
        raise ValueError(f"an alias holds itself{node.start_mark}")
    if id(node) not in known:
        known[id(node)] = UNDER_WAY
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        if isinstance(node, yaml.MappingNode):
            _require_single_fields(node)
            parts = [part for pair in node.value for part in pair]
        sizes = [_measure(part, known) for part in parts]
        known[id(node)] = 1 + sum(size for size, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
    size, levels = known[id(node)]
    if levels > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels{node.start_mark}")
    if size > LARGEST:
        raise ValueError(f"it unfolds to more than {LARGEST} values{node.start_mark}")
    return size, levels


def _require_single_fields(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is not None and name in seen:
            raise ValueError(f"the field {_short(name)!r} stands there twice{key.start_mark}")
        seen.add(name)


def _plain(value: Any) -> Any:
    """A deep copy in dicts and lists, which overrides may change."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _list_item(place: Any, key: str, where: str) -> Any:
    if not isinstance(place, list):
        raise RecipeError(
            f"there is no field {_short(key)!r} in {_short(repr(place))}", where=where, next="check the path"
        )
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(place):
        raise RecipeError(
            f"{_short(key)!r} is no place in a list of {len(place)}", where=where, next=f"use 0 to {len(place) - 1}"
        )
    return place[int(key)]


def _without_echoes(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaint that a list is too short, where it is so because its items were refused."""
    refused = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(loc[: len(problem["loc"])] == problem["loc"] for loc in refused if loc != problem["loc"])
    ]


def _readable(problem: ErrorDetails, further: int, data: Any, catalog: Catalog, where: str) -> DraftError:
    path = _path_in(data, problem["loc"])
    field = _short(".".join(path))
    place = f"{where}: {field}" if field else where
    more = f" (and {further} more problem{'s' if further > 1 else ''})" if further else ""
    kind, context = problem["type"], problem.get("ctx", {})
    is_reward = path[:1] != ["estimator"]
    tag_field = context.get("discriminator", "'kind'").strip("'")
    if kind == "union_tag_invalid" and tag_field != "kind":
        known_tags = context["expected_tags"].replace("'", "")
        return RecipeError(
            f"unknown {tag_field} {_short(repr(context['tag']))}{more}", where=place, next=f"known: {known_tags}"
        )
    if kind == "union_tag_not_found" and tag_field != "kind":
        return RecipeError(f"it does not say its {tag_field}{more}", where=place, next=f"add `{tag_field}`")
    if kind == "union_tag_invalid" or (kind == "literal_error" and path[-1:] == ["kind"]):
        tag = _short(str(context.get("tag", problem["input"])))
        known = catalog.rewards if is_reward else catalog.estimators
        return catalog.unknown("reward" if is_reward else "estimator", tag, known, where=f"{place}{more}")
    if kind == "union_tag_not_found":
        return RecipeError(f"it does not say its kind{more}", where=place, next="add for example `kind: jpeg`")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _fields_beside(problem["loc"], data, catalog), n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else "remove it"
        return RecipeError(f"unknown field {_short(path[-1])!r}{more}", where=place, next=advice)
    if kind == "missing":
        return RecipeError(f"the field is missing{more}", where=place, next="add it; `draft schema` describes it")
    if kind == "too_short":
        return RecipeError(f"the list is empty{more}", where=place, next="give at least one entry")
    message = problem["msg"][0].lower() + problem["msg"][1:].replace("valid tuple", "list")
    return RecipeError(f"{message}, not {_short(repr(problem['input']))}{more}", where=place, next="correct the value")


def _path_in(data: Any, location: tuple[int | str, ...]) -> list[str]:
    """The fields of a location, without the tags that discriminated unions add: a user does not know those."""
    path = []
    for part in location:
        if isinstance(data, Mapping) and part not in data and part in data.values():
            continue
        path.append(str(part))
        known = (
            part in data if isinstance(data, Mapping) else isinstance(data, (list, tuple)) and part in range(len(data))
        )
        data = data[part] if known else None
    return path


def _fields_beside(location: tuple[int | str, ...], data: Any, catalog: Catalog) -> list[str]:
    """The field names that would have been known where an unknown one was given."""
    model: Any = recipe_type(catalog)
    for part in location[:-1]:
        if part in catalog.rewards:
            model = catalog.rewards[str(part)].spec.config
        elif location[0] == "estimator" and part in catalog.estimators:
            model = catalog.estimators[str(part)].spec.config
        elif tagged := [each for each in getattr(model, "__args__", ()) if part in _defaults(each)]:
            model = tagged[0]
        elif isinstance(part, str):
            model = _model_of_field(model, part)
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _defaults(model: Any) -> list[Any]:
    return [field.default for field in getattr(model, "model_fields", {}).values()]


def _model_of_field(model: Any, name: str) -> Any:
    field = getattr(model, "model_fields", {}).get(name)
    if field is None:
        return model
    candidates = getattr(field.annotation, "__args__", (field.annotation,))
    models = [cls for cls in candidates if isinstance(cls, type) and issubclass(cls, BaseModel)]
    return models[0] if len(models) == 1 else field.annotation


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _exists(is_there: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path is there; what cannot be a path, such as a text of a thousand letters, is not."""
    try:
        return is_there(path)
    except (OSError, ValueError):
        return False


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
