"""Log-probabilities against the reference pipelines: each library's own transforms of a PIL image, then its model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from draft_reward_adversarial import AdversarialConfig, AdversarialTop1Config, draft_register_rewards
from draft_reward_adversarial.preprocessing import of_timm, of_torchvision, of_transformers
from draft_reward_adversarial.reference import on_pillow, reference_log_probabilities
from draft_reward_adversarial.reward import AdversarialReward, AdversarialTop1
from PIL import Image
from timm.data import create_transform

from draft_core.rewards.images import resize_and_crop_like_pil
from draft_core.testing import compare_kind

Pil = Callable[[torch.Tensor], Image.Image]
Drawn = Callable[[int, int], torch.Tensor]
Reference = Callable[[Image.Image], torch.Tensor]

SPEC = next(spec for spec in draft_register_rewards() if spec.kind == "adversarial")

SIZES = ((224, 224), (512, 512), (256, 256), (64, 64), (300, 401), (427, 640), (61, 67), (401, 300))
EXACT = {"rtol": 0.0, "atol": 1e-5}  # of pixels over the standard deviation: a hundredth of one of 256 levels is 2e-4
CLOSE = {"rtol": 0.0, "atol": 1e-4}  # of log-probabilities: float32 sums in another order
REAL = 0.005  # of log-probabilities with real weights


def configured(**source: Any) -> AdversarialConfig:
    return AdversarialConfig.model_validate({"source": source, "target": 0})


# timm


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_timm(name: str, drawn: Drawn, pil: Pil) -> None:
    assert_near_reference(configured(library="timm", name=name, weights="random", num_classes=10), drawn, pil)


TIMM_CONFIGS = list(itertools.product((224, 384), (0.875, 0.95, 1.0), ("bicubic", "bilinear"), ("center", "squash")))


@pytest.mark.parametrize(("side", "crop_pct", "interpolation", "crop_mode"), TIMM_CONFIGS[::5])
def test_timms_configurations(
    side: int, crop_pct: float, interpolation: str, crop_mode: str, drawn: Drawn, pil: Pil
) -> None:
    config = {
        "input_size": (3, side, side),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "crop_mode": crop_mode,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    transform = create_transform(**config, is_training=False)
    for height, width in SIZES:
        if crop_mode == "squash" and height > width:
            continue  # Pillow 13 takes the columns first, see draft_core.rewards.images
        image = drawn(height, width)
        torch.testing.assert_close(of_timm(config)(image), transform(pil(image))[None], **EXACT)


# torchvision


def test_torchvision(drawn: Drawn, pil: Pil) -> None:
    config = configured(library="torchvision", name="squeezenet1_1", weights="random", num_classes=10)
    assert_near_reference(config, drawn, pil)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b1", "convnext_tiny", "vit_b_16", "inception_v3"])
def test_torchvisions_transforms(name: str, drawn: Drawn, pil: Pil) -> None:
    for weights in torchvision.models.get_model_weights(name):
        transform = weights.transforms()
        for height, width in ((64, 64), (300, 401), (401, 300)):
            image = drawn(height, width)
            torch.testing.assert_close(of_torchvision(transform)(image), transform(pil(image))[None], **EXACT)


def test_every_classifier_of_torchvision_has_transforms_that_are_read() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            assert of_torchvision(weights.transforms()).crop, weights


# transformers


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"size": {"height": 96, "width": 128}, "resample": 3}),
    ("DeiTImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("BitImageProcessor", {"size": {"shortest_edge": 256}, "resample": 2}),
    ("CLIPImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "resample": 2}),
    ("MobileNetV2ImageProcessor", {}),
]


@pytest.mark.parametrize(("name", "settings"), PROCESSORS)
def test_transformers_processors(name: str, settings: dict[str, Any], drawn: Drawn, pil: Pil) -> None:
    processor = on_pillow(name)(**settings)
    preprocessing = of_transformers(type(processor).__name__, processor.to_dict())
    for height, width in SIZES:
        if height > width and not isinstance(preprocessing.size, int):
            continue  # Pillow 13 takes the columns first, see draft_core.rewards.images
        image = drawn(height, width)
        expected = processor(pil(image), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(preprocessing(image), expected, **EXACT)


def test_transformers(vit_folder: Path, drawn: Drawn, pil: Pil) -> None:
    assert_near_reference(
        configured(library="transformers", name=str(vit_folder), weights="hub"),
        drawn,
        pil,
        sizes=[size for size in SIZES if size[0] <= size[1]],
    )


def assert_near_reference(config: AdversarialConfig, drawn: Drawn, pil: Pil, sizes: Any = SIZES) -> None:
    """Within float32 of the reference, and that means something: the images differ by far more."""
    reward = AdversarialReward(config)
    reference = reference_log_probabilities(reward, config)
    images = [drawn(*size) for size in sizes]
    with torch.no_grad():
        ours = torch.cat([reward.log_probabilities(image) for image in images])
    theirs = torch.cat([reference(pil(image)) for image in images])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    spread = theirs.std(0).max()
    assert (ours - theirs).abs().max() < 0.002 * spread, f"spread {spread}"


def test_the_comparison_of_the_small_instance() -> None:
    comparison = compare_kind("adversarial", SPEC.small)
    assert comparison.holds, comparison


def test_another_filter_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_adversarial.preprocessing.resize_and_crop_like_pil",
        lambda images, size, crop, rounding, filter: resize_and_crop_like_pil(
            images, size, crop, rounding=rounding, filter="bilinear"
        ),
    )
    assert not compare_kind("adversarial", SPEC.small, sizes=[(300, 401)]).holds


# Real ImageNet weights


@pytest.fixture(scope="module")
def config(lite0: dict[str, str]) -> AdversarialConfig:
    return AdversarialConfig.model_validate({"source": lite0, "target": "bee"})


@pytest.fixture(scope="module")
def real(config: AdversarialConfig) -> AdversarialReward:
    return AdversarialReward(config)


@pytest.fixture(scope="module")
def reference(real: AdversarialReward, config: AdversarialConfig) -> Reference:
    return reference_log_probabilities(real, config)


def test_the_comparison_of_real_weights(config: AdversarialConfig) -> None:
    fields = config.model_dump(exclude={"kind"})
    comparison = compare_kind("adversarial", fields, sizes=[(224, 224), (300, 401), (97, 64)], count=3)
    assert comparison.holds, comparison


@pytest.mark.parametrize("size", [None, (64, 64), (256, 256), (512, 512), (500, 333)])
@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg"])
def test_real_weights(
    name: str,
    size: tuple[int, int] | None,
    real: AdversarialReward,
    reference: Reference,
    photograph: Callable[[str], torch.Tensor],
    pil: Pil,
) -> None:
    shown = pil(photograph(name))
    if size is not None:
        shown = shown.resize(size, Image.Resampling.BICUBIC)
    image = torchvision.transforms.functional.to_tensor(shown)[None]
    with torch.no_grad():
        ours = real.log_probabilities(image)
    assert (ours - reference(shown)).abs().max() <= REAL


@pytest.mark.parametrize(("name", "classes"), [("chelsea.png", range(281, 286)), ("coffee.png", [967])])
def test_the_images_show_what_the_classifier_sees(
    name: str, classes: Any, real: AdversarialReward, photograph: Callable[[str], torch.Tensor]
) -> None:
    """Five breeds of cat, and espresso; under names that are looked up, not only under indices."""
    with torch.no_grad():
        assert real.log_probabilities(photograph(name)).argmax() in classes
    assert [
        real.index_of(each, "target") for each in ("tabby", "tiger cat", "Egyptian_cat", "espresso", "n02206856")
    ] == [
        281,
        282,
        285,
        967,
        309,
    ]


def test_the_measure_knows_espresso_from_a_cat(
    lite0: dict[str, str], photograph: Callable[[str], torch.Tensor]
) -> None:
    top1 = AdversarialTop1(AdversarialTop1Config.model_validate({"source": lite0, "target": "espresso"}))
    assert [float(top1(photograph(name), [""])) for name in ("coffee.png", "chelsea.png")] == [1.0, 0.0]


def test_an_ascent_to_bee_fools_the_original_pipeline(
    real: AdversarialReward, reference: Reference, photograph: Callable[[str], torch.Tensor], pil: Pil
) -> None:
    """Ten signed steps within 2/255 of every pixel, rounded to 8 bits, judged by timm's own pipeline."""
    start = photograph("chelsea.png")
    image = start.clone()
    for _ in range(10):
        image.requires_grad_()
        (slope,) = torch.autograd.grad(real(image, [""]).sum(), image)
        image = image.detach() + slope.sign() * 0.5 / 255
        image = image.clamp(start - 2 / 255, start + 2 / 255).clamp(0, 1)
    image = pil(image)
    moved = torchvision.transforms.functional.to_tensor(image)[None] - start
    assert moved.abs().max() <= 2 / 255 + 1e-6
    before, after = (reference(each)[0, 309] for each in (pil(start), image))
    assert before < -5
    assert after > before + 5
