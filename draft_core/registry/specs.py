"""What a plugin registers: a name, a config type, where the code is, and its capabilities as data."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from draft_core.errors import PluginError, one_line, raised
from draft_core.prompt_rows import ColumnType
from draft_core.registry.config import Config, DirectConfig, MethodConfig, RewardConfig

DIRECT = "draft_core.learners.direct:DirectLearner"

HUB_NAME = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
_KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One reward that a distribution offers, described without loading it.

    Arguments:
        kind: its name in recipes, lower-case words joined by hyphens.
        summary: one line for listings.
        config: its config type, whose `kind` is a literal equal to `kind`.
        factory: "module:callable"; called with the config, it returns a `draft_core.rewards.protocol.Reward`.
        unit: what the score is counted in, such as "-kB" or "cosine".
        takes: "image", and every frame of a video is one; "video", (N, F, 3, H, W), of video models alone; or
            "any", of video models whole videos and of others images. What the factory makes says the same by its
            attribute `takes`; of "any" it may be "image" alone, as its config says.
        scope: "image", and each is scored by itself; or "group": images of one prompt are scored together, two or more
            of them, and a score may depend on the others. A recipe then needs `train.images_per_prompt` and
            `evaluation.images_per_prompt` of 2 or more. What the factory makes says the same by its attribute `scope`.
        score_range: the range of scores in words or as an interval, for people.
        differentiable: False for a metric without a gradient: it may be reported, and trained on by methods that need
            none.
        surrogate_gradient: whether the gradient is by design another function's than the score's, as that of a
            staircase must be; it then need only point upwards.
        needs_prompt: whether the score depends on the prompt.
        columns: what it reads of a prompt's row in the list, name -> "text", "number" or "image". It is then called
            with `columns`, name -> a value for each image: a text, a float, or a tensor (3, H, W) in [0, 1] of any
            size. A recipe's `columns` may say that a list calls one otherwise.
        small_columns: for its checks, name -> three or more different values, of every text column; of images and
            numbers the checks draw their own where none are given, and a given image is the path of a file.
        native_size: side in pixels of the square that the scorer resizes to, None if it takes any size.
        code_license: licence of the plugin's code.
        weights_license: licence of the weights it loads, None if it loads none.
        download_mb: size of what the first use downloads, in megabytes.
        small: fields of its config that make a small instance without a download, with seeded weights if it has any:
            for its tests, and for `--small` of `draft rewards check` and `compare`.
        small_prompts: at least three prompts for these checks, where it cannot read any prompt; ordinary ones if empty.
        reference: "module:callable"; called with the built reward and its config, it returns the reference scorer on
            that reward's own weights: (list of B PIL images, list of B prompts) -> scores (B,), with its `columns` as a
            third argument where it reads any. It may be slow and without gradient, and the reward itself never imports
            it.
        tolerance: the largest difference from the reference that counts as equal, in standard deviations between
            images. Given with a reference, and only then.

    Raises:
        PluginError: at construction, when the fields contradict each other.
    """

    kind: str
    summary: str
    config: type[RewardConfig]
    factory: str
    unit: str
    code_license: str
    takes: Literal["image", "video", "any"] = "image"
    scope: Literal["image", "group"] = "image"
    score_range: str = "(-inf, inf)"
    differentiable: bool = True
    surrogate_gradient: bool = False
    needs_prompt: bool = False
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    small_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    native_size: int | None = None
    weights_license: str | None = None
    download_mb: float = 0.0
    small: Mapping[str, Any] = field(default_factory=dict)
    small_prompts: tuple[str, ...] = ()
    reference: str | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        where = f"reward spec {self.kind!r}"
        _check_types(self, where)
        if not _KIND.fullmatch(self.kind):
            raise PluginError("its kind is not lower-case words joined by hyphens", where=where, next="rename it")
        _check_config(self.kind, self.config, RewardConfig, where)
        _check_path(self.factory, where)
        if (self.takes == "video" or self.scope == "group") and self.reference is not None:
            raise PluginError(
                "it has a reference, and those are called with single images",
                where=where,
                next="leave it out, and compare the scores in the plugin's own tests",
            )
        if (self.reference is None) != (self.tolerance is None):
            raise PluginError(
                "it has a reference without a tolerance, or the other way round",
                where=where,
                next="give both: the reference scorer, and the largest difference from it that counts as equal",
            )
        if self.small_prompts and len(set(self.small_prompts)) < 3:
            raise PluginError("its small_prompts are fewer than three", where=where, next="give three different ones")
        self._check_columns(where)
        if self.reference is not None:
            _check_path(self.reference, where)
        if self.tolerance is not None and not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise PluginError(f"its tolerance {self.tolerance} is not a positive number", where=where)

    def _check_columns(self, where: str) -> None:
        if unknown := sorted(self.small_columns.keys() - self.columns.keys()):
            raise PluginError(
                f"its small_columns name {unknown[0]!r}, which it does not read", where=where, next="name its columns"
            )
        for name, kind in self.columns.items():
            if len(set(self.small_columns.get(name, ()))) < 3 and (kind == "text" or name in self.small_columns):
                raise PluginError(
                    f"its small_columns have fewer than three values of {name!r}",
                    where=where,
                    next="give three different ones, which its checks take",
                )

    def allows(self, takes: str) -> bool:
        """Whether what the factory makes may say that it `takes` this: `"image"`, `"video"` or `"any"`."""
        return takes == self.takes or (self.takes, takes) == ("any", "image")

    def as_set(self, config: RewardConfig) -> RewardSpec:
        """The spec as it holds for what the factory makes of `config`, which may read no prompt."""
        return self if config.reads_prompts or not self.needs_prompt else replace(self, needs_prompt=False)

    def load(self) -> Callable[[RewardConfig], Any]:
        """The factory itself; imports the plugin's code, and with it usually torch.

        Raises:
            PluginError: if the module does not import or lacks the name.
        """
        factory: Callable[[RewardConfig], Any] = load_named(self.factory, where=f"reward {self.kind!r}")
        return factory

    def load_reference(self) -> Callable[[Any, RewardConfig], Any]:
        """What makes the reference scorer; imports the plugin's reference code and the libraries it stands on.

        Raises:
            PluginError: if the reward has none, or one of those libraries is missing.
        """
        where = f"reward {self.kind!r}"
        if self.reference is None:
            raise PluginError(
                "it names no reference to be compared with",
                where=where,
                next="ask its author for one; the spec of a port names it as `reference`, with a `tolerance`",
            )
        reference: Callable[[Any, RewardConfig], Any] = load_named(self.reference, where=where)
        return reference


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method that a distribution offers, described without loading it.

    Arguments:
        kind: its name in recipes, lower-case words joined by hyphens.
        summary: one line for listings.
        config: its config type, whose `kind` is a literal equal to `kind`; a `DirectConfig` if the learner is left out.
        learner: "module:callable"; called with the config, it returns a `draft_core.learners.learner.Learner`.
        needs_gradient: the learner's own `needs_gradient`: False lets it train on rewards that are not differentiable.
        yields_divergence: the learner's own `yields_divergence`: without it `regularizers.kl` is refused. True where
            the learner is left out.
        gates_divergence: the learner's own `gates_divergence`: without it `regularizers.kl_gate` is refused. True
            where the learner is left out.
        trains_through_sampler: the learner's own `trains_through_sampler`: without it `regularizers.kl_relative` is
            refused. True where the learner is left out.

    Raises:
        PluginError: at construction, when the fields contradict each other.
    """

    kind: str
    summary: str
    config: type[MethodConfig]
    learner: str = DIRECT
    needs_gradient: bool = True
    yields_divergence: bool = False
    gates_divergence: bool = False
    trains_through_sampler: bool = False

    def __post_init__(self) -> None:
        where = f"method spec {self.kind!r}"
        _check_types(self, where)
        if not _KIND.fullmatch(self.kind):
            raise PluginError("its kind is not lower-case words joined by hyphens", where=where, next="rename it")
        _check_config(self.kind, self.config, DirectConfig if self.learner == DIRECT else MethodConfig, where)
        _check_path(self.learner, where)
        if self.learner == DIRECT:
            for name in ("yields_divergence", "gates_divergence", "trains_through_sampler"):
                object.__setattr__(self, name, True)

    def load(self) -> Callable[[MethodConfig], Any]:
        """What makes the learner; imports the method's code, and with it torch.

        Raises:
            PluginError: if the module does not import or lacks the name.
        """
        factory: Callable[[MethodConfig], Any] = load_named(self.learner, where=f"method {self.kind!r}")
        return factory


@dataclass(frozen=True, kw_only=True)
class PretrainedSpec:
    """A model that a distribution carries in a local folder, or names on the hub, under a short alias.

    Arguments:
        alias: its name in recipes, used where a hub name or a folder could stand.
        summary: one line for listings.
        folder: a folder in diffusers' format; of another task, one in transformers' with model and processor.
            Give it or `repository`.
        repository: "owner/name" on the Hugging Face hub, of a model in the same format.
        revision: of the repository, a commit for choice: a branch may move, and a run would then go on with other
            weights. None takes its main branch.
        task: "pipeline", a diffusers pipeline to train; "image-text-to-text", a model that answers questions about
            images, which rewards such as `vlm` take as their `model`; or "zero-shot-object-detection", one that finds
            what it is told in words, which `detection` takes as its `weights`. Only pipelines have a repository, LoRA,
            prompts and a call.
        lora: the file or folder of a LoRA, in diffusers' format, that is added to the weights when they are loaded: two
            aliases may share a folder.
        license: licences of the weights and of the data behind them.
        prompts: prompt lists that come with it, name -> text file with one prompt a line.
        call: arguments of the pipeline's call that suit it, such as guidance_scale; recipes and `draft sample` start
            from them.
        modules: modules of the plugin that are imported before the model is loaded: diffusers takes a component's class
            from no other module than its own that is not imported.

    Raises:
        PluginError: at construction, if the alias is not lower-case words joined by hyphens, it does not say where the
            model is, or says it twice, or it has what only pipelines have and is none.
    """

    alias: str
    summary: str
    license: str
    folder: Path | None = None
    repository: str | None = None
    revision: str | None = None
    lora: Path | None = None
    prompts: Mapping[str, Path] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    task: Literal["pipeline", "image-text-to-text", "zero-shot-object-detection"] = "pipeline"

    def __post_init__(self) -> None:
        where = f"pretrained spec {self.alias!r}"
        _check_types(self, where)
        if self.task != "pipeline" and (self.lora or self.prompts or self.call or self.repository):
            raise PluginError(
                f"its task is {self.task}, and it has a LoRA, prompts, call or repository, which only pipelines have",
                where=where,
                next="leave them out",
            )
        if not _KIND.fullmatch(self.alias):
            raise PluginError("its alias is not lower-case words joined by hyphens", where=where, next="rename it")
        if (self.folder is None) == (self.repository is None):
            how = "neither a folder nor a repository" if self.folder is None else "both a folder and a repository"
            raise PluginError(f"it names {how}", where=where, next="give one of them")
        if self.repository is not None and not HUB_NAME.fullmatch(self.repository):
            raise PluginError(f"its repository {self.repository!r} is not of the form owner/name", where=where)
        if self.revision is not None and self.repository is None:
            raise PluginError("it has a revision without a repository", where=where, next="leave it out")

    @property
    def location(self) -> str:
        """What `from_pretrained` of diffusers takes: the folder, or the repository's name."""
        return str(self.folder if self.repository is None else self.repository)


