"""The settings with which an update fits on a card, and the recipe that says them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from draft_core.cost.card import GIB, USABLE, Prediction, Update, leaner, predict, published_model, usable
from draft_core.errors import RecipeError
from draft_core.proposals.card import SIZES
from draft_core.proposals.starts import EMOJI, FIELDS, HELD_OUT, Start
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.config import DirectConfig
from draft_core.reporting.rendering import template_environment

SURE = 0.9  # of what a card has; the rest is for what a prediction does not see
WHY = {
    "false": "everything is kept for the backward pass",
    "selective": "norms and activations are computed again in the backward pass, which saves half",
    "blocks": "one block after another is computed again in the backward pass, which takes least",
}


@dataclass(frozen=True)
class Fit:
    """Settings of a recipe that decide its memory, and what they were predicted to take.

    Arguments:
        method: fields of a recipe's `method`.
        prediction: None where nothing had to be predicted.
    """

    method: Mapping[str, Any]
    batch: int
    accumulation: int
    checkpointing: str = "false"
    decode: str = "whole"
    prediction: Prediction | None = None

    @property
    def why_checkpointing(self) -> str:
        """What the recipe says of it."""
        return WHY[self.checkpointing]


def fit_to_card(start: Start, reward: str, methods: Sequence[DirectConfig], card: float) -> Fit:
    """The fastest of the settings that fit: least recomputed, then most grad steps, then the largest batch.

    Arguments:
        methods: those of `start`, validated.
        card: GB.

    Raises:
        RecipeError: if the leanest does not fit.
    """
    model = published_model(start.networks or start.pretrained)
    assert model is not None, f"{start.pretrained} is not among the published models"
    update = Update(
        model,
        call={"guidance_scale": start.guidance, **{name: value for name, value in start.call.items() if name in SIZES}},
        rewards={reward: str(FIELDS.get(reward, {}).get("dtype", "float32"))},
        rank=start.rank,
        remember_prompts=True,
    )
    room, fit = SURE * usable(card), None
    ways = [(method, way) for way in leaner(model) for method in methods]
    for method, (checkpointing, decode) in reversed(ways):  # from the leanest, until one does not fit
        steps = len(method.plan(start.steps, Random(0)).grad_steps)
        found = predict(replace(update, grad_steps=steps, checkpointing=checkpointing, decode=decode))
        if found.total > room:
            break
        batch = next(size for size in (start.images_per_update, 4, 2, 1) if found.times(size).total <= room)
        fit = Fit(
            {"kind": method.kind, **method.model_dump(exclude_defaults=True)},
            batch,
            start.images_per_update // batch,
            str(checkpointing).lower(),
            decode,
            found.times(batch),
        )
    if fit is None:
        raise _too_small(start, found, card)
    return fit


def _too_small(start: Start, found: Prediction, card: float) -> RecipeError:
    needed = found.total / GIB / USABLE / SURE
    return RecipeError(
        f"one image of {start.title} takes {found.total / GIB:.1f} GiB at the least, a card of {card:g} GB has "
        f"{usable(card) / GIB:.1f} for a program",
        where="--card",
        next=f"take a card of {needed:.0f} GB or more, several GPUs with train.sharding, or a smaller model",
    )


def recipe_text(
    start: Start,
    fit: Fit,
    reward: str,
    metrics: Sequence[str],
    *,
    prompts: str | None,
    output: str,
    header: Sequence[str],
    card: float | None,
) -> str:
    """The recipe as YAML, with a comment behind each line.

    Arguments:
        prompts: a file or the name of a list; None writes some prompts into the recipe.
        output: the folder of the run.
        header: sentences that stand above it.
        card: GB; None for a model that runs on any computer.
    """
    is_emoji = start.pretrained == EMOJI
    environment = template_environment("draft_core.proposals")
    environment.filters["inline"] = _inline
    on_cpu = {} if is_emoji else {"device": "cpu"}
    return environment.get_template("recipe.yaml.j2").render(
        start=start,
        title=start.title,
        fit=fit,
        reward={"kind": reward, **FIELDS.get(reward, {})},
        metrics=[{"kind": kind, **on_cpu} for kind in metrics],
        prompts=prompts or start.own_prompts,
        held_out=start.held_out_prompts,
        count=54 if is_emoji else HELD_OUT,
        every=20 if is_emoji else 25,
        header=header,
        card=card,
        output=output,
    )


def _inline(value: Any) -> str:
    """A value as YAML in one line: texts in quotes where they would be read as something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z][\w./-]*", value, flags=re.ASCII) and parse_yaml(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return f"{value}"
