"""What a config may say, what is loaded for it, and the sentence for what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from draft_reward_adversarial import (
    AdversarialConfig,
    AdversarialPerPromptConfig,
    AdversarialTop1Config,
    draft_register_rewards,
)
from draft_reward_adversarial.from_torchvision import _renamed
from draft_reward_adversarial.preprocessing import of_timm, of_transformers
from draft_reward_adversarial.reward import AdversarialPerPromptReward, AdversarialReward, AdversarialTop1
from safetensors.torch import save_file

from draft_core import load_reward
from draft_core.errors import DraftError, RecipeError, RewardError

TINY = {"library": "timm", "name": "test_efficientnet", "weights": "random"}


def build(target: int | str = 0, *, mode: str = "targeted", dtype: str = "float32", **source: Any) -> Any:
    config = {"source": {**TINY, **source}, "target": target, "mode": mode, "dtype": dtype}
    return AdversarialReward(AdversarialConfig.model_validate(config))


def image(count: int = 1, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


# What is registered


def test_specs_describe_the_rewards_that_they_build() -> None:
    specs = {spec.kind: spec for spec in draft_register_rewards()}
    assert specs["adversarial"].load() is AdversarialReward
    assert specs["adversarial-per-prompt"].load() is AdversarialPerPromptReward
    assert specs["adversarial-top1"].load() is AdversarialTop1
    assert not specs["adversarial-top1"].differentiable
    assert not specs["adversarial"].needs_prompt
    assert specs["adversarial-per-prompt"].needs_prompt


def test_only_the_library_that_is_named_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "draft_reward_adversarial.from_timm", "draft_reward_adversarial.from_transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails from now on
    assert build("bee", library="torchvision", name="squeezenet1_1").target == 309


# What the scores are


def test_untargeted_is_the_negative_and_the_probabilities_sum_to_one() -> None:
    images = image(2)
    towards, away = build(3, num_classes=10), build(3, num_classes=10, mode="untargeted")
    with torch.no_grad():
        torch.testing.assert_close(away(images, ["", ""]), -towards(images, ["", ""]))
        torch.testing.assert_close(towards.log_probabilities(images).exp().sum(1), torch.ones(2))
        torch.testing.assert_close(towards(images, ["", ""]), towards.log_probabilities(images)[:, 3])


def test_one_class_comes_first_on_a_image_and_it_is_the_one_with_the_largest_logit() -> None:
    images = torch.cat([image(3), 0.2 * image(3), 1 - 0.2 * image(3)])
    source = {**TINY, "name": "test_vit", "num_classes": 10}
    measures = [
        AdversarialTop1(AdversarialTop1Config.model_validate({"source": source, "target": target}))
        for target in range(10)
    ]
    found = torch.stack([measure(images, [""] * 9) for measure in measures])
    with torch.no_grad():
        logits = measures[0].network(measures[0].classifier.preprocessing(images))
    assert torch.equal(found.argmax(0), logits.argmax(1))
    assert torch.equal(found.sum(0), torch.ones(9))
    assert len(found.argmax(0).unique()) > 1, "images that all show the same class prove little"


def test_each_prompt_has_its_class() -> None:
    config = {"source": {**TINY, "num_classes": 10}, "targets": {"a bee": 1, "a cat": 4}}
    reward = AdversarialPerPromptReward(AdversarialPerPromptConfig.model_validate(config))
    images = image(3)
    with torch.no_grad():
        scores = reward(images, ["a cat", "a bee", "a cat"])
        expected = reward.log_probabilities(images)[torch.arange(3), torch.tensor([4, 1, 4])]
    torch.testing.assert_close(scores, expected)
    with pytest.raises(RewardError, match=r"prompt 'a bat' has no class \(the nearest that has is 'a cat'\); add it"):
        reward(images[:1], ["a bat"])


def test_weights_are_drawn_from_the_seed_and_nothing_else_is_disturbed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.rand(1) == expected
    weights = [reward.network.state_dict()["conv_stem.weight"] for reward in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_precision_is_that_of_the_network_alone(dtype: str) -> None:
    images = image()
    full, half = build(name="test_vit"), build(name="test_vit", dtype=dtype)
    assert half.network.head.weight.dtype == getattr(torch, dtype)
    with torch.no_grad():
        seen = half.log_probabilities(images)
        assert seen.dtype == torch.float32
        torch.testing.assert_close(seen, full.log_probabilities(images), rtol=0, atol=0.05)
        assert not torch.equal(seen, full.log_probabilities(images))


def test_images_of_another_form_are_refused() -> None:
    with pytest.raises(RewardError, match=r"images are torch.uint8 of shape \(1, 3, 8, 8\); pass RGB images"):
        build()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [""])
    with pytest.raises(RewardError, match=r"of shape \(3, 8, 8\)"):
        build()(torch.zeros(3, 8, 8), [""])


# Where weights come from


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_is_loaded_by_name(suffix: str, wrapped: bool, tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=7)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()} if wrapped else network.state_dict(), path)
    loaded = build(weights=str(path), num_classes=7).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


def test_a_file_of_another_implementation_is_paired_in_order_only_on_request(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet")
    path = tmp_path / "weights.pth"
    torch.save({f"theirs.{place}": tensor for place, tensor in enumerate(network.state_dict().values())}, path)
    with pytest.raises(DraftError, match=r"EfficientNet: \d+ missing .*; if they are, by another .*pairing to order"):
        build(weights=str(path))
    loaded = build(weights=str(path), pairing="order").network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(DraftError, match=r"paired in order, theirs.\d+ of shape \(1000, \d+\) meets classifier.weight"):
        build(weights=str(path), pairing="order", num_classes=7)
    with pytest.raises(DraftError, match=r"the file has \d+ tensors and the network \d+: they cannot be paired"):
        build(weights=str(path), pairing="order", name="test_vit")


def test_transformers_folders(vit_folder: Path, tmp_path: Path) -> None:
    source = {"library": "transformers", "name": str(vit_folder)}
    published = build("tabby", weights="hub", **source)
    assert published.target == 1
    from_file = build("espresso", weights=str(vit_folder / "model.safetensors"), **source)
    assert from_file.target == 2
    drawn = build(weights="random", seed=3, num_classes=5, **source)
    images = image()
    with torch.no_grad():
        torch.testing.assert_close(from_file.log_probabilities(images), published.log_probabilities(images))
        assert drawn.log_probabilities(images).shape == (1, 5)


def test_a_timm_model_behind_transformers(tmp_path: Path, pil: Any) -> None:
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "label_names": ["bee", "tiger cat", "espresso"],
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "crop_pct": 0.9,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "num_classes": 3,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    reward = build("espresso", library="transformers", name=str(tmp_path), weights="random")
    assert reward.target == 2
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"]))
    images = (image(side=150) * 255).round() / 255
    torch.testing.assert_close(reward.classifier.preprocessing(images), transform(pil(images))[None])
    assert reward.log_probabilities(images).shape == (1, 3)


def test_transformers_files_must_fit(vit_folder: Path) -> None:
    source = {"library": "transformers", "name": str(vit_folder), "weights": str(vit_folder / "model.safetensors")}
    with pytest.raises(DraftError, match=r"safetensors: the weights are .* classifier.weight is 3x32, not 5x32"):
        build(num_classes=5, **source)


def test_a_backbone_without_classifier_is_refused(vit_folder: Path, tmp_path: Path) -> None:
    import transformers

    transformers.ViTModel(transformers.ViTConfig.from_pretrained(vit_folder)).save_pretrained(tmp_path)
    transformers.ViTImageProcessor.from_pretrained(vit_folder).save_pretrained(tmp_path)
    with pytest.raises(DraftError, match=r"2 missing \(classifier.bias, classifier.weight\)"):
        build(library="transformers", name=str(tmp_path), weights="hub")


def test_densenets_old_names_are_read() -> None:
    assert _renamed("features.denseblock1.denselayer2.norm.1.weight") == "features.denseblock1.denselayer2.norm1.weight"
    assert _renamed("features.denseblock1.denselayer2.conv.2.weight") == "features.denseblock1.denselayer2.conv2.weight"
    names = torchvision.models.densenet121().state_dict()
    assert {_renamed(name) for name in names} == set(names)


# What is said when something is missing


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"name": "test_efficientnte"},
            r"source.name: timm has no classifier 'test_efficientnte'; did you mean 'test_ef",
        ),
        ({"name": "resnet18.a1_in2k"}, r"timm has no classifier 'resnet18.a1_in2k'; did you mean 'resnet18.a"),
        (
            {"library": "torchvision", "name": "resnet17"},
            r"torchvision has no classifier 'resnet17'; did you mean 'resn",
        ),
        (
            {"library": "torchvision", "name": "resnet50", "variant": "V3"},
            r"resnet50 has no weights 'V3'; known: IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        (
            {"weights": "none.pth"},
            r"reward 'adversarial', source.weights: there is no file 'none.pth'; give the path of",
        ),
        ({"name": "vit_tiny_patch16_224", "num_classes": None, "target": "beee"}, r"did you mean 'bee' \(309\)"),
        ({"num_classes": 7, "target": "bee"}, r"no known names, 'bee' cannot be looked up; give an index, 0 to 6"),
    ],
)
def test_what_does_not_exist_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(DraftError, match=message):
        build(**source)


def test_a_missing_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = timm.create_model

    def offline(name: str, pretrained: bool = False, **more: Any) -> Any:
        if pretrained:
            raise OSError("We couldn't connect. Try again")
        return genuine(name, pretrained=False, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    message = (
        r"reward 'adversarial': cannot load timm/test_efficientnet.r160_in1k for timm \(1 MB\): We couldn't connect; "
        "check the name and the network, or set source.weights to a local path"
    )
    with pytest.raises(DraftError, match=message):
        build(weights="hub")


def test_a_missing_network_is_one_sentence_for_torchvision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **more: Any) -> Any:
        raise OSError("name or service not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(DraftError, match=r"cannot load .*squeezenet1_1.*\.pth \(5 MB\): name or service not known"):
        build(library="torchvision", name="squeezenet1_1", weights="hub")


def test_published_weights_are_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    network = torchvision.models.squeezenet1_1()

    def fetch(url: str, **more: Any) -> Any:
        asked.update(more)
        return network.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    loaded = build("bee", library="torchvision", name="squeezenet1_1", weights="hub")
    assert asked["weights_only"]
    assert loaded.target == 309
    assert torch.equal(loaded.network.classifier[1].weight, network.classifier[1].weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"weights": "hub", "num_classes": 10}, "`num_classes` is for a weights file or random weights"),
        ({"pairing": "order"}, "`pairing: order` is for a weights file"),
        ({"pairing": "order", "weights": "a.safetensors"}, "safetensors files keep no order"),
        ({"library": "keras"}, "source: unknown library 'keras'; known: timm, torchvision, transformers"),
        (
            {"wieghts": "hub"},
            r"reward 'adversarial': source.wieghts: unknown field 'wieghts'; did you mean 'weights'\?",
        ),
        ({"seed": -1}, r"reward 'adversarial': source.seed: input should be greater"),
    ],
)
def test_contradictions_are_found_before_anything_is_loaded(source: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_reward("adversarial", source={**TINY, **source}, target=0)


def test_a_source_without_library_is_told_so() -> None:
    with pytest.raises(RecipeError, match="source: it does not say its library; add `library`"):
        load_reward("adversarial", source={"name": "resnet18", "weights": "hub"}, target=0)


@pytest.mark.parametrize("target", [-1, "", 1.5, True])
def test_a_target_is_an_index_or_a_name(target: Any) -> None:
    with pytest.raises(RecipeError):
        load_reward("adversarial", source=TINY, target=target)


def test_configs_come_back_from_json() -> None:
    given = {"source": {**TINY, "num_classes": 4}, "targets": {"a": 3, "b": "bee"}}
    config = AdversarialPerPromptConfig.model_validate(given)
    assert AdversarialPerPromptConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": (3, 224, 192)}, "its input is 224 x 192"),
        ({"crop_mode": "border"}, "crop mode 'border'; known: squares, center and squash"),
        ({"interpolation": "nearest"}, "filter 'nearest'; known: bilinear, bicubic, lanczos"),
        ({"crop_pct": 1.2}, "it crops 224 pixels out of 186: it pads"),
        ({"mean": (0.5,), "std": (0.5,)}, "it has 1 channels, not 3"),
    ],
)
def test_preprocessing_that_cannot_be_reproduced_is_refused(config: dict[str, Any], message: str) -> None:
    usual = {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}
    with pytest.raises(DraftError, match=message):
        of_timm({**usual, "mean": (0.5,) * 3, "std": (0.5,) * 3, **config})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("MobileViTImageProcessor", {}, "MobileViTImageProcessor is not supported; known: Beit, Bit"),
        ("ViTImageProcessorFast", {"do_normalize": False}, "ViTImageProcessorFast with do_normalize=False"),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}, "with rescale_factor=0.0078"),
        ("ViTImageProcessor", {"resample": 0}, "Pillow's number 0"),
        ("BitImageProcessor", {"size": {"shortest_edge": 224}}, "leads to no input of fixed size"),
        ("ViTImageProcessor", {"size": {"longest_edge": 224}}, "leads to no input of fixed size"),
        ("ConvNextImageProcessor", {"size": {"height": 224, "width": 224}}, "leads to no input of fixed size"),
    ],
)
def test_processors_that_cannot_be_reproduced_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    usual = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    with pytest.raises(DraftError, match=message):
        of_transformers(name, {**usual, **settings})
