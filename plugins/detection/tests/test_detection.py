"""What the comparison does not show: where the gradient goes, several queries, folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_reward_detection import (
    DetectionConfig,
    DetectionFoundConfig,
    DetectionListedConfig,
    DetectionPerPromptConfig,
)
from draft_reward_detection.detector import TINY, byte_tokenizer, check_preparation
from draft_reward_detection.reference import ImageProcessor
from draft_reward_detection.reward import DetectionFound, DetectionListed, DetectionReward
from transformers import OwlViTConfig, OwlViTForObjectDetection

from draft_core import load_reward
from draft_core.errors import DraftError, RecipeError, RewardError
from draft_core.prompt_rows import PromptRow

IMAGES = torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
PROMPTS = ["an apple", "two cats"]


@pytest.fixture(scope="module")
def reward() -> DetectionReward:
    return DetectionReward(DetectionConfig(present=("cat",), removed=("dog", "a red ball"), weights="random"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owlvit")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        OwlViTForObjectDetection(OwlViTConfig(**TINY)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    ImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_a_score_is_the_mean_of_what_its_queries_score_alone(reward: DetectionReward) -> None:
    alone = [
        DetectionReward(DetectionConfig(**fields, weights="random"))(IMAGES, PROMPTS)
        for fields in ({"present": ("cat",)}, {"removed": ("dog",)}, {"removed": ("a red ball",)})
    ]
    torch.testing.assert_close(reward(IMAGES, PROMPTS), torch.stack(alone).mean(0))


def test_every_box_has_a_gradient_though_nothing_is_found(reward: DetectionReward) -> None:
    logits = (reward.logits(IMAGES, PROMPTS) - 40).detach().requires_grad_()
    assert float(logits.detach().max().sigmoid()) < 1e-12
    evidence = logits.logsumexp(1)
    (gradient,) = torch.autograd.grad(evidence.sum(), logits)
    assert bool((gradient > 0).all())


def test_steps_along_the_gradient_raise_what_is_present_and_lower_what_is_removed() -> None:
    for fields in ({"present": ("cat",)}, {"removed": ("cat",)}):
        reward = DetectionReward(DetectionConfig(**fields, weights="random"))
        before = reward.logits(IMAGES, PROMPTS).logsumexp(1).mean()
        images = IMAGES.clone()
        for _ in range(5):
            images.requires_grad_()
            (gradient,) = torch.autograd.grad(reward(images, PROMPTS).sum(), images)
            images = (images + 4 / 255 * gradient.sign()).clamp(0, 1).detach()
        after = reward.logits(images, PROMPTS).logsumexp(1).mean()
        assert bool(after > before) == ("present" in fields)


def test_prompts_stand_in_the_queries() -> None:
    reward = DetectionReward(DetectionPerPromptConfig(present=("a {prompt}",), removed=("x",), weights="random"))
    fixed = [
        DetectionReward(DetectionConfig(present=(f"a {prompt}",), removed=("x",), weights="random"))
        for prompt in ("bus", "fox")
    ]
    expected = torch.cat([scorer(IMAGES[:1], [""]) for scorer in fixed])
    torch.testing.assert_close(reward(IMAGES[:1].expand(2, -1, -1, -1), ["bus", "fox"]), expected)


def test_objects_of_rows_are_scored_as_if_named() -> None:
    """Rows of different lengths in one batch, with an object that is removed from all."""
    reward = DetectionListed(DetectionListedConfig(removed=("dog",), weights="random"))
    scores = reward(IMAGES, PROMPTS, {"objects": ["cat", "fox; a red ball"]})
    named = [
        DetectionReward(DetectionConfig(present=present, removed=("dog",), weights="random"))
        for present in (("cat",), ("fox", "a red ball"))
    ]
    expected = [scorer(image[None], [""])[0] for scorer, image in zip(named, IMAGES, strict=True)]
    torch.testing.assert_close(scores, torch.stack(expected))
    with pytest.raises(
        RewardError, match="'cat, a dog' is read as one object, as it has no semicolon; write several as"
    ):
        reward(IMAGES, PROMPTS, {"objects": ["fox; cat, a dog", "fox"]})
    for text in ("cat;", "cat; cat"):
        with pytest.raises(RewardError, match=f"the objects '{text}' have one that is blank, or one twice"):
            reward(IMAGES, PROMPTS, {"objects": [text, "fox"]})


def test_an_unknown_alias_is_refused() -> None:
    with pytest.raises(
        DraftError, match=r"reward 'detection', weights: unknown detector 'emoji-detecter'; did you mean"
    ):
        load_reward("detection", present=["cat"], weights="emoji-detecter")


def test_found_counts_both_ways() -> None:
    fields: dict[str, Any] = {"present": ("cat",), "removed": ("dog",), "weights": "random"}
    found = DetectionFound(DetectionFoundConfig(**fields))
    cat, dog = found.logits(IMAGES[:1], [""]).amax(1).sigmoid()[0].tolist()
    for threshold, expected in ((max(cat, dog), 0.5), (min(cat, dog) * 0.99, 0.5), ((cat + dog) / 2, float(cat > dog))):
        found.threshold = threshold
        assert found(IMAGES[:1], [""]).tolist() == [expected]


def test_a_folder_of_transformers_is_loaded(folder: Path) -> None:
    loaded = load_reward("detection", present=["cat"], weights=str(folder))
    torch.testing.assert_close(
        loaded(IMAGES, PROMPTS), load_reward("detection", present=["cat"], weights="random", seed=5)(IMAGES, PROMPTS)
    )


def test_another_preparation_is_refused(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    check_preparation(settings, 28, where="here")
    for change, said in (
        ({"do_center_crop": True}, "here: this model prepares its images with do_center_crop = True"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean = \[0.5"),
        ({"size": {"height": 28, "width": 14}}, "size = "),
    ):
        with pytest.raises(DraftError, match=said):
            check_preparation({**settings, **change}, 28, where="here")


def test_a_missing_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DraftError, match=r"reward 'detection': cannot load the .* google/owlvit-base-patch32.*: "):
        load_reward("detection", present=["cat"])


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("detection", {}, "it names no object; list some under `present`, `removed` or both"),
        ("detection", {"present": ["a"], "removed": ["a"]}, "it names 'a' twice"),
        ("detection", {"present": [" "]}, "present"),
        ("detection", {"present": ["a {prompt}"]}, "is for the kind `detection-per-prompt`"),
        ("detection-per-prompt", {"present": ["cat"]}, "take the kind `detection`"),
        ("detection-found", {"present": ["cat"], "threshold": 1}, "threshold"),
    ],
)
def test_contradictions_are_refused(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_reward(kind, weights="random", **fields)


def test_queries_that_are_too_long_are_refused() -> None:
    long = "a photograph of a very red apple"
    message = "the query 'a photograph of a very red apple' is longer than the 14 tokens that OWL-ViT reads"
    with pytest.raises(RewardError, match=message):
        load_reward("detection", present=[long], weights="random")
    config = DetectionPerPromptConfig(weights="random")
    with pytest.raises(RewardError, match=message):
        DetectionReward(config)(IMAGES, [long, "x"])
    config.check_prompts(["an apple"])
    with pytest.raises(RewardError, match="name the object in fewer words"):
        config.check_prompts(["one two three four five six seven eight nine ten eleven twelve thirteen 14 15"])


@pytest.mark.parametrize("text", [";", "a fox;;", "a fox; an owl; a fox", "a " * 20 + "fox", "a fox, an owl"])
def test_rows_whose_objects_cannot_be_looked_for_are_refused_with_the_recipe(text: str) -> None:
    rows = [PromptRow("a fox", {"things": "a fox; an owl"}, None), PromptRow("an owl", {"things": text}, None)]
    config = DetectionListedConfig(columns={"objects": "things"})
    config.check_prompts(rows[:1])
    with pytest.raises(RewardError, match=r"row 2|longer than"):
        config.check_prompts(rows)
