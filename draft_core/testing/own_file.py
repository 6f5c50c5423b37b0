"""A reward in a Python file of one's own, under test before it is a plugin: `draft rewards check FILE.py:NAME`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from draft_core.errors import DraftError, PluginError, raised
from draft_core.registry.config import RewardConfig
from draft_core.registry.specs import RewardSpec
from draft_core.rewards.objective import checked_scores
from draft_core.rewards.protocol import as_reward, scope, takes
from draft_core.testing.subject import Subject, other_prompts

OF_PLUGINS = ("config_survives_json", "naming_imports_no_torch")  # checks of what a file does not have


class OwnConfig(RewardConfig):
    """Of a reward that has no config."""

    kind: Literal["reward"] = "reward"


def is_own_file(kind: str) -> bool:
    """Whether what is to be checked is written FILE.py:NAME."""
    return kind.rpartition(":")[0].endswith(".py")


def subject_of_file(target: str, *, small_prompts: Sequence[str] = ()) -> Subject:
    """The reward that a file defines, with the spec that it would have; the file is run.

    Whether it reads the prompt, and has a gradient, is found by calling it: a plugin declares both.

    Arguments:
        target: FILE.py:NAME, of a class that is called without arguments, a module, or a function of images, or of
            images and prompts.
        small_prompts: three or more prompts that it can read; ordinary ones if there are none.

    Raises:
        DraftError: if there is no such file or name, or it cannot be run or called.
    """
    path, _, name = target.rpartition(":")
    found = _named(Path(path), name)
    try:
        made = found() if isinstance(found, type) else found
    except Exception as error:
        raise PluginError(
            f"{name}() raised {raised(error)}",
            where=path,
            next="give a class without required arguments, or a function",
        ) from error
    reward = as_reward(made, name).requires_grad_(False).eval()
    spec = RewardSpec(
        kind="reward",
        summary=f"{name} of {path}",
        config=OwnConfig,
        factory="draft_core.rewards.protocol:as_reward",
        unit="score",
        code_license="unknown",
        takes=takes(reward),
        scope=scope(reward),
        small_prompts=tuple(small_prompts),
    )
    config = OwnConfig()
    return Subject(_as_seen(Subject(spec, config, None, reward), name), config, None, reward)


def _as_seen(subject: Subject, name: str) -> RewardSpec:
    """The spec, with what a call shows of gradient and prompt."""
    images = subject.images().requires_grad_()
    prompts = list(subject.prompts)
    with torch.enable_grad():
        scores = checked_scores(name, subject.reward, images, prompts)
    others = checked_scores(name, subject.reward, images.detach(), list(other_prompts(subject)))
    return replace(
        subject.spec,
        differentiable=scores.requires_grad,
        needs_prompt=not torch.equal(scores.detach(), others.detach()),
    )


def _named(path: Path, name: str) -> Any:
    """What a Python file defines under a name."""
    where = f"{path}:{name}"
    if not path.is_file():
        raise DraftError("no such file", where=str(path), next="check the path")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None:
        raise DraftError("Python cannot import it", where=str(path), next="give a .py file")
    module = importlib.util.module_from_spec(module_spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look there for their module
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"running it raised {raised(error)}", where=str(path), next="mend it") from error
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)  # not what the file itself has put before it
        if before is not None:
            sys.modules[path.stem] = before
    if not hasattr(module, name):
        defined = [it for it, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise DraftError("it defines no such name", where=where, next=f"name one of {', '.join(defined) or 'its own'}")
    return getattr(module, name)
