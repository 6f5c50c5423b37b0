"""Functions and modules as rewards, without a plugin: what they are given, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from draft_core import Objective, build, load_recipe, load_reward, score
from draft_core.errors import DraftError, RecipeError, RewardError
from draft_core.registry.catalog import Catalog
from tests.support.tiny import GOOD, Redness, RednessConfig


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def redness(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.mean((-2, -1)).unbind(1)
    return red - (green + blue) / 2


def by_length(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3)).double() * torch.tensor([len(prompt) for prompt in prompts])


class OfImages(torch.nn.Module):
    """A module that knows no prompts."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return redness(images)


def test_a_function_scores_like_the_module_that_it_says() -> None:
    given = images().requires_grad_()
    made = Objective({"function": redness, "module": OfImages(), "plugin": Redness(RednessConfig())})
    scores = made(given, ["a", "bc"])
    for name in ("function", "module"):
        assert torch.equal(scores.per_reward[name], scores.per_reward["plugin"])
    (gradient,) = torch.autograd.grad(scores.per_reward["function"].sum(), given)
    torch.testing.assert_close(gradient[:, 0], torch.full((2, 8, 8), 1 / 64))


def test_a_function_of_two_arguments_is_given_the_prompts_and_a_default_is_left_alone() -> None:
    def scaled(images: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return scale * redness(images)

    scores = Objective({"length": by_length, "scaled": scaled})(images(), ["a", "bcd"]).per_reward
    torch.testing.assert_close(scores["length"], images().mean((1, 2, 3)) * torch.tensor([1.0, 3.0]))
    assert scores["length"].dtype == torch.float32
    torch.testing.assert_close(scores["scaled"], 2 * redness(images()))


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (OfImages, "reward 'mine': it is the class OfImages; make an instance of it"),
        (3, "reward 'mine': it is a int; give a module, or a function of images"),
        (lambda images: images.nothing, "reward 'mine': its function raised AttributeError"),
        (lambda images: images.mean(), r"reward 'mine': it returned torch.float32 of shape \(\) for 2 images"),
    ],
)
def test_what_is_no_reward_is_one_sentence(reward: Any, sentence: str) -> None:
    with pytest.raises(RewardError, match=sentence):
        Objective({"mine": reward})(images(), ["a", "b"])


def test_a_recipe_trains_on_a_function_in_the_place_of_its_rewards(catalog: Catalog) -> None:
    recipe = load_recipe(GOOD, ["device=cpu", "train.steps=2", "train.batch_size=2"], catalog=catalog)
    of_plugin = [*build(recipe, catalog=catalog)]
    of_function = [*build(recipe, rewards={"mine": redness}, catalog=catalog)]
    alone = [*build(recipe, rewards=redness, catalog=catalog)]
    for reports, name in ((of_function, "mine"), (alone, "redness")):
        assert [report.scores[name] for report in reports] == [report.scores["redness"] for report in of_plugin]
        assert [report.grad_norm for report in reports] == [report.grad_norm for report in of_plugin]
    with pytest.raises(RewardError, match="reward 'cut': its scores carry no gradient"):
        next(iter(build(recipe, rewards={"cut": lambda images: redness(images.detach())}, catalog=catalog)))
    with pytest.raises(RewardError, match="objective: there is no reward; give at least one"):
        build(recipe, rewards={}, catalog=catalog)
    surrogate = load_recipe(GOOD, ["device=cpu", "rewards.0.surrogate={}"], catalog=catalog)
    with pytest.raises(RecipeError, match=r"rewards\.0\.surrogate: a surrogate learns this reward"):
        build(surrogate, rewards=redness, catalog=catalog)


def test_columns_of_an_objective_are_read_from_the_recipes_list(catalog: Catalog, tmp_path: Path) -> None:
    from draft_core.prompt_rows import Column

    def scaled(images: torch.Tensor, prompts: list[str], columns: dict[str, list[float]]) -> torch.Tensor:
        return redness(images) * torch.tensor(columns["factor"])

    (tmp_path / "list.csv").write_text("prompt,factor\na cat,2\na dog,2\n")
    wanted = ["device=cpu", "train.steps=1", "train.batch_size=2", f"prompts={tmp_path / 'list.csv'}"]
    recipe = load_recipe(GOOD, wanted, catalog=catalog)
    mine = Objective({"mine": scaled}, columns={"mine": {"factor": Column("factor", "number")}})
    (twice,), (once,) = build(recipe, rewards=mine, catalog=catalog), build(recipe, rewards=redness, catalog=catalog)
    assert twice.scores["mine"] == pytest.approx(2 * once.scores["redness"])


def test_a_reward_that_reads_no_prompt_takes_images_alone(catalog: Catalog) -> None:
    reward = load_reward("redness", catalog=catalog)
    assert torch.equal(reward(images()), reward(images(), ["a", "b"]))
    from dataclasses import replace

    entry = catalog.rewards["redness"]
    asks = replace(entry, spec=replace(entry.spec, needs_prompt=True))
    other = replace(catalog, rewards={**catalog.rewards, "redness": asks})
    with pytest.raises(RewardError, match="reward 'redness': it scores images against prompts, and there are none"):
        load_reward("redness", catalog=other)(images())


def test_a_small_instance_has_the_fields_of_the_spec_and_those_given(catalog: Catalog) -> None:
    from dataclasses import replace

    entry = catalog.rewards["redness"]
    small = replace(entry, spec=replace(entry.spec, small={"contrast": 5.0}))
    with_small = replace(catalog, rewards={**catalog.rewards, "redness": small})
    assert load_reward("redness", small=True, catalog=with_small).contrast == 5.0
    assert load_reward("redness", small=True, catalog=with_small, contrast=2.0).contrast == 2.0
    assert load_reward("redness", catalog=with_small).contrast == 1.0


def test_a_folder_is_scored_in_one_line(catalog: Catalog, tmp_path: Path) -> None:
    for name, colour in (("b.png", "red"), ("a.JPG", "white"), ("notes.txt", None)):
        if colour is None:
            (tmp_path / name).write_text("no image")
        else:
            Image.new("RGB", (4, 6), colour).save(tmp_path / name)
    scores = score(tmp_path, "redness", catalog=catalog, contrast=2.0)
    assert {path.name: value for path, value in scores.items()} == {"a.JPG": pytest.approx(0), "b.png": 2.0}
    assert scores.mean() == pytest.approx(1.0)
    assert list(score(tmp_path / "b.png", redness).values()) == [1.0]
    of_two = score([tmp_path / "b.png"] * 1 + [str(tmp_path / "a.JPG")], by_length, prompts=["abc", "de"])
    assert list(of_two.values()) == pytest.approx([1.0, 2.0])
    assert "<td>b.png</td><td>2</td>" in scores._repr_html_()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"images": "nothing.png"}, "nothing.png: no such file"),
        ({"images": []}, "there is no image"),
        ({"images": "notes.txt"}, "notes.txt: it has no score"),
        ({"prompts": ["a", "b"]}, "score: prompts: 2 prompts for 1 images"),
        ({"reward": redness, "quality": 50}, "score: quality is a field of an installed kind, and redness is none"),
        ({"contrst": 1}, "unknown field 'contrst'; did you mean 'contrast'?"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    given: dict[str, Any], sentence: str, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 6), "red").save("red.png")
    Path("notes.txt").write_text("no image")
    with pytest.raises(DraftError) as caught:
        score(**{"images": "red.png", "reward": "redness", "catalog": catalog, **given})
    assert sentence in str(caught.value)
