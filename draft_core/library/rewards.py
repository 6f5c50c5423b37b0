"""An installed reward in one line, `load_reward`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from draft_core.errors import RecipeError, RewardError
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import RewardConfig
from draft_core.registry.environments import spec_of
from draft_core.runs.build import build_reward, reward_config


def load_reward(kind: str, /, *, small: bool = False, catalog: Catalog | None = None, **fields: Any) -> torch.nn.Module:
    """The reward of an installed kind, or of one in its own `environment`: `load_reward("jpeg", quality=50)`.

    It is called with images (N, 3, H, W) in [0, 1] and their N prompts; one that reads no prompt also with images
    alone.

    Arguments:
        kind: as `draft rewards` lists it.
        small: a small instance without a download, as the plugin's tests use it: its scores mean nothing.
        catalog: what is installed; loaded if left out.
        fields: of its config, as `draft rewards show KIND` lists them; with `small` they change the small instance.

    Raises:
        PluginError: if no usable plugin offers it.
        RecipeError: if a field is unknown or has a wrong value.
    """
    catalog = catalog if catalog is not None else load_catalog()
    if small and "environment" in fields:
        raise RecipeError(
            "what is small is said by a plugin here, and this reward is in an environment of its own",
            where=f"reward {kind!r}: small",
            next="leave it out, and give the fields of a small instance",
        )
    return reward_of(
        reward_config(kind, {**(catalog.reward(kind).spec.small if small else {}), **fields}, catalog), catalog
    )


def reward_of(config: RewardConfig, catalog: Catalog) -> torch.nn.Module:
    """The reward of a config, which is called as `load_reward` says."""
    reward = build_reward(config, catalog).requires_grad_(False).eval()
    needs_prompt = spec_of(config, catalog).needs_prompt
    reward.register_forward_pre_hook(partial(_with_prompts, config.kind, needs_prompt), with_kwargs=True)
    return reward


def _with_prompts(
    kind: str, needs_prompt: bool, reward: torch.nn.Module, given: tuple[Any, ...], beside: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call with images alone has blank prompts."""
    if len(given) != 1 or "prompts" in beside:
        return given, beside
    if needs_prompt:
        raise RewardError(
            "it scores images against prompts, and there are none",
            where=f"reward {kind!r}",
            next="give one for each image: reward(images, prompts)",
        )
    return (given[0], [""] * len(given[0])), beside
