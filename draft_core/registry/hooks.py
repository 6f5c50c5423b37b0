"""The hooks a plugin may implement, and the entry-point group it is found by.

Hooks only register and return values; nothing here runs during training, so that installing a plugin
changes what you can name and never what a run computes.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from draft_core.registry.specs import MethodSpec, PretrainedSpec, RewardSpec

PROJECT = "draft"
ENTRY_POINT_GROUP = "draft_core.plugins"

# Every naming file declares it as DRAFT_API_VERSION; one that says another number, or none, is refused by name.
API_VERSION = 2

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The rewards this distribution offers."""
    raise NotImplementedError


@hookspec
def draft_register_pretrained() -> Iterable[PretrainedSpec]:
    """The models this distribution carries: pipelines with their prompt lists, and models that rewards ask."""
    raise NotImplementedError


@hookspec
def draft_register_methods() -> Iterable[MethodSpec]:
    """The methods this distribution offers."""
    raise NotImplementedError
