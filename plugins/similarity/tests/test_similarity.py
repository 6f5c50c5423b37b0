"""What the comparison does not show: extremes, gradients, references in a column, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from draft_reward_similarity import EXAMPLES, SimilarityConfig, SimilarityPerPromptConfig
from draft_reward_similarity.dinov2 import PREPARATION, check_preparation
from draft_reward_similarity.lpips import heads_file
from draft_reward_similarity.reward import SimilarityPerPromptReward, SimilarityReward

from draft_core import load_recipe, load_reward
from draft_core.errors import DraftError, RecipeError
from draft_core.rewards.images import read_image

DISC = str(EXAMPLES / "disc.png")
MODELS = [{"model": "dinov2"}, {"model": "lpips-squeeze", "side": 64}]
IMAGE = torch.rand(1, 3, 70, 90, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODELS, ids=lambda fields: fields["model"])
def reward(request: pytest.FixtureRequest) -> SimilarityReward:
    return SimilarityReward(SimilarityConfig(reference=DISC, weights="random", **request.param))


def test_nothing_is_more_alike_than_the_reference_itself(reward: SimilarityReward) -> None:
    best = 1.0 if type(reward.network).__name__ == "Dinov2" else 0.0
    torch.testing.assert_close(reward(read_image(Path(DISC)), [""]), torch.tensor([best]))
    assert float(reward(IMAGE, [""])) < best - 1e-3


def test_steps_along_the_gradient_lead_nearer(reward: SimilarityReward) -> None:
    image, before = IMAGE.clone(), float(reward(IMAGE, [""]))
    for _ in range(5):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(reward(image, [""]).sum(), image)
        image = (image + 4 / 255 * gradient.sign()).clamp(0, 1).detach()
    assert float(reward(image, [""])) > before + 1e-3


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_images_have_finite_gradients(reward: SimilarityReward, level: float) -> None:
    image = torch.full((1, 3, 70, 90), level, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(image, [""]).sum(), image)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("fields", MODELS, ids=lambda fields: fields["model"])
def test_a_prompt_meets_the_reference_of_its_row_whatever_stands_beside_it(fields: dict[str, Any]) -> None:
    reward = SimilarityPerPromptReward(SimilarityPerPromptConfig(weights="random", **fields))
    files = [EXAMPLES / f"{name}.png" for name in ("stripes", "disc", "stripes", "corner")]
    alone = [
        SimilarityReward(SimilarityConfig(reference=str(file), weights="random", **fields))(IMAGE, [""])
        for file in files
    ]
    columns = {"reference": [read_image(file)[0] for file in files]}
    torch.testing.assert_close(reward(IMAGE.expand(4, -1, -1, -1), [""] * 4, columns), torch.cat(alone))


def test_a_recipe_reads_references_from_a_column(tmp_path: Path) -> None:
    """Paths begin at the folder of the list; a missing image is refused before anything is loaded."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(Path(DISC).read_bytes())
    (tmp_path / "list.csv").write_text("prompt,like\na fox,images/a.png\nan owl,images/b.png\n", encoding="utf-8")
    entry = {"kind": "similarity-per-prompt", "columns": {"reference": "like"}, "weights": "random"}
    recipe = {
        "model": {"pretrained": "no/where"},
        "prompts": str(tmp_path / "list.csv"),
        "method": {"kind": "draft-k", "k": 1},
        "rewards": [entry],
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(DraftError, match=r"b\.png"):
        load_recipe(recipe)
    (tmp_path / "images" / "b.png").write_bytes((EXAMPLES / "corner.png").read_bytes())
    assert load_recipe(recipe).rewards[0].kind == "similarity-per-prompt"


def test_a_reference_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DraftError, match=r"a.png: cannot be read as an image"):
        load_reward("similarity", reference=str(tmp_path / "a.png"), weights="random")


def test_a_backbone_is_read_from_its_file(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1()
    torch.save(network.state_dict(), tmp_path / "squeeze.pth")
    fields: dict[str, Any] = {"model": "lpips-squeeze", "side": 64, "reference": DISC}
    loaded = load_reward("similarity", weights=str(tmp_path / "squeeze.pth"), **fields)
    assert torch.equal(loaded.network.parts[0][0].weight, network.features[0].weight)
    with pytest.raises(DraftError, match="the weights are not those of this AlexNet"):
        load_reward("similarity", weights=str(tmp_path / "squeeze.pth"), **{**fields, "model": "lpips-alex"})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_reward_similarity.lpips.PACKAGE", "no-such-package")
    with pytest.raises(
        DraftError, match=r"the heads alex\.pth of the package no-such-package are not there; pip install"
    ):
        heads_file("alex", where="here")


def test_another_preparation_is_refused() -> None:
    check_preparation(PREPARATION, where="here")
    with pytest.raises(DraftError, match="here: this model prepares its images with resample = 2, not 3"):
        check_preparation({**PREPARATION, "resample": 2}, where="here")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"side": 128}, "`side` is for LPIPS"),
        ({"model": "lpips-alex", "side": 8}, "side"),
        ({"model": "lpips"}, "model"),
        ({"reference": "missing.png"}, "missing.png"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_reward("similarity", **{"reference": DISC, "weights": "random", **fields})
