"""Classifiers of timm."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config

from draft_core.rewards.weights import explained
from draft_reward_adversarial import TimmSource
from draft_reward_adversarial.classes import all_names
from draft_reward_adversarial.classifier import (
    WEIGHTS_OPTION,
    Classifier,
    load_own_weights,
    megabytes,
    unknown_model,
)
from draft_reward_adversarial.preprocessing import of_timm


def load(source: TimmSource, *, where: str) -> Classifier:
    """The classifier that `timm.create_model` builds, with the preprocessing of its pretrained configuration."""
    if not timm.is_model(source.name.partition(".")[0]):
        raise unknown_model("timm", source.name, timm.list_models(), where=where)
    if "." in source.name and source.name not in (tagged := timm.list_models(pretrained=True)):
        raise unknown_model("timm", source.name, tagged, where=where)
    classes = {} if source.num_classes is None else {"num_classes": source.num_classes}
    network = timm.create_model(source.name, pretrained=False, **classes)
    if source.weights == "hub":
        what = f"{network.pretrained_cfg.get('hf_hub_id') or source.name} for timm"
        with explained(what, megabytes=megabytes(network), where=where, option=WEIGHTS_OPTION):
            network = timm.create_model(source.name, pretrained=True)
    elif source.weights != "random":
        load_own_weights(network, source, where=where)
    return Classifier(network, of_timm(resolve_model_data_config(network)), network.num_classes, class_names(network))


def class_names(network: object) -> Sequence[Sequence[str]] | None:
    """WordNet id, names and whole label of each ImageNet class, if the number of classes is one of ImageNet's."""
    subset = infer_imagenet_subset(network)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [all_names(label, synset) for synset, label in info.label_descriptions(as_dict=True).items()]
