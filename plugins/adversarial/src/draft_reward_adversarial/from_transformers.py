"""Image classifiers of transformers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from draft_core.rewards.weights import explained, read_tensors, require_fit
from draft_reward_adversarial import TransformersSource
from draft_reward_adversarial.classes import all_names
from draft_reward_adversarial.classifier import WEIGHTS_OPTION, Classifier, load_own_weights, own_file
from draft_reward_adversarial.preprocessing import Preprocessing, of_timm, of_transformers


class Logits(torch.nn.Module):
    """The logits alone of a transformers classifier."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes) of a preprocessed batch."""
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


def load(source: TransformersSource, *, where: str) -> Classifier:
    """The classifier of a hub name or folder, with the settings of the image processor beside it."""
    where_name = f"{where}, source.name"
    with explained(f"the configuration of {source.name}", where=where_name, option="source.name", location=source.name):
        config = AutoConfig.from_pretrained(source.name)
        processor = AutoImageProcessor.from_pretrained(source.name)
    if source.num_classes is not None:
        config.num_labels = source.num_classes
    if source.weights == "random" or source.pairing == "order":
        with _built(source, where):
            network = AutoModelForImageClassification.from_config(config)
        if source.weights != "random":
            load_own_weights(network, source, where=where)
    else:
        network = _by_name(source, config, where)
    labels = [str(config.id2label.get(index, "")) for index in range(config.num_labels)]
    names = [all_names(label) for label in labels]
    return Classifier(Logits(network.float()), _preprocessing(processor), config.num_labels, names)


def _built(source: TransformersSource, where: str) -> AbstractContextManager[None]:
    """Inside, a network is made from its configuration."""
    return explained(f"a classifier from {source.name}", where=where, option="source.name", location=source.name)


def _by_name(source: TransformersSource, config: Any, where: str) -> Any:
    """With the weights beside the configuration, or from a file; transformers knows the older names of its tensors."""
    if source.weights == "hub":
        place, what, loader, tensors = where, f"the weights of {source.name}", AutoModelForImageClassification, {}
        location = source.name
    else:
        path = own_file(source, where=where)
        location = str(path)
        place, what, tensors = f"{where}, {path}", location, {"state_dict": read_tensors(path, where=where)}
        with torch.device("meta"), _built(source, where):
            loader = type(AutoModelForImageClassification.from_config(config))
    with explained(what, where=where, option=WEIGHTS_OPTION, location=location):
        network, report = loader.from_pretrained(
            None if tensors else source.name,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with the others that do not fit
            **tensors,
        )
    require_fit(
        type(network).__name__,
        missing=report["missing_keys"],
        # What is published may hold another task's head beside the classifier; that does no harm.
        unexpected=report["unexpected_keys"] if tensors else (),
        mismatched={name: (tuple(found), tuple(wanted)) for name, found, wanted in report["mismatched_keys"]},
        where=place,
    )
    return network


def _preprocessing(processor: Any) -> Preprocessing:
    if hasattr(processor, "data_config"):  # a timm model in transformers' clothes
        return of_timm(processor.data_config)
    return of_transformers(type(processor).__name__, processor.to_dict())
