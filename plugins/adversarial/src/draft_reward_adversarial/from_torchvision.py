"""Classifiers of torchvision."""

from __future__ import annotations

import re
from typing import Any

import torchvision.models

from draft_core.errors import DraftError
from draft_core.rewards.weights import explained, load_strict
from draft_reward_adversarial import TorchvisionSource
from draft_reward_adversarial.classes import all_names
from draft_reward_adversarial.classifier import (
    WEIGHTS_OPTION,
    Classifier,
    load_own_weights,
    megabytes,
    unknown_model,
)
from draft_reward_adversarial.preprocessing import of_torchvision

# Their published weights expect another normalisation, which these networks then do themselves.
_RENORMALISING = ("googlenet", "inception_v3")
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def load(source: TorchvisionSource, *, where: str) -> Classifier:
    """The classifier that `torchvision.models.get_model` builds, with the transforms of its published weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if source.name not in known:
        raise unknown_model("torchvision", source.name, known, where=where)
    published = _published(source, where)
    count = source.num_classes or len(published.meta["categories"])
    extra = {}
    if source.name in _RENORMALISING:
        extra = {"transform_input": True, "init_weights": source.weights == "random"}
    network = torchvision.models.get_model(source.name, weights=None, num_classes=count, **extra)
    if source.weights == "hub":
        with explained(published.url, megabytes=megabytes(network), where=where, option=WEIGHTS_OPTION):
            tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
        load_strict(network, {_renamed(name): tensor for name, tensor in tensors.items()}, where=where)
    elif source.weights != "random":
        load_own_weights(network, source, where=where, rename=_renamed)
    names = [all_names(name) for name in published.meta["categories"]]
    return Classifier(network, of_torchvision(published.transforms()), count, names if len(names) == count else None)


def _published(source: TorchvisionSource, where: str) -> Any:
    variants = torchvision.models.get_model_weights(source.name)
    if source.variant is not None and source.variant not in variants.__members__:
        raise DraftError(
            f"{source.name} has no weights {source.variant!r}",
            where=f"{where}, source.variant",
            next=f"known: {', '.join(variants.__members__)}",
        )
    return variants[source.variant or "DEFAULT"]


def _renamed(name: str) -> str:
    """DenseNet's files were written before torchvision renamed its layers."""
    return _OLD_DENSENET.sub(r"\1\2", name)
