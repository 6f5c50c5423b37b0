"""Makes a reward of its config, here or in a worker: what its plugin's factory gives, checked, on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from draft_core.errors import DraftError, PluginError, RecipeError, raised_at, with_type
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import Config, RewardConfig
from draft_core.rewards.placement import OnDevice
from draft_core.rewards.protocol import scope


def made_reward(config: RewardConfig, catalog: Catalog) -> torch.nn.Module:
    """What the plugin's factory makes of its config.

    Raises:
        PluginError: if the factory raises anything but a `DraftError`, or makes no module.
        RecipeError: if its device is not here.
    """
    entry = catalog.reward(config.kind)
    where = f"reward {config.kind!r} of {entry.distribution}"
    reward = made_by_plugin(entry.spec.load(), config, where)
    if not isinstance(reward, torch.nn.Module):
        raise PluginError(f"its factory made {type(reward).__name__}, not a torch.nn.Module", where=where)
    if not entry.spec.allows(said := getattr(reward, "takes", "image")):
        raise PluginError(
            f"its spec says that it takes {entry.spec.takes}, its attribute `takes` {said}",
            where=where,
            next="tell its author",
        )
    if entry.spec.scope != scope(reward):
        problem = f"its spec says that its scope is the {entry.spec.scope}, its attribute `scope` {scope(reward)}"
        raise PluginError(problem, where=where, next="tell its author")
    if config.device is None:
        return reward
    check_device(config.device, where=f"reward {config.kind!r}: device")
    return OnDevice(reward, config.device)


def made_by_plugin(factory: Callable[[Any], Any], config: Config, where: str) -> Any:
    """What a plugin's factory makes of a config.

    Raises:
        PluginError: if it raises anything but a `DraftError`; `where` names the plugin, the traceback is the cause.
    """
    try:
        return factory(config)
    except DraftError:
        raise
    except Exception as error:
        raise PluginError(
            f"it cannot be built ({with_type(error)}){raised_at(error)}",
            where=where,
            next="tell its author",
        ) from error


def check_device(device: str, *, where: str) -> None:
    """That a device is here; a number behind cuda counts from 0.

    Raises:
        RecipeError: naming those that are.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *(["cuda", *(f"cuda:{card}" for card in range(cards))] if cards else [])]
    available += ["mps"] if torch.backends.mps.is_available() else []
    if device not in available:
        raise RecipeError(
            f"{device!r} is not available here", where=where, next=f"use {', '.join(available)}, or leave the field out"
        )
