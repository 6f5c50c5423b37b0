"""The same score as facenet-pytorch's own networks and box operations, and the same faces as its MTCNN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_reward_face.cascade import faces
from draft_reward_face.reward import FaceCount, FaceReward
from PIL import Image

from draft_core import load_reward
from draft_core.rewards.images import to_pil
from draft_core.testing import compare_kind

facenet_pytorch = pytest.importorskip(
    "facenet_pytorch", reason="facenet-pytorch is missing (pip install --no-deps facenet-pytorch): it has the weights"
)
SMALL = {"weights": "random"}


@pytest.mark.parametrize("size", [(64, 64), (97, 64), (120, 161)], ids=str)
@pytest.mark.parametrize("weights", ["random", "package"])
def test_scores_are_those_of_facenet_pytorch(weights: str, size: tuple[int, int]) -> None:
    comparison = compare_kind("face", {"weights": weights}, sizes=[size], count=3)
    assert comparison.holds, comparison


def test_another_pyramid_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_reward_face.cascade.SHRINK", 0.5)
    assert not compare_kind("face", {"weights": "package"}, sizes=[(97, 64)], count=3).holds


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    """A photograph with one face, (1, 3, 256, 256), from scikit-image's wheel."""
    skimage = pytest.importorskip("skimage", reason="scikit-image is missing: its wheel carries the photograph")
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    pixels = np.array(Image.open(path).convert("RGB").crop((64, 0, 320, 256)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def count() -> Any:
    return load_reward("face-count")


def assert_same_faces(image: torch.Tensor, count: FaceCount) -> int:
    """That facenet-pytorch's own detector finds the same boxes; how many."""
    boxes, probabilities = facenet_pytorch.MTCNN(keep_all=True, select_largest=False).detect(to_pil(image[0]))
    found = faces(count.candidates(image, [""], best=False)[0])
    if boxes is None:
        assert len(found.boxes) == 0
        return 0
    torch.testing.assert_close(found.boxes, torch.from_numpy(boxes.astype(np.float32)), atol=0.5, rtol=0)
    torch.testing.assert_close(
        found.latest.exp(), torch.from_numpy(probabilities.astype(np.float32)), atol=1e-3, rtol=0
    )
    return len(boxes)


def test_the_face_in_a_photograph_is_where_facenet_pytorch_finds_it(astronaut: torch.Tensor, count: FaceCount) -> None:
    assert assert_same_faces(astronaut, count) == 1
    assert assert_same_faces(astronaut.flip(2), count) == 0
    assert count(torch.cat([astronaut, astronaut.flip(2)]), ["", ""]).tolist() == [1, 0]


def test_a_face_scores_far_above_the_same_photograph_turned_over(astronaut: torch.Tensor) -> None:
    reward: FaceReward = load_reward("face")  # type: ignore[assignment]
    upright, turned = reward(torch.cat([astronaut, astronaut.flip(2)]), ["", ""]).tolist()
    assert upright > -0.1
    assert turned < upright - 1


def test_faces_are_the_same_before_and_after_climbing(astronaut: torch.Tensor, count: FaceCount) -> None:
    """Signed gradient steps on an image without a face: facenet-pytorch itself then finds what the reward put there."""
    reward = load_reward("face")
    image = (astronaut.flip(2) * 255).round() / 255
    assert assert_same_faces(image, count) == 0
    before = float(reward(image, [""]))
    for _ in range(15):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(reward(image, [""]).sum(), image)
        image = (image + 4 / 255 * gradient.sign()).clamp(0, 1).detach()
    image = (image * 255).round() / 255
    assert float(reward(image, [""])) > before + 1
    assert assert_same_faces(image, count) >= 1
