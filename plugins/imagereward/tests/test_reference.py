"""The same score as a second implementation, and as the package's own networks where the package is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from draft_reward_imagereward import ImageRewardConfig, blip, draft_register_rewards, reward
from draft_reward_imagereward.blip import LARGE, TINY, UNUSED, Networks, published_name
from draft_reward_imagereward.reward import ImageReward

from draft_core.rewards.images import resize_and_crop_like_pil, to_pil
from draft_core.testing import SIZES, Subject, compare_kind

from .published_code import package_model

(SPEC,) = draft_register_rewards()
SMALL = ImageRewardConfig(**SPEC.small)
PROMPTS = ("a red apple, on a table", "Two CATS", "", "an oil painting of the sea at night " * 3, "what is [ENC]?")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_are_those_of_the_reference(size: tuple[int, int]) -> None:
    comparison = compare_kind("imagereward", SPEC.small, sizes=[size])
    assert comparison.holds, comparison


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's model with seeded weights, large enough that images differ."""
    with pytest.MonkeyPatch.context() as patch:
        model = package_model(TINY, tmp_path_factory.mktemp("settings") / "med_config.json", patch)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + is_scale)
        yield model


@pytest.fixture(scope="module")
def ours(published: Any, tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    """The reward on the file that the package's model is saved to."""
    path = tmp_path_factory.mktemp("weights") / "ImageReward.pt"
    torch.save(published.state_dict(), path)
    return ImageReward(SMALL.model_copy(update={"weights": str(path)}))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_are_those_of_the_package(published: Any, ours: ImageReward, size: tuple[int, int]) -> None:
    """Its own `score`: its transform on torchvision, its networks, its numbers, on its own file."""
    images = (Subject(SPEC, SMALL, reward=ours).images(6, *size) * 255).round() / 255
    theirs = torch.tensor([published.score("two cats", to_pil(image)) for image in images])
    found = torch.cat([ours(image[None], ["two cats"]) for image in images])
    assert float((found - theirs).abs().max() / theirs.std()) < 0.002


def test_prompts_are_read_as_the_package_reads_them(published: Any, ours: ImageReward) -> None:
    """In a batch here, one by one there; long ones are cut, and padding counts for nothing."""
    image = (Subject(SPEC, SMALL, reward=ours).images(1) * 255).round() / 255
    published.blip.tokenizer = ours.tokenizer
    theirs = torch.tensor([published.score(prompt, to_pil(image[0])) for prompt in PROMPTS])
    found = ours(image.expand(len(PROMPTS), -1, -1, -1), PROMPTS)
    assert float((found - theirs).abs().max() / theirs.std()) < 0.002


def test_the_published_size_has_the_names_and_shapes_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with init_empty_weights():
        published = package_model(LARGE, tmp_path / "med_config.json", monkeypatch).state_dict()
        own = Networks(LARGE).state_dict()
    theirs = {name: tensor.shape for name, tensor in published.items()}
    ours = {published_name(name): tensor.shape for name, tensor in own.items()}
    assert theirs.keys() - ours.keys() <= UNUSED
    assert ours.keys() <= theirs.keys()
    assert {name: theirs[name] for name in ours} == ours
    assert sum(shape.numel() for shape in ours.values()) == pytest.approx(446e6, rel=0.01)


def _other_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        reward,
        "resize_and_crop_like_pil",
        lambda images, size, crop, rounding: resize_and_crop_like_pil(images, size, crop, rounding="floor"),
    )


def _other_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as transformers' default has, in proportion."""
    more = {**TINY, "text": {**TINY["text"], "num_attention_heads": 2}}
    monkeypatch.setattr(reward, "TINY", more)


def _causal(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = blip.BlipTextModel.forward
    monkeypatch.setattr(
        blip.BlipTextModel, "forward", lambda self, **given: plain(self, **{**given, "is_decoder": True})
    )


def _last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageReward.tokens
    monkeypatch.setattr(ImageReward, "tokens", lambda *given: [part.flip(1) for part in plain(*given)])


def _unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageReward.tokens
    monkeypatch.setattr(ImageReward, "tokens", lambda *given: (plain(*given)[0], torch.ones_like(plain(*given)[1])))


def _swapped_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of one shape, exchanged: nothing is missing, and nothing fits."""
    swap = {"key": "value", "value": "key"}
    monkeypatch.setattr(
        "draft_reward_imagereward.reference.published_name",
        lambda name: ".".join(swap.get(part, part) for part in published_name(name).split(".")),
    )


@pytest.mark.parametrize(
    "plant",
    [_other_crop, _other_heads, _causal, _last_token, _unmasked, _swapped_names],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_noticed(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert not compare_kind("imagereward", SPEC.small, sizes=[(300, 401)]).holds
