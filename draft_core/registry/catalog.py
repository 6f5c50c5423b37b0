"""Everything that can be named, gathered from the installed distributions into one value.

Each entry point is loaded by itself, so a broken plugin is recorded and the others keep working.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from packaging.utils import canonicalize_name

from draft_core import __version__  # a worker's environment need not have this distribution
from draft_core.errors import DraftError, PluginError, raised
from draft_core.registry.hooks import ENTRY_POINT_GROUP
from draft_core.registry.methods import BUILT_IN
from draft_core.registry.names import PUBLISHED, nearest
from draft_core.registry.reading import Spec, read_plugin
from draft_core.registry.specs import MethodSpec, PretrainedSpec, RewardSpec

RESTRICTION = "DRAFT_PLUGINS"


@dataclass(frozen=True)
class Distribution:
    """Where a plugin came from: a distribution's name, as package indexes normalise it (PEP 503), and its version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Entry(Generic[Spec]):
    """A spec, the distribution that registered it, and the module that its entry point names."""

    spec: Spec
    distribution: Distribution
    module: str | None = None


@dataclass(frozen=True)
class Plugin:
    """One entry point that works, and what it registered."""

    entry_point: str
    distribution: Distribution
    file: str
    rewards: tuple[str, ...]
    pretrained: tuple[str, ...]
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be used, and why, in one line."""

    entry_point: str
    distribution: Distribution
    reason: str


def _own_methods() -> dict[str, Entry[MethodSpec]]:
    core = Distribution("draft-core", __version__)
    return {spec.kind: Entry(spec, core) for spec in BUILT_IN}


@dataclass(frozen=True)
class Catalog:
    """What the core and the installed plugins offer.

    Arguments:
        rewards: kind -> entry, sorted by kind.
        pretrained: alias -> entry of a pipeline, sorted by alias.
        critics: alias -> entry of a model that answers questions about images, sorted by alias.
        detectors: alias -> entry of a model that finds in images what it is told in words, sorted by alias.
        methods: kind -> entry, the core's own included, sorted by kind.
        plugins: the plugins that could be loaded, with what they register.
        broken: the plugins that could not.
        conflicts: kind or alias -> the distributions that all claim it; none of them is offered.
    """

    rewards: Mapping[str, Entry[RewardSpec]] = field(default_factory=dict)
    pretrained: Mapping[str, Entry[PretrainedSpec]] = field(default_factory=dict)
    critics: Mapping[str, Entry[PretrainedSpec]] = field(default_factory=dict)
    detectors: Mapping[str, Entry[PretrainedSpec]] = field(default_factory=dict)
    methods: Mapping[str, Entry[MethodSpec]] = field(default_factory=_own_methods)
    plugins: tuple[Plugin, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    conflicts: Mapping[str, tuple[Distribution, ...]] = field(default_factory=dict)

    def reward(self, kind: str) -> Entry[RewardSpec]:
        """The entry of reward `kind`.

        Raises:
            PluginError: if no usable plugin offers it; the message names the nearest kind and broken plugins.
        """
        if kind in self.rewards:
            return self.rewards[kind]
        raise self.unknown("reward", kind, self.rewards)

    def method(self, kind: str) -> Entry[MethodSpec]:
        """The entry of method `kind`.

        Raises:
            PluginError: like `reward`.
        """
        if kind in self.methods:
            return self.methods[kind]
        raise self.unknown("method", kind, self.methods)

    def prompt_lists(self) -> Mapping[str, Path]:
        """The prompt lists that come with the pretrained pipelines, name -> text file."""
        return {name: path for entry in self.pretrained.values() for name, path in entry.spec.prompts.items()}

    def versions(self) -> dict[str, str]:
        """Distribution name -> version, of every distribution that registered something."""
        found = {entry.distribution for entry in self.rewards.values()}
        models = (*self.pretrained.values(), *self.critics.values(), *self.detectors.values())
        found |= {entry.distribution for entry in models}
        found |= {entry.distribution for entry in self.methods.values()}
        return {distribution.name: distribution.version for distribution in sorted(found, key=str)}

    def unknown(self, what: str, name: str, known: Iterable[str], *, where: str | None = None) -> PluginError:
        """The error for a name that is not in `known`: nearest name, conflict or broken plugins included."""
        if name in self.conflicts:
            claimants = " and ".join(map(str, self.conflicts[name]))
            return PluginError(
                f"{what} {name!r} is claimed by {claimants}", where=where, next="uninstall all but one of them"
            )
        known = sorted(known)
        advice = self._advice(name, known)
        if self.broken:
            reasons = "; ".join(f"{broken.distribution} ({broken.reason})" for broken in self.broken)
            advice += f"; broken plugins: {reasons}"
        return PluginError(f"unknown {what} {name!r}", where=where, next=advice)

    def _advice(self, name: str, known: list[str]) -> str:
        """What to do about a name that is not known: write it right, or install what offers it."""
        found = {plugin.distribution.name for plugin in self.plugins} | {
            broken.distribution.name for broken in self.broken
        }
        missing = {name: offered_by for name, offered_by in PUBLISHED.items() if offered_by not in found}
        listed = f"known: {', '.join(known)}" if known else "none is installed"
        if not (near := name if name in missing else nearest(name, {*known, *missing})):
            return listed
        meant = "" if near == name else f"did you mean {near!r}? "
        if near in known:
            return f"{meant}({listed})"
        install = f"pip install {missing[near]}"
        if RESTRICTION in os.environ:
            install += f", and name it in {RESTRICTION}"
        return f"{meant}{install} ({listed})"


def load_catalog() -> Catalog:
    """What the plugins of this Python environment offer; broken ones are recorded, never fatal.

    The environment variable `DRAFT_PLUGINS`, where it is set, names the distributions to look at, joined by
    commas, in any spelling that pip takes; empty, none is.

    Raises:
        PluginError: if it names a distribution that offers no plugin.
    """
    entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    wanted = os.environ.get(RESTRICTION)
    if wanted is None:
        return read_catalog(entry_points)
    names = {canonicalize_name(name.strip()) for name in wanted.split(",") if name.strip()}
    installed = {_distribution(point).name for point in entry_points}
    if missing := sorted(names - installed):
        raise PluginError(
            f"{missing[0]!r} is no installed plugin",
            where=RESTRICTION,
            next=f"installed: {', '.join(sorted(installed))}",
        )
    return read_catalog(point for point in entry_points if _distribution(point).name in names)


def read_catalog(entry_points: Iterable[importlib.metadata.EntryPoint]) -> Catalog:
    """The catalog of these entry points; the same entry point listed twice counts once."""
    plugins: list[Plugin] = []
    rewards: list[Entry[RewardSpec]] = []
    pretrained: list[Entry[PretrainedSpec]] = []
    methods: list[Entry[MethodSpec]] = list(_own_methods().values())
    broken: list[BrokenPlugin] = []
    # An editable install can leave the same entry point in two metadata folders.
    unique = {(point.name, point.value, _distribution(point).name): point for point in entry_points}
    for point in unique.values():
        distribution = _distribution(point)
        try:
            found = read_plugin(point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a plugin does, it must not take the others down
            broken.append(BrokenPlugin(f"{point.name} = {point.value}", distribution, _reason(error)))
            continue
        file = getattr(sys.modules.get(point.module), "__file__", None) or "?"
        plugins.append(
            Plugin(
                f"{point.name} = {point.value}",
                distribution,
                file,
                rewards=tuple(spec.kind for spec in found.rewards),
                pretrained=tuple(spec.alias for spec in found.pretrained),
                methods=tuple(spec.kind for spec in found.methods),
            )
        )
        rewards += [Entry(spec, distribution, point.module) for spec in found.rewards]
        pretrained += [Entry(spec, distribution, point.module) for spec in found.pretrained]
        methods += [Entry(spec, distribution, point.module) for spec in found.methods]
    conflicts: dict[str, tuple[Distribution, ...]] = {}
    models = _by_name(((entry.spec.alias, entry) for entry in pretrained), conflicts)
    return Catalog(
        rewards=_by_name(((entry.spec.kind, entry) for entry in rewards), conflicts),
        pretrained={alias: entry for alias, entry in models.items() if entry.spec.task == "pipeline"},
        critics={alias: entry for alias, entry in models.items() if entry.spec.task == "image-text-to-text"},
        detectors={alias: entry for alias, entry in models.items() if entry.spec.task == "zero-shot-object-detection"},
        methods=_by_name(((entry.spec.kind, entry) for entry in methods), conflicts),
        plugins=tuple(plugins),
        broken=tuple(broken),
        conflicts=conflicts,
    )


def _by_name(
    named: Iterable[tuple[str, Entry[Spec]]], conflicts: dict[str, tuple[Distribution, ...]]
) -> dict[str, Entry[Spec]]:
    claims: dict[str, list[Entry[Spec]]] = {}
    for name, entry in named:
        claims.setdefault(name, []).append(entry)
    conflicts |= {
        name: tuple(entry.distribution for entry in entries) for name, entries in claims.items() if len(entries) > 1
    }
    return {name: entries[0] for name, entries in sorted(claims.items()) if len(entries) == 1}


def _reason(error: BaseException) -> str:
    if isinstance(error, DraftError):
        return str(error).rstrip(".")
    return raised(error)


def _distribution(point: importlib.metadata.EntryPoint) -> Distribution:
    if point.dist is None:
        return Distribution("unknown", "?")
    return Distribution(canonicalize_name(point.dist.name), point.dist.version)
