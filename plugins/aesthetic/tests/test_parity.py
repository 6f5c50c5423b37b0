"""The same score as the published pipeline: Pillow, open_clip's transform and tower, and the head as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from draft_reward_aesthetic import AestheticConfig, draft_register_rewards
from draft_reward_aesthetic.reward import TINY, AestheticReward, rating_head
from open_clip.transform import image_transform

from draft_core.images import CLIP_MEAN, CLIP_STD, center_crop, to_pil
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
RANDOM = AestheticConfig(clip="random", head="random", architecture="tiny")
# None is more than twice as tall as wide: there Pillow 13 has another order of passes than when this was published.
SIZES = [(224, 224), (512, 512), (256, 256), (300, 401), (427, 640), (97, 64), (513, 300)]
LIMIT = 0.002  # of the standard deviation between images

PUBLISHED_HEAD = Path(__file__).parents[4] / "shared" / "data" / "laion" / "sac+logos+ava1-l14-linearMSE.pth"
published = pytest.mark.skipif(not PUBLISHED_HEAD.exists(), reason=f"{PUBLISHED_HEAD.name} is not here")


class PublishedHead(torch.nn.Module):
    """As in improved-aesthetic-predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(768, 1024),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(1024, 128),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(128, 64),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(64, 16),
            torch.nn.Linear(16, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def normalized(a: np.ndarray) -> np.ndarray:
    l2 = np.atleast_1d(np.linalg.norm(a, 2, -1))
    l2[l2 == 0] = 1
    return a / np.expand_dims(l2, -1)


@torch.no_grad()
def original(reward: AestheticReward, images: torch.Tensor) -> torch.Tensor:
    """The published pipeline on the same weights, one picture at a time."""
    clip = open_clip.CLIP(**TINY).eval()
    clip.visual.load_state_dict(reward.tower.state_dict())
    head = PublishedHead().eval()
    head.load_state_dict(reward.head.state_dict())
    preprocess = image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    scores = []
    for image in images:
        features = clip.encode_image(preprocess(to_pil(image))[None])
        scores.append(head(torch.from_numpy(normalized(features.numpy())).float())[0, 0])
    return torch.stack(scores)


def error(height: int, width: int) -> float:
    """Largest difference from the published pipeline, in standard deviations between images."""
    subject = Subject(SPEC, RANDOM)
    images = (subject.images(6, height, width) * 255).round() / 255
    expected = original(subject.reward, images)
    return float((subject.score(images, ("",) * 6) - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_are_those_of_the_published_pipeline(height: int, width: int) -> None:
    assert error(height, width) <= LIMIT


@published
def test_the_published_head_scores_as_published() -> None:
    head = rating_head(RANDOM.model_copy(update={"head": str(PUBLISHED_HEAD)}))
    reference = PublishedHead().eval()
    reference.load_state_dict(torch.load(PUBLISHED_HEAD, map_location="cpu", weights_only=True))
    embeddings = torch.nn.functional.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        torch.testing.assert_close(head(embeddings), reference(embeddings), rtol=0, atol=2e-5)


@published
def test_the_published_head_is_one_linear_map() -> None:
    """|w| and b, measured once on the published file, tell it from any other."""
    head = rating_head(RANDOM.model_copy(update={"head": str(PUBLISHED_HEAD)})).double()
    with torch.no_grad():
        bias = head(torch.zeros(1, 768, dtype=torch.float64))
        weight = head(torch.eye(768, dtype=torch.float64)) - bias
    assert float(weight.norm()) == pytest.approx(17.996, abs=1e-3)
    assert float(bias) == pytest.approx(5.2366, abs=1e-4)


def test_the_crop_of_another_library_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_aesthetic.reward.center_crop",
        lambda images, side, rounding: center_crop(images, side, rounding="floor"),
    )
    assert error(300, 401) > LIMIT
