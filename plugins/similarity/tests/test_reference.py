"""The same similarity as transformers' own DINOv2 on Pillow, and as the package lpips."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torchvision.models
from draft_reward_similarity import EXAMPLES, draft_register_rewards
from draft_reward_similarity.lpips import BACKBONES

from draft_core.rewards.images import resize_and_crop_like_pil
from draft_core.testing import SIZES, compare_kind

SPECS = {spec.kind: spec for spec in draft_register_rewards()}
SQUEEZE = {"reference": str(EXAMPLES / "corner.png"), "weights": "random", "model": "lpips-squeeze", "side": 64}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cosines_are_those_of_transformers(size: tuple[int, int]) -> None:
    comparison = compare_kind("similarity", SPECS["similarity"].small, sizes=[size])
    assert comparison.holds, comparison


def test_each_prompt_has_its_own() -> None:
    comparison = compare_kind("similarity-per-prompt", SPECS["similarity-per-prompt"].small, sizes=[(300, 401)])
    assert comparison.holds, comparison


@pytest.mark.parametrize("size", [(64, 64), (300, 401), (97, 64)], ids=str)
def test_distances_are_those_of_the_package_lpips(size: tuple[int, int]) -> None:
    comparison = compare_kind("similarity", SQUEEZE, sizes=[size], count=3)
    assert comparison.holds, comparison


def test_with_alexnet_too() -> None:
    comparison = compare_kind("similarity", {**SQUEEZE, "model": "lpips-alex"}, sizes=[(80, 100)], count=2)
    assert comparison.holds, comparison


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_vgg_is_cut_where_the_package_cuts_it() -> None:
    lpips = pytest.importorskip("lpips")
    with torch.device("meta"):
        cut = lpips.pn.vgg16(pretrained=False)
        layers = torchvision.models.vgg16().features
    architecture, ends = BACKBONES["vgg"]
    assert architecture == "vgg16"
    theirs = [[repr(layer) for layer in getattr(cut, f"slice{number}")] for number in range(1, cut.N_slices + 1)]
    assert theirs == [[repr(layer) for layer in layers[start:end]] for start, end in pairwise((0, *ends))]


def test_another_crop_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_similarity.dinov2.resize_and_crop_like_pil",
        lambda images, size, crop, rounding: resize_and_crop_like_pil(images, crop, crop, rounding=rounding),
    )
    assert not compare_kind("similarity", SPECS["similarity"].small, sizes=[(300, 401)]).holds


def test_features_taken_a_layer_too_late_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "squeeze", ("squeezenet1_1", (3, 5, 8, 10, 11, 12, 13)))
    assert not compare_kind("similarity", SQUEEZE, sizes=[(80, 100)], count=3).holds