def load_named(path: str, *, where: str) -> Any:
    """The object that a "module:name" string names.

    Raises:
        PluginError: if the module does not import, raises when it is imported, or lacks the name.
    """
    _check_path(path, where)
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PluginError(
            f"cannot import {module_name} ({one_line(error)})", where=where, next="install what its README asks for"
        ) from error
    except Exception as error:
        raise PluginError(
            f"importing {module_name} raised {raised(error)}",
            where=where,
            next="tell its author",
        ) from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise PluginError(
            f"module {module_name} has no {name!r}", where=where, next="report it to the author"
        ) from None


@cache
def _adapters(of: Hashable) -> dict[str, TypeAdapter[Any]]:
    """Field -> what checks it, but for the config."""
    return {name: TypeAdapter(declared) for name, declared in get_type_hints(of).items() if name != "config"}


def _check_types(spec: Any, where: str) -> None:
    """That every field but the config holds what it is declared to hold: whoever reads a spec relies on it."""
    for name, adapter in _adapters(cast(Hashable, type(spec))).items():
        value = getattr(spec, name)
        try:
            adapter.validate_python(dict(value) if isinstance(value, Mapping) else value, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise PluginError(
                f"its {name} is {value!r}: {problem[0].lower()}{problem[1:]}", where=where, next="correct it"
            ) from None


def _check_config(kind: str, config: type[Config], base: type[Config], where: str) -> None:
    if not (isinstance(config, type) and issubclass(config, base)):
        raise PluginError(f"its config is not a subclass of {base.__name__}", where=where)
    declared = get_args(config.model_fields["kind"].annotation)
    if declared != (kind,) or config.model_fields["kind"].default != kind:
        raise PluginError(
            f"its config {config.__name__} does not declare this kind",
            where=where,
            next=f'declare `kind: Literal["{kind}"] = "{kind}"`',
        )


def _check_path(path: str, where: str) -> None:
    module_name, _, name = path.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise PluginError(f"{path!r} is not of the form 'module:callable'", where=where)
