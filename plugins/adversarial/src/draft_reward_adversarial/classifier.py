"""A classifier from any of the three libraries: its network, its preprocessing and its classes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from draft_core.errors import DraftError
from draft_core.rewards.weights import HubFile, load_strict, locate, read_tensors
from draft_reward_adversarial import TimmSource, TorchvisionSource, TransformersSource
from draft_reward_adversarial.preprocessing import Preprocessing

AnySource = TimmSource | TorchvisionSource | TransformersSource
WEIGHTS_OPTION = "source.weights"
_BYTES_PER_NUMBER = 4  # float32, as classifiers are published


@dataclass(frozen=True)
class Classifier:
    """What a source stands for.

    Arguments:
        network: input of `preprocessing` -> logits (B, count).
        count: number of classes.
        names: for each class its names, as `classes.class_index` takes them; None where they are not known.
    """

    network: torch.nn.Module
    preprocessing: Preprocessing
    count: int
    names: Sequence[Sequence[str]] | None


def load_classifier(source: AnySource, *, where: str) -> Classifier:
    """The classifier of a source, in float32 on the CPU; only the library it comes from is imported.

    Raises:
        DraftError: if there is no such model, its weights are missing or do not fit, or it does not classify.
    """
    load: Callable[..., Classifier] = import_module(f"draft_reward_adversarial.from_{source.library}").load
    with torch.random.fork_rng(devices=[]):  # the sequence of random numbers outside is left as it was
        torch.manual_seed(source.seed)
        classifier = load(source, where=where)
    if classifier.count < 2:
        raise DraftError(
            f"{source.name} has no classes to choose from", where=f"{where}, source.name", next="name a classifier"
        )
    return classifier


def load_own_weights(
    network: torch.nn.Module,
    source: AnySource,
    *,
    where: str,
    rename: Callable[[str], str] = lambda name: name,
) -> None:
    """Puts the file that `source.weights` names into the network, by name or in order.

    Arguments:
        rename: from a name in the file to the name in the network.
    """
    path = own_file(source, where=where)
    tensors = {rename(name): tensor for name, tensor in read_tensors(path, where=where).items()}
    own, where = network.state_dict(), f"{where}, {path}"
    if source.pairing == "order":
        tensors = paired_in_order(own, tensors, where=where)
    try:
        load_strict(network, tensors, where=where)
    except DraftError as error:
        shapes = [[tensor.shape for tensor in each.values()] for each in (own, tensors)]
        if shapes[0] != shapes[1]:
            raise
        raise DraftError(
            error.what, where=where, next="if they are, by another implementation, set source.pairing to order"
        ) from None


def own_file(source: AnySource, *, where: str) -> Path:
    """The local path of the file that `source.weights` names."""
    # What is published under the name is loaded by its library; here stands only a path or hf:// address.
    return locate(source.weights, HubFile(source.name, "weights"), where=where, option=WEIGHTS_OPTION)


def paired_in_order(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The file's tensors under the network's names, the first under the first name and so on.

    Raises:
        DraftError: if there are more or fewer, or two that meet differ in shape.
    """
    if len(own) != len(tensors):
        raise DraftError(
            f"the file has {len(tensors)} tensors and the network {len(own)}: they cannot be paired in order",
            where=where,
            next="give the file of this architecture",
        )
    for (name, wanted), (other, found) in zip(own.items(), tensors.items(), strict=True):
        if wanted.shape != found.shape:
            raise DraftError(
                f"paired in order, {other} of shape {tuple(found.shape)} meets {name} of shape {tuple(wanted.shape)}",
                where=where,
                next="give the file of this architecture",
            )
    return dict(zip(own, tensors.values(), strict=True))


def megabytes(network: torch.nn.Module) -> float:
    """Size of its weights as a file."""
    count: int = sum(each.numel() for each in network.state_dict().values())
    return count * _BYTES_PER_NUMBER / 1e6


def unknown_model(library: str, name: str, known: Collection[str], *, where: str) -> DraftError:
    """The error for a model that a library does not have, with the nearest ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return DraftError(
        f"{library} has no classifier {name!r}",
        where=f"{where}, source.name",
        next=f"did you mean {' or '.join(map(repr, near))}?" if near else f"see the model list of {library}",
    )
