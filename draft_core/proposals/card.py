"""What decides the memory of a recipe's update, for the prediction on a card that is not here."""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING, Any

from draft_core.errors import RecipeError
from draft_core.frames import FrameChoice
from draft_core.recipe.quantization import quantized_networks
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.config import DirectConfig, RewardConfig
from draft_core.registry.environments import in_environment

if TYPE_CHECKING:
    from draft_core.cost.card import Update

SIZES = ("height", "width", "num_frames")  # arguments of the call that decide how large an image or video is
LARGEST_CARD = 1024  # GB
NOT_PREDICTED = "leave --card out, and predict it on the machine itself"
ALONE = "leave it out where the reward has a gradient, or train for two updates on such a card"


def card_size(text: str, *, where: str) -> float:
    """The GB of "24GB", "24 GB" or "24".

    Raises:
        RecipeError: if it is none of these.
    """
    found = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *(?:GB|GiB|G)?", text.strip(), flags=re.IGNORECASE)
    if not found or not 0 < float(found[1]) <= LARGEST_CARD:
        raise RecipeError(
            f"{text!r} is not the memory of a card", where=where, next="give it in GB, for example 24GB or 80GB"
        )
    return float(found[1])


def update_of(recipe: RecipeBase) -> Update:
    """What decides the memory of the recipe's update.

    Raises:
        RecipeError: if the model's networks are not known without its files, or a setting is not predicted.
    """
    from draft_core.cost.card import Update, published_model
    from draft_core.cost.published import MODELS, TINY_DECODERS
    from draft_core.setting import images_per_prompt

    model, method = recipe.model, recipe.method
    published = published_model(model.pretrained)
    if published is None:
        raise RecipeError(
            f"the networks of {model.pretrained} are not known without its files",
            where="model.pretrained",
            next=f"{NOT_PREDICTED}; known are {', '.join(known.hub for known in MODELS.values())}",
        )
    if not isinstance(method, DirectConfig):
        raise RecipeError(
            f"what {method.kind!r} asks of the networks is not known before it runs", where="method", next=NOT_PREDICTED
        )
    if named := [reward.kind for reward in recipe.rewards if reward.surrogate is not None]:
        raise RecipeError(
            "what it takes beside the method is not predicted", where=f"reward {named[0]!r}: surrogate", next=ALONE
        )
    if named := [config.kind for config in (*recipe.rewards, *recipe.metrics) if in_environment(config)]:
        raise RecipeError(
            "the memory of its process is not predicted", where=f"reward {named[0]!r}: environment", next=NOT_PREDICTED
        )
    others = {
        "model.pipeline": model.pipeline not in (None, published.pipeline),
        "model.compile": model.compile != "none",
        "train.sharding": recipe.train.sharding != "none",
        "train.mixed_precision": recipe.train.mixed_precision != "no",
    }
    for name in [name for name, is_set in others.items() if is_set]:
        raise RecipeError("it is not predicted for a card that is not here", where=name, next=NOT_PREDICTED)
    if model.decoder is not None and model.decoder not in TINY_DECODERS:
        raise RecipeError(
            f"{model.decoder} is not known without its files",
            where="model.decoder",
            next=f"{NOT_PREDICTED}; known are {', '.join(TINY_DECODERS)}",
        )
    renoising = method.renoising()
    copies = max(1, renoising.copies) if renoising.batched else 1
    frames = recipe.train.frames
    return Update(
        model=published,
        batch=recipe.train.batch_size * images_per_prompt(model.call) * copies,
        grad_steps=max(1, len(method.plan(model.num_inference_steps, Random(0)).grad_steps)),
        call={
            **{name: value for name, value in model.call.items() if name in SIZES},
            **({} if model.guidance_scale is None else {"guidance_scale": model.guidance_scale}),
        },
        rewards=_on_the_card(recipe.rewards),
        metrics=_on_the_card(recipe.metrics),
        rank=model.lora.rank,
        targets=model.lora.targets,
        dtype=model.dtype,
        checkpointing=model.gradient_checkpointing,
        decode=model.decode,
        tiles=model.tiled_decode,
        remember_prompts=model.remember_prompts,
        frames=None if frames is None else FrameChoice(frames.count, frames.choice),
        decoder=None if model.decoder is None else TINY_DECODERS[model.decoder],
        quantization={} if model.quantization is None else quantized_networks(model.quantization, published.networks),
    )


def _on_the_card(rewards: Any) -> dict[str, str]:
    def is_there(config: RewardConfig) -> bool:
        return config.device in (None, "cuda", "cuda:0")

    return {config.kind: getattr(config, "dtype", "float32") for config in rewards if is_there(config)}
