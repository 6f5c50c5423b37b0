"""The three networks of MTCNN, and where their weights are: read it when weights do not load."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from draft_core.errors import DraftError
from draft_core.rewards.weights import RANDOM, load_strict, read_tensors, seeded
from draft_reward_face import MtcnnConfig

PACKAGE, TESTED = "facenet-pytorch", "2.6.0"
NAMES = ("pnet", "rnet", "onet")
SIDES = (12, 24, 48)  # pixels that each network sees of a candidate
GAIN = 4.0  # of random heads, so that some candidates pass a stage and others do not


class Stage(nn.Module):
    """A network of MTCNN, its layers named as in the published files.

    Arguments:
        convolutions: output channels, kernel, and kernel of the pooling behind it, 0 for none; pooling has stride 2.
        dense: input and output width of the dense layer, None for the network that is slid over the image.
        heads: widths of the outputs: face or not, four corrections of the box, and landmarks that are not read.
    """

    def __init__(
        self, convolutions: Sequence[tuple[int, int, int]], dense: tuple[int, int] | None, heads: Sequence[int]
    ) -> None:
        super().__init__()
        self.pools = [pool for *_, pool in convolutions]
        channels = 3
        for number, (width, kernel, _) in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, width, kernel))
            self.add_module(f"prelu{number}", nn.PReLU(width))
            channels = width
        last = len(convolutions)
        if dense:
            last += 1
            self.add_module(f"dense{last}", nn.Linear(*dense))
            self.add_module(f"prelu{last}", nn.PReLU(dense[1]))
        self.dense = f"dense{last}" if dense else None
        self.last = last
        self.head = f"dense{last + 1}" if dense else f"conv{last + 1}"
        for number, width in enumerate(heads, 1):
            layer = nn.Linear(dense[1], width) if dense else nn.Conv2d(channels, width, 1)
            self.add_module(f"{self.head}_{number}", layer)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of a face (N, ...) and corrections of the box (N, 4, ...), of levels (N, 3, H, W).

        Levels are in [0, 255]. With a dense layer there is one of each for an image, otherwise one for each place.
        """
        at = (levels - 127.5) / 128
        for number, pool in enumerate(self.pools, 1):
            at = self.get_submodule(f"prelu{number}")(self.get_submodule(f"conv{number}")(at))
            if pool:
                at = nn.functional.max_pool2d(at, pool, 2, ceil_mode=True)
        if self.dense:
            at = at.transpose(1, 3).flatten(1)  # columns come first in the published weights
            at = self.get_submodule(f"prelu{self.last}")(self.get_submodule(self.dense)(at))
        logits = self.get_submodule(f"{self.head}_1")(at)
        corrections: Tensor = self.get_submodule(f"{self.head}_2")(at)
        return logits.log_softmax(1)[:, 1], corrections


def load_stages(config: MtcnnConfig) -> nn.ModuleList:
    """P-Net, R-Net and O-Net in float32.

    Zhang, Zhang, Li and Qiao 2016, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
    Networks", arXiv 1604.02878; layers as facenet-pytorch 2.6.0 has them.

    Raises:
        DraftError: if a file is missing or does not fit.
    """
    where = f"reward {config.kind!r}"
    with seeded(config.seed):
        stages = nn.ModuleList(
            [
                Stage([(10, 3, 2), (16, 3, 0), (32, 3, 0)], None, [2, 4]),
                Stage([(28, 3, 3), (48, 3, 3), (64, 2, 0)], (576, 128), [2, 4]),
                Stage([(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], (1152, 256), [2, 4, 10]),
            ]
        )
    for name, stage in zip(NAMES, stages, strict=True):
        if config.weights == RANDOM:
            with torch.no_grad():
                stage.get_submodule(f"{stage.head}_1").get_parameter("weight").mul_(GAIN)
        else:
            file = in_package(name, where=where) if config.weights == "package" else Path(config.weights) / f"{name}.pt"
            if not file.is_file():
                raise DraftError(
                    f"there is no file {name}.pt in {str(file.parent)!r}",
                    where=f"{where}, weights",
                    next="give a folder with pnet.pt, rnet.pt and onet.pt",
                )
            load_strict(stage, read_tensors(file, where=where), where=f"{where}, {file}")
    return stages


def in_package(name: str, *, where: str) -> Path:
    """The file of a network in the installed package facenet-pytorch, which is not imported for it.

    Raises:
        DraftError: if the package or the file is missing.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == f"facenet_pytorch/data/{name}.pt":
            return Path(str(file.locate()))
    raise DraftError(
        f"the package {PACKAGE} with the weights of MTCNN is not installed",
        where=f"{where}, weights",
        next=f"pip install --no-deps {PACKAGE}=={TESTED}, or set weights to a folder with pnet.pt, rnet.pt and onet.pt",
    )
