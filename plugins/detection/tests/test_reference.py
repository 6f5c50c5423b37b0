"""The same score as transformers' own processor on Pillow and its own forward."""

from __future__ import annotations

import pytest
import torch
from draft_reward_detection import draft_register_rewards
from draft_reward_detection.reference import ImageProcessor
from draft_reward_detection.reward import DetectionFound
from transformers import OwlViTProcessor

from draft_core.rewards.images import resize_and_crop_like_pil, to_pil
from draft_core.testing import SIZES, compare_kind

SPECS = {spec.kind: spec for spec in draft_register_rewards()}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["detection", "detection-per-prompt", "detection-listed"])
def test_scores_are_those_of_transformers(kind: str, size: tuple[int, int]) -> None:
    comparison = compare_kind(kind, SPECS[kind].small, sizes=[size])
    assert comparison.holds, comparison


def test_a_crop_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_detection.detector.resize_like_pil",
        lambda images, height, width: resize_and_crop_like_pil(images, height, width, rounding="floor"),
    )
    assert not compare_kind("detection", SPECS["detection"].small, sizes=[(300, 401)]).holds


def test_what_is_found_is_what_transformers_lists() -> None:
    """With one query, the boxes that its post-processing keeps are those of the query."""
    kind = SPECS["detection-found"]
    images = (torch.rand(6, 3, 80, 120, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    images = images * torch.linspace(0.1, 1, 6)[:, None, None, None]
    images = (images * 255).round() / 255
    reward = DetectionFound(kind.config(present=("cat",), weights="random"))
    probabilities = reward.logits(images, ["a"] * 6).amax(1).sigmoid()[:, 0]
    reward.threshold = float(probabilities.sort().values[2:4].mean())
    size = {"height": reward.detector.side, "width": reward.detector.side}
    processor = OwlViTProcessor(ImageProcessor(size=size), reward.detector.tokenizer)
    lengths = []
    for image in images:
        inputs = processor(text=[["cat"]], images=to_pil(image), max_length=16, return_tensors="pt")
        with torch.no_grad():
            outputs = reward.detector.model(**inputs)
        (found,) = processor.image_processor.post_process_object_detection(outputs, threshold=reward.threshold)
        lengths.append(len(found["boxes"]))
    assert {length > 0 for length in lengths} == {True, False}
    assert reward(images, ["a"] * 6).tolist() == [float(length > 0) for length in lengths]
