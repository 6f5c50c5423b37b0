"""Reads one plugin: its interface version, its hooks, what they register. Come here when one is said to be broken.

Whatever cannot be used later is refused here, so that it is recorded with its plugin and harms no other.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakSet

import pluggy
from pydantic import PydanticUndefinedAnnotation, TypeAdapter

from draft_core.errors import PluginError, first_line
from draft_core.registry import hooks as hookspecs
from draft_core.registry.config import Config, Field
from draft_core.registry.specs import MethodSpec, PretrainedSpec, RewardSpec

Spec = TypeVar("Spec", RewardSpec, PretrainedSpec, MethodSpec)

HOOK_PREFIX = "draft_register_"


@dataclass(frozen=True)
class Registered:
    """What the hooks of one plugin gave."""

    rewards: tuple[RewardSpec, ...]
    pretrained: tuple[PretrainedSpec, ...]
    methods: tuple[MethodSpec, ...]


def read_plugin(point: importlib.metadata.EntryPoint) -> Registered:
    """Imports the module of an entry point and calls its hooks.

    Raises:
        PluginError: if it is written for another interface, its hooks are not marked, not declared or return nothing,
            or a config cannot be used in recipes.
        Exception: whatever the plugin's own code raises.
    """
    module = point.load()
    version = getattr(module, "DRAFT_API_VERSION", None)
    if version is None:
        raise PluginError(
            "it does not say which version of the plugin interface it is written for",
            next=f"add `DRAFT_API_VERSION = {hookspecs.API_VERSION}` to {point.module}, or upgrade it",
        )
    if version != hookspecs.API_VERSION:
        raise PluginError(
            f"it is written for version {version} of the plugin interface, this draft-core has {hookspecs.API_VERSION}",
            next="install versions of the two that fit",
        )
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=point.name)
    manager.check_pending()  # refuses a hook that is not declared, such as a misspelt one
    _require_marks(manager, module, point.module)
    found = Registered(
        rewards=_specs(manager.hook.draft_register_rewards, RewardSpec),
        pretrained=_specs(manager.hook.draft_register_pretrained, PretrainedSpec),
        methods=_specs(manager.hook.draft_register_methods, MethodSpec),
    )
    named: list[RewardSpec | MethodSpec] = [*found.rewards, *found.methods]
    for spec in named:
        _require_usable(spec.config, where=f"spec {spec.kind!r}")
    return found


def _require_marks(manager: pluggy.PluginManager, module: Any, name: str) -> None:
    """That every function with the name of a hook is marked as one, and that there is a hook at all."""
    for attribute in dir(module):
        if not (attribute.startswith(HOOK_PREFIX) and callable(getattr(module, attribute))):
            continue
        if manager.parse_hookimpl_opts(module, attribute) is None:
            raise PluginError(
                f"{attribute} is not marked as a hook",
                where=name,
                next="write `@hookimpl` (from draft_core.plugin) above it",
            )
    if not manager.get_hookcallers(module):
        raise PluginError(
            "it has no hook, so it would register nothing",
            where=name,
            next=f"define {HOOK_PREFIX}rewards there with `@hookimpl` above it, or mend the module of the entry point",
        )


def _specs(hook: pluggy.HookCaller, expected: type[Spec]) -> tuple[Spec, ...]:
    results: list[Iterable[Any]] = hook()
    if hook.get_hookimpls() and not results:  # pluggy leaves out None
        raise PluginError(f"{hook.name} returns nothing", next=f"return a list of {expected.__name__}")
    specs = tuple(spec for result in results for spec in result)
    for spec in specs:
        if not isinstance(spec, expected):
            raise TypeError(f"a hook returned {spec!r}, which is not a {expected.__name__}")
    return specs


class _Neighbour(Config):
    """What a config stands beside in a recipe's union."""

    kind: Literal["NEIGHBOUR"] = "NEIGHBOUR"  # in capitals, so that no spec can have it


_USABLE: WeakSet[type[Config]] = WeakSet()  # seen before: describing them all again takes a third of a second


def _require_usable(config: type[Config], *, where: str) -> None:
    """That pydantic can complete a config, tell it from others by its kind, and describe it as JSON Schema."""
    if config in _USABLE:
        return
    name = config.__name__
    try:
        config.model_rebuild()
        union: Any = Annotated[config | _Neighbour, Field(discriminator="kind")]
        TypeAdapter(union)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what `draft schema` says of a default, it says itself
            config.model_json_schema()
    except PydanticUndefinedAnnotation as error:
        raise PluginError(
            f"a field of its config {name} has a type that names {error.name!r}, which its module does not define",
            where=where,
            next=f"import {error.name} outside of `if TYPE_CHECKING:`",
        ) from error
    except Exception as error:  # pydantic's own errors, and whatever a type's own hooks raise
        raise PluginError(
            f"its config {name} cannot be used in a recipe ({type(error).__name__}: {first_line(error)})",
            where=where,
            next="give its fields types that JSON Schema can describe",
        ) from error
    _USABLE.add(config)
