"""Whether the files that a reward's code names are there: weights on the hub, and files beside its modules."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from draft_core.errors import raised
from draft_core.publishing.findings import Finding
from draft_core.registry.specs import HUB_NAME, RewardSpec

HUB = "hub"  # the word of a field of paths that means published weights
EXAMPLE = "owner/"  # begins the name of the repository that a new project stands with


def offers_published(spec: RewardSpec) -> bool:
    """Whether a field's default is the word for published weights."""
    return any(field.default == HUB for field in spec.config.model_fields.values())


def missing_files(spec: RewardSpec) -> Iterator[Finding]:
    """What the modules of the config and of the factory name as constants, and nobody has.

    They are imported, and nothing is made of them. Of a hub that cannot be asked, that is said.
    """
    named: dict[str, Any] = {}
    for name in dict.fromkeys([spec.config.__module__, spec.factory.partition(":")[0]]):
        try:
            named.update(_constants(importlib.import_module(name)))
        except Exception as error:  # of a plugin's module; that it is not there at all is said of the spec
            if not (isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")):
                yield Finding(f"{name} does not import ({raised(error)})", "mend it, or require what it imports")
    on_hub: dict[tuple[str, str | None], str] = {}
    for constant, value in named.items():
        if isinstance(value, Path) and not value.exists():
            yield Finding(f"{constant} names {value}, which is not there", "put it there, or take out the constant")
        if found := _named_on_hub(value, repositories=offers_published(spec)):
            on_hub.setdefault(found, constant)
    for (repository, file), constant in on_hub.items():
        yield from _on_hub(repository, file, constant)


def _named_on_hub(value: Any, *, repositories: bool) -> tuple[str, str | None] | None:
    """The repository that a constant names, and the file in it; of texts that could be repositories, if so wanted."""
    from draft_core.rewards.weights import HubFile  # and with it torch

    if isinstance(value, HubFile):
        return value.repo, value.filename
    return (value, None) if repositories and isinstance(value, str) and HUB_NAME.fullmatch(value) else None


def _constants(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What the module itself names in capitals; the values of a mapping one by one."""
    for name, value in vars(module).items():
        for key, item in value.items() if isinstance(value, Mapping) else [(None, value)]:
            if name.isupper():
                yield f"{module.__name__}.{name}" + ("" if key is None else f"[{key!r}]"), item


def _on_hub(repository: str, file: str | None, constant: str) -> Iterator[Finding]:
    what = f"{file} of {repository}" if file else repository
    if repository.startswith(EXAMPLE):
        yield Finding(
            f"{constant} names {what}, the example of a new project", "publish the weights on the hub, and name them"
        )
        return
    try:
        if not _is_there(repository, file):
            yield Finding(f"the hub has no {what}, which {constant} names", "publish the weights there, or correct it")
    except Exception as error:  # the hub's own, of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Finding(
            f"whether the hub has {what}, could not be asked ({reason})", "ask again with a network", required=False
        )


def _is_there(repository: str, file: str | None) -> bool:
    """Whether the hub has a repository, and the file in it.

    Raises:
        OSError: if it cannot be asked.
    """
    import huggingface_hub

    from draft_core.rewards.hub import unreachable

    if reason := "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else unreachable():
        raise OSError(reason)
    if file is None:
        return huggingface_hub.repo_exists(repository)
    return huggingface_hub.file_exists(repository, file)
