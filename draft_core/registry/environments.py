"""A reward that lives in another Python environment: what a recipe says of it, and what that environment says of it.

The kinds, fields and paths of such a reward are those of its own environment; this one need not have the plugin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import ConfigDict, PrivateAttr, field_validator, model_validator

from draft_core.errors import DraftError, PluginError, RecipeError, from_fields
from draft_core.prompt_rows import ColumnType, PromptRow
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import Config, Field, RewardConfig
from draft_core.registry.specs import RewardSpec
from draft_core.setting import RecipePath
from draft_core.workers.made_environments import made_python
from draft_core.workers.process import WorkerDiedError, WorkerProcess

ENTRY = "\0entry"  # stands in the environment's errors for the place of the entry in the recipe
FACTS = (
    "kind",
    "unit",
    "takes",
    "scope",
    "differentiable",
    "needs_prompt",
    "columns",
    "code_license",
    "weights_license",
)


class EnvironmentSettings(Config):
    """The Python environment that a reward runs in: one that is there, or one that is made of a list."""

    python: Annotated[Path, RecipePath(of="file")] | None = Field(
        None, description="The interpreter of an environment with the reward's plugin, such as envs/old/bin/python."
    )
    requirements: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Packages, as pip takes them, of an environment that is made once and kept for all runs with the "
        "same list. What rewards need of draft-core, and this environment's version of torch, come with them.",
    )
    timeout: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="Seconds that it may take for an answer; loading the reward, with what that downloads, is one.",
    )
    versions: dict[str, str] | None = Field(
        None, description="Filled in when the recipe is loaded: what that environment has installed."
    )

    @field_validator("requirements")
    @classmethod
    def _are_packages(cls, requirements: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for text in requirements or ():
            try:
                Requirement(text)
            except InvalidRequirement as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{text!r} is no package as pip takes it ({reason})") from None
        return requirements

    @model_validator(mode="after")
    def _one_of_both(self) -> EnvironmentSettings:
        if (self.python is None) == (self.requirements is None):
            both = "are both given" if self.python is not None else "are both left out"
            raise ValueError(f"python and requirements {both}; give one of them")
        return self

    @property
    def interpreter(self) -> Path:
        """The path of its Python; an environment of requirements is made if it is not there.

        Raises:
            DraftError: if it cannot be made.
        """
        return self.python if self.python is not None else made_python(self.requirements or ())


@dataclass(frozen=True)
class RewardFacts:
    """What the spec of a reward in another environment says, as `RewardSpec` describes it."""

    kind: str
    unit: str
    takes: Literal["image", "video", "any"]
    scope: Literal["image", "group"]
    differentiable: bool
    needs_prompt: bool
    columns: Mapping[str, ColumnType]
    code_license: str
    weights_license: str | None


class RewardInEnvironment(RewardConfig):
    """A reward in an environment of its own; its further fields are those that its plugin there has."""

    model_config = ConfigDict(extra="allow")

    environment: EnvironmentSettings = Field(
        description="The Python environment that this reward runs in, in a process of its own; its kind and fields are "
        "those of the plugin there."
    )
    _facts: RewardFacts | None = PrivateAttr(None)
    _checks_prompts: bool = PrivateAttr(False)
    _least_frames: int = PrivateAttr(1)

    @property
    def facts(self) -> RewardFacts:
        """What the spec says, once the environment was asked.

        Raises:
            RecipeError: if it was not.
        """
        if self._facts is None:
            raise RecipeError(
                "its environment was not asked yet",
                where=f"reward {self.kind!r}",
                next="load the recipe by load_recipe, or the reward by load_reward",
            )
        return self._facts

    @property
    def least_frames(self) -> int:
        """As the config of the plugin there says."""
        return self._least_frames

    def there(self) -> dict[str, Any]:
        """The fields that its environment reads."""
        return self.model_dump(mode="json", exclude={"environment"})

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """As the config of the plugin there does.

        Raises:
            DraftError: that names a prompt, and says what it lacks.
        """
        if not self._checks_prompts:
            return
        told = [
            (str(prompt), {name: str(value) for name, value in prompt.columns.items()}, str(prompt.folder or ""))
            if isinstance(prompt, PromptRow)
            else (prompt, None, "")
            for prompt in prompts
        ]
        where = f"reward {self.kind!r}"
        _asked(self.environment, {"do": "check_prompts", "config": self.there(), "prompts": told}, where=where)


def spec_of(config: RewardConfig, catalog: Catalog) -> RewardSpec | RewardFacts:
    """What is known of a reward without loading it: from the catalog, or from its own environment.

    Raises:
        PluginError: if no plugin offers it.
    """
    if isinstance(config, RewardInEnvironment):
        return config.facts
    return catalog.reward(config.kind).spec.as_set(config)


def in_environment(config: RewardConfig) -> bool:
    """Whether a reward runs in an environment of its own."""
    return isinstance(config, RewardInEnvironment)


@dataclass(frozen=True)
class Place:
    """Where an entry stands, and its paths begin.

    Arguments:
        where: in the recipe, for errors, such as "recipe.yaml: rewards.0".
        folder: of relative paths in its fields.
        overrides: "field=value" among its fields that were given on the command line.
        joint: what stands between `where` and a field.
    """

    where: str
    folder: Path
    overrides: tuple[str, ...] = ()
    joint: str = "."


def described(configs: Mapping[Place, RewardInEnvironment]) -> list[RewardInEnvironment]:
    """The configs as their environments complete them, each environment asked once.

    Raises:
        DraftError: if an environment cannot be used, or refuses an entry: the sentence is that of the plugin there.
    """
    found: dict[Place, RewardInEnvironment] = {}
    for settings in {config.environment.interpreter: config.environment for config in configs.values()}.values():
        here = {place: it for place, it in configs.items() if it.environment.interpreter == settings.interpreter}
        entries = [
            {"fields": config.there(), "folder": str(place.folder), "overrides": place.overrides}
            for place, config in here.items()
        ]
        answer = _asked(settings, {"do": "describe", "entries": entries}, where=next(iter(here)).where)
        for (place, config), told in zip(here.items(), answer["entries"], strict=True):
            if "error" in told:
                raise _of_entry(told["error"], place, settings.interpreter)
            found[place] = _completed(config, told)
    return [found[place] for place in configs]


def _completed(config: RewardInEnvironment, told: Mapping[str, Any]) -> RewardInEnvironment:
    environment = config.environment.model_copy(update={"versions": told["versions"]})
    complete = type(config).model_validate({**told["config"], "environment": environment})
    complete._facts = RewardFacts(**told["facts"])
    complete._checks_prompts = told["checks_prompts"]
    complete._least_frames = told["least_frames"]
    return complete


def _of_entry(told: Mapping[str, str | None], place: Place, python: Path) -> DraftError:
    """The environment's error as one of this recipe, with the commands in it for that Python."""
    where = (told["where"] or ENTRY).replace(f"{ENTRY}: ", f"{place.where}{place.joint}").replace(ENTRY, place.where)
    advice = (told["next"] or "").replace("pip install", f"{python} -m pip install")
    error = from_fields({**told, "where": where, "next": advice or None})
    if isinstance(error, PluginError):
        return PluginError(error.what, where=f"{where}: {python}", next=error.next)
    return error


def _asked(settings: EnvironmentSettings, question: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The answer of a process that is started for this question, and loads no torch."""
    process = WorkerProcess(settings.interpreter, where=where)
    try:
        return process.ask(json.loads(json.dumps(question)), timeout=settings.timeout)
    except WorkerDiedError as error:
        raise DraftError(
            f"{settings.interpreter} does not say what it has ({error})", where=where, next="mend that environment"
        ) from None
    finally:
        process.close()
