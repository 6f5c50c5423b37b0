"""Definitions, the models that can be named, how they want their pixels, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from draft_reward_clipscore import ClipScoreConfig, draft_register_rewards
from draft_reward_clipscore.encoders import preparation_of_open_clip, preparation_of_transformers
from draft_reward_clipscore.reward import ClipScoreReward, defined
from open_clip.transform import image_transform

from draft_core.errors import DraftError, RecipeError
from draft_core.rewards.images import to_pil
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
TINY = ClipScoreConfig(model="tiny", weights="random")


def with_(**fields: object) -> ClipScoreConfig:
    return TINY.model_copy(update=fields)


def test_the_three_definitions() -> None:
    cosines = torch.tensor([-0.1, 0.3])
    torch.testing.assert_close(defined(cosines, "clipscore"), torch.tensor([0, 0.75]))
    torch.testing.assert_close(defined(cosines, "percent"), torch.tensor([0.0, 30]))
    assert torch.equal(defined(cosines, "cosine"), cosines)


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"definition": "clipscore"}, "A photo depicts two cats"),
        ({"definition": "percent"}, "two cats"),
        ({"definition": "cosine"}, "two cats"),
        ({"definition": "clipscore", "prefix": ""}, "two cats"),
        ({"definition": "percent", "prefix": "a painting of "}, "a painting of two cats"),
    ],
)
def test_the_prefix_follows_the_definition_unless_it_is_given(fields: dict[str, Any], read: str) -> None:
    device = torch.device("cpu")
    features = ClipScoreReward(with_(**fields)).text_features("two cats", device)
    assert torch.equal(features, ClipScoreReward(with_(prefix="")).text_features(read, device))


@pytest.mark.parametrize(
    ("prefix", "read"),
    [("A photo depicts", "A photo depicts two cats"), ("Photo:\n", "Photo:\ntwo cats"), ("", "two cats")],
)
def test_a_blank_stands_between_prefix_and_prompt(prefix: str, read: str) -> None:
    device = torch.device("cpu")
    config = ClipScoreConfig(model="tiny", weights="random", prefix=prefix)
    features = ClipScoreReward(config).text_features("two cats", device)
    assert torch.equal(features, ClipScoreReward(with_(prefix="")).text_features(read, device))


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_control_words_score_by_the_sum_of_the_encoders_features(library: str) -> None:
    """(1 + k) times one text's features minus the other's, each of unit length, with the prefix before both."""
    fields = {"library": library, "definition": "cosine", "prefix": "A photo of "}
    plain = ClipScoreReward(with_(**fields))
    relative = ClipScoreReward(with_(**fields, positive="a sharp", negative="a {prompt}, blurred", k=0.5))
    images = Subject(SPEC, TINY, reward=plain).images(3)
    encode, device = plain.encoder.text, torch.device("cpu")
    positive, negative = (encode(f"A photo of {text}", device)[0] for text in ("a sharp cat", "a cat, blurred"))
    features = 1.5 * positive / positive.norm() - negative / negative.norm()
    of_images = plain.encoder.images(images)
    expected = of_images @ features / of_images.norm(dim=1)
    torch.testing.assert_close(relative(images, ["cat"] * 3), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("definition", ["clipscore", "percent"])
def test_a_definition_without_negative_scores_takes_no_control_words(definition: str) -> None:
    with pytest.raises(RecipeError, match=f"the definition '{definition}' makes zero of what is negative"):
        ClipScoreConfig(definition=definition, positive="sharp", negative="blurred")


def test_a_prompt_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ClipScoreReward(TINY)
    asked: list[str] = []
    encode = reward.text_features
    monkeypatch.setattr(reward, "text_features", lambda prompt, device: asked.append(prompt) or encode(prompt, device))
    images = Subject(SPEC, TINY, reward=reward).images(3)
    reward(images, ["a", "b", "a"])
    reward(images, ["b", "a", "c"])
    assert asked == ["a", "b", "c"]


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_scores_stay_float32_under_bfloat16_encoders(library: str, folder: Path) -> None:
    fields = {"library": "transformers", "model": str(folder), "weights": "openai"} if library == "transformers" else {}
    full, half = (
        ClipScoreReward(with_(definition="cosine", dtype=dtype, **fields)) for dtype in ("float32", "bfloat16")
    )
    assert {parameter.dtype for parameter in half.encoder.clip.parameters()} == {torch.bfloat16}
    images = Subject(SPEC, TINY, reward=half).images(2)
    scores = half(images, ["a", "b"])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, full(images, ["a", "b"]), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("mode", "interpolation"), [("squash", "bicubic"), ("shortest", "bilinear"), ("squash", "bilinear")]
)
def test_other_preparations_of_open_clip(mode: str, interpolation: str) -> None:
    settings = {
        "size": (96, 96),
        "mean": (0.5,) * 3,
        "std": (0.4,) * 3,
        "resize_mode": mode,
        "interpolation": interpolation,
    }
    image = (Subject(SPEC, TINY).images(1, 131, 200) * 255).round() / 255
    transform = image_transform(
        96, is_train=False, mean=(0.5,) * 3, std=(0.4,) * 3, resize_mode=mode, interpolation=interpolation
    )
    torch.testing.assert_close(
        preparation_of_open_clip(settings)(image)[0], transform(to_pil(image[0])), rtol=0, atol=1e-5
    )


def test_newer_and_older_preprocessor_configs_say_the_same() -> None:
    newer = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "resample": 3}
    older = {"size": 336, "crop_size": 336}
    assert preparation_of_transformers(newer) == preparation_of_transformers(older)
    assert preparation_of_transformers({}) == dataclasses.replace(
        preparation_of_transformers(older), side=224, shortest=224
    )


@pytest.mark.parametrize(
    "settings",
    [{"size": 224, "resize_mode": "longest"}, {"size": (224, 112)}, {"size": 224, "interpolation": "random"}],
)
def test_an_unknown_preparation_of_open_clip_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DraftError, match="prepares its images in a way that is not supported"):
        preparation_of_open_clip(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 224, "width": 224}},
        {"do_center_crop": False},
        {"resample": 0},
        {"crop_size": {"height": 1, "width": 2}},
    ],
)
def test_an_unknown_preparation_of_transformers_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DraftError, match="prepares its images in a way that is not supported"):
        preparation_of_transformers(settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "ViT-B-33"}, r"clipscore', model: open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'\?"),
        ({"model": "ViT-B-32", "weights": "openay"}, r"has no weights 'openay' for ViT-B-32; .* \(known: openai, "),
        (
            {"model": "ViT-B-32", "weights": "openai"},
            "the weights 'openai' were trained with QuickGELU, but ViT-B-32 is built with GELU; use its twin",
        ),
        ({"model": "tiny", "weights": "openai"}, "the tiny model has no published weights; set weights to random"),
        ({"library": "transformers", "model": "a/b"}, "weights are chosen for open_clip only; name the whole model"),
        ({"library": "transformers", "model": "a/b", "weights": "openai"}, "model: there is no folder 'a/b'; give"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_fetched(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        ClipScoreReward(with_(**fields))


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"model": "ViT-B-32-quickgelu", "weights": "openai"}, "weights"),
        ({"library": "transformers", "model": "hf://openai/clip-vit-base-patch32", "weights": "openai"}, "model"),
    ],
)
def test_without_a_network_one_sentence_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fields: dict[str, Any], option: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = rf"reward 'clipscore': cannot load .*; check the name and the network, or set {option} to a local path\."
    with pytest.raises(DraftError, match=message) as caught:
        ClipScoreReward(with_(**fields))
    assert "\n" not in str(caught.value)


def test_another_architecture_with_weights_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small architecture under a name of its own, so that nothing large is built."""
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "patch_size": 32, "width": 32, "layers": 1, "head_width": 16},
    }
    settings["text_cfg"] = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", settings)
    random = ClipScoreReward(with_(model="small", weights="random", seed=3, definition="cosine"))
    torch.save(random.encoder.clip.state_dict(), tmp_path / "small.pt")
    loaded = ClipScoreReward(with_(model="small", weights=str(tmp_path / "small.pt"), definition="cosine"))
    images = Subject(SPEC, TINY, reward=loaded).images(2)
    assert torch.equal(loaded(images, ["a", "b"]), random(images, ["a", "b"]))
