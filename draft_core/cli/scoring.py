"""Rewards as command lines name them: what `draft score` says of columns, and what a search of `draft sample` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draft_core.cli.terminal import out
from draft_core.errors import DraftError
from draft_core.prompt_rows import Column, PromptRow
from draft_core.registry.catalog import Catalog

if TYPE_CHECKING:
    from draft_core.registry.config import RewardConfig


def given_columns(reward: str, read: Mapping[str, Column], given: Sequence[str]) -> dict[str, str]:
    """Name of a column -> its text, of what stands on the command line as "name=text".

    Arguments:
        reward: its kind.
        read: what it reads, by its own names.

    Raises:
        DraftError: if one is of another form, or of a column that the reward does not read, or one that it reads is
            missing or of another type.
    """
    names = [column.name for column in read.values()]
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            problem = (
                "it is not of the form name=value" if not equals else f"reward {reward!r} reads no column {name!r}"
            )
            known = f"it reads {', '.join(names)}" if names else "leave it out, it reads none"
            raise DraftError(problem, where=f"--column {text}", next=known)
        values[name] = value
    for column in read.values():
        if column.name not in values:
            advice = f"give --column {column.name}=..."
            raise DraftError(f"reward {reward!r} reads column {column.name!r}", where="--column", next=advice)
        column.of(PromptRow("", values), where="--column")
    return values


def rewards_of_search(
    kind: str | None, fields: Mapping[str, Any], lora: Path | None, catalog: Catalog, *, climbs: bool
) -> Sequence[RewardConfig]:
    """The reward that was named, or those of the run that the LoRA lies in."""
    from draft_core.registry.environments import spec_of
    from draft_core.runs.build import reward_config
    from draft_core.runs.sample import rewards_of

    rewards: Sequence[RewardConfig] = ()
    if kind is not None:
        rewards = [reward_config(kind, fields, catalog)]
    elif fields:
        raise DraftError("it gives fields of a reward, and none is named", where="--set", next="name one with --reward")
    elif lora is not None and (rewards := rewards_of(lora, catalog)):
        out.print(
            f"rewards of the run: {', '.join(reward.kind for reward in rewards)}", highlight=False, soft_wrap=True
        )
    if not rewards:
        raise DraftError(
            "nothing says which image is better",
            where="--reward",
            next="name a reward that `draft rewards` lists, or give the folder of a run as --lora",
        )
    for reward in rewards:
        if climbs and reward.weight and not spec_of(reward, catalog).differentiable:
            raise DraftError(
                f"reward {reward.kind!r} has no gradient for the noise to climb",
                where="--optimise-noise",
                next="use --best-of, which needs none",
            )
    return rewards
