"""Rewards that compare the images of a prompt: what they are given in training, in evaluations and by the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from draft_core import DifferentiableSampler, Objective, Trainer, TrainSettings, build, evaluate, load_recipe, score
from draft_core.errors import DraftError, PluginError, RecipeError, RewardError
from draft_core.evaluation.evaluate import Evaluation
from draft_core.plugin import RewardConfig, RewardSpec
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.placement import OnDevice
from draft_core.testing import CHECKS, Subject, Violation
from tests.support.pages import code_blocks, run_code, text_of
from tests.support.tiny import GOOD, Redness, RednessConfig, byte_tokenizer, spec, tiny_pipe, with_lora


class DiversityConfig(RewardConfig):
    """How far an image is from the others of its prompt."""

    kind: Literal["diversity"] = "diversity"


class Diversity(FrozenModule):
    """The mean over the other images of the prompt of the mean squared distance from them."""

    scope = "group"

    def __init__(self, config: DiversityConfig | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        self.seen.append((len(images), tuple(prompts)))
        images = checked_images(images, prompts, where="reward 'diversity'")
        squares = (images[:, None] - images[None]).square().mean((2, 3, 4))
        return squares.sum(1) / (len(images) - 1)


def by_hand(images: torch.Tensor, size: int) -> torch.Tensor:
    """The same by loops."""
    scores = []
    for place in range(len(images)):
        first = place - place % size
        others = [other for other in range(first, first + size) if other != place]
        scores.append(sum((images[place] - images[other]).square().mean() for other in others) / len(others))
    return torch.stack(scores)


SPEC: RewardSpec = spec("diversity", DiversityConfig, f"{__name__}:Diversity", scope="group")


def noise(count: int, *shape: int) -> torch.Tensor:
    return torch.rand(count, *(shape or (3, 8, 8)), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def grouped(catalog: Catalog) -> Catalog:
    entry = Entry(SPEC, Distribution("diversity-plugin", "1"))
    return replace(catalog, rewards={**catalog.rewards, "diversity": entry})


# The objective


def test_every_group_is_scored_by_itself() -> None:
    reward = Diversity()
    objective = Objective({"diversity": reward, "redness": Redness(RednessConfig())})
    objective.group_size = 3
    images = noise(6).requires_grad_()
    scores = objective(images, ["a"] * 3 + ["b"] * 3).per_reward
    torch.testing.assert_close(scores["diversity"], by_hand(images, 3))
    assert reward.seen == [(3, ("a",) * 3), (3, ("b",) * 3)]
    (gradient,) = torch.autograd.grad(scores["diversity"].sum(), images)
    (expected,) = torch.autograd.grad(by_hand(images, 3).sum(), images)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(scores["redness"], Redness(RednessConfig())(images, [""] * 6))
    together, _ = objective.components_of("diversity", images, ["a"] * 6, 6)
    torch.testing.assert_close(together, by_hand(images, 6))
    assert OnDevice(reward, "cpu").scope == "group"


def test_of_videos_the_frames_at_one_place_are_compared() -> None:
    objective = Objective({"diversity": Diversity()})
    objective.group_size = 2
    videos = noise(4, 3, 3, 8, 8)
    expected = torch.stack([by_hand(videos[:, frame], 2) for frame in range(3)]).mean(0)
    torch.testing.assert_close(objective(videos, ["a", "a", "b", "b"]).total, expected)


class Told(Diversity):
    """It tells a part of its score."""

    def score_with_components(
        self, images: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        scores = self(images, prompts)
        return scores, {"half": scores / 2}


def test_components_of_all_groups_stand_side_by_side() -> None:
    images = noise(4)
    scores, parts = Objective({"told": Told()}).components_of("told", images, ["a", "a", "b", "b"], 2)
    torch.testing.assert_close(parts["half"], by_hand(images, 2) / 2)
    torch.testing.assert_close(scores, by_hand(images, 2))
    videos = noise(4, 3, 3, 8, 8)
    scores, parts = Objective({"told": Told()}).components_of("told", videos, ["a", "a", "b", "b"], 2)
    torch.testing.assert_close(parts["half"], scores / 2)


@pytest.mark.parametrize(
    ("size", "prompts", "said"),
    [
        (1, ["a", "a"], "is given one image of each"),
        (2, ["a", "a", "b"], "is given 3 images, which are no groups of 2"),
        (2, ["a", "b"], "is given images of several prompts in a group of 2"),
    ],
)
def test_what_are_no_groups_is_refused(size: int, prompts: list[str], said: str) -> None:
    objective = Objective({"diversity": Diversity()})
    objective.group_size = size
    with pytest.raises(RewardError, match=f"reward 'diversity': it compares the images of a prompt, and {said}; set"):
        objective(noise(len(prompts)), prompts)
    measured = objective.for_measurement()
    assert measured(noise(len(prompts)), prompts).total.shape == (len(prompts),), "a forecast needs no real groups"
    assert measured(noise(1), ["a"]).total.shape == (1,)


# The contract


def test_a_sound_reward_of_groups_keeps_every_promise() -> None:
    for check in CHECKS.values():
        check(Subject(SPEC, DiversityConfig(), reward=Diversity()))


class Ordered(Diversity):
    """The first image counts twice."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = super().forward(images, prompts)
        return torch.cat([2 * scores[:1], scores[1:]])


class Lonely(Diversity):
    """It says that it compares, and does not."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return checked_images(images, prompts, where="planted").square().mean((1, 2, 3))


class Steep(Diversity):
    """A gradient of twice its slope."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = super().forward(images, prompts)
        return 2 * scores - scores.detach()


class Silent(Diversity):
    """The class does not say its scope."""

    scope = "image"


@pytest.mark.parametrize(
    ("reward", "name", "said"),
    [
        (Ordered, "no_leak_between_images", "change with the order of the group"),
        (Lonely, "no_leak_between_images", "a score does not change with the others"),
        (Steep, "gradient_is_right", "a finite difference along its gradient is off"),
        (Silent, "takes_as_declared", "its spec says that its scope is the group, it says image"),
    ],
)
def test_bugs_of_groups_are_caught(reward: Any, name: str, said: str) -> None:
    with pytest.raises(Violation, match=said):
        CHECKS[name](Subject(SPEC, DiversityConfig(), reward=reward()))


def test_a_reward_of_groups_is_no_reward_of_images() -> None:
    alone = replace(SPEC, scope="image")
    with pytest.raises(Violation, match="in a batch"):
        CHECKS["no_leak_between_images"](Subject(alone, DiversityConfig(), reward=Diversity()))
    with pytest.raises(PluginError, match="it has a reference, and those are called with single images"):
        replace(SPEC, reference="a:b", tolerance=0.1)


# Training and evaluation


def trainer(tokenizer: Any, reward: Any, **settings: Any) -> Trainer:
    sampler = DifferentiableSampler(
        with_lora(tiny_pipe(tokenizer=tokenizer)), num_inference_steps=2, guidance_scale=2.0
    )
    of = TrainSettings(**{"steps": 1, "batch_size": 4, "images_per_prompt": 2, **settings})
    return Trainer(sampler, {"mine": reward}, prompts=["a", "b", "c"], settings=of, device="cpu")


def test_training_gives_a_reward_the_images_of_each_prompt(tokenizer: Any) -> None:
    reward = Diversity()
    (grouped,) = trainer(tokenizer, reward)
    (expected,) = trainer(tokenizer, lambda images: by_hand(images, 2))  # of the whole pass
    assert grouped.scores["mine"] == pytest.approx(expected.scores["mine"], rel=1e-5)
    assert grouped.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert grouped.grad_norm > 0
    assert len(reward.seen) == 6, "two prompts, and two re-noised copies of each"
    assert all(count == 2 and len(set(prompts)) == 1 for count, prompts in reward.seen)
    with pytest.raises(RewardError, match="reward 'mine': it compares the images of a prompt, and is given one image"):
        next(iter(trainer(tokenizer, Diversity(), images_per_prompt=1)))


def small(tokenizer: Any) -> DifferentiableSampler:
    return DifferentiableSampler(tiny_pipe(tokenizer=tokenizer), num_inference_steps=2, guidance_scale=2.0)


def drawn(sampler: DifferentiableSampler, rewards: Objective, **more: Any) -> Evaluation:
    return evaluate(sampler, rewards, ["a", "b", "c"], [0, 1, 2], batch_size=2, **more)


def test_an_evaluation_scores_the_images_of_a_prompt_together_whatever_its_batches_and_processes(
    tokenizer: Any,
) -> None:
    rewards = {"diversity": Diversity(), "redness": Redness(RednessConfig())}
    one = small(tokenizer)
    alone = drawn(one, Objective(rewards))
    torch.testing.assert_close(alone.scores["diversity"], by_hand(alone.images, 3))
    plain = drawn(one, Objective({"redness": rewards["redness"]}))
    torch.testing.assert_close(alone.images, plain.images)
    torch.testing.assert_close(alone.scores["redness"], plain.scores["redness"])
    sent: dict[int, list[Any]] = {0: [], 1: []}

    def of_process(rank: int) -> Evaluation:
        """One of two processes; what the other sends is known once it has run, and its own stands there before."""
        calls = iter(range(9))

        def gather(part: Any) -> list[Any]:
            call = next(calls)
            sent[rank][call:] = [part]
            return [(sent[other] or sent[rank])[call] for other in (0, 1)]

        return drawn(one, Objective(rewards), share=(rank, 2), gather=gather)

    of_process(0)
    for rank in (1, 0):
        made = of_process(rank)
        torch.testing.assert_close(made.images, alone.images)
        torch.testing.assert_close(made.scores["diversity"], alone.scores["diversity"])
        torch.testing.assert_close(made.scores["redness"], alone.scores["redness"])
    with pytest.raises(RewardError, match="an evaluation with one seed has one of each; give two seeds or more"):
        evaluate(one, Objective(rewards), ["a"], [0])


# Recipes

GROUPS: dict[str, Any] = {
    **GOOD,
    "rewards": [{"kind": "redness"}, {"kind": "diversity"}],
    "train": {"steps": 1, "batch_size": 4, "images_per_prompt": 2},
    "evaluation": {"prompts": "tiny-heldout", "images_per_prompt": 2},
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["train.images_per_prompt=1"],
            "recipe: train.images_per_prompt: reward 'diversity' compares the images of a prompt, and a pass has one "
            "of each; set it to 2 or more",
        ),
        (["evaluation.images_per_prompt=1"], "recipe: evaluation.images_per_prompt: reward 'diversity' compares"),
        (
            ["method={kind: grpo, minibatches: 2}", "model.noise=0.5"],
            "recipe: method: reward 'diversity' compares the images of a prompt, and method 'grpo' scores them apart",
        ),
        (["rewards.1.surrogate={}"], "recipe: rewards.1.surrogate: the surrogate of 'diversity' sees one image"),
    ],
)
def test_a_recipe_without_groups_is_refused_before_anything_loads(
    overrides: list[str], sentence: str, grouped: Catalog
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(GROUPS, overrides, catalog=grouped)
    assert str(caught.value).startswith(sentence)


def test_a_recipe_trains_on_groups_and_a_metric_needs_them_in_evaluations_alone(grouped: Catalog) -> None:
    (report,) = build(load_recipe(GROUPS, catalog=grouped), catalog=grouped)
    assert report.scores["diversity"] > 0
    metric = {**GROUPS, "rewards": [{"kind": "redness"}], "metrics": [{"kind": "diversity"}]}
    load_recipe(metric, ["train.images_per_prompt=1"], catalog=grouped)
    load_recipe(GROUPS, ["method={kind: grpo}", "model.noise=0.5"], catalog=grouped)
    load_recipe(GROUPS, ["train.images_per_prompt=1", "model.call={num_images_per_prompt: 2}"], catalog=grouped)
    silent = replace(grouped.rewards["diversity"], spec=replace(SPEC, factory=f"{__name__}:Silent"))
    other = replace(grouped, rewards={**grouped.rewards, "diversity": silent})
    with pytest.raises(PluginError, match="its spec says that its scope is the group, its attribute `scope` image"):
        build(load_recipe(GROUPS, catalog=other), catalog=other)


def test_files_are_not_compared(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DraftError, match="compares the images of a prompt, and files are scored one by one"):
        score(tmp_path, Diversity())


def test_the_example_of_the_page_is_the_mean_distance_from_the_others() -> None:
    (block,) = (text for text in code_blocks(text_of("docs/write-a-reward.md"), "python") if "class Diversity" in text)
    names: dict[str, Any] = {
        "FrozenModule": FrozenModule,
        "checked_images": checked_images,
        "torch": torch,
        "Sequence": Sequence,
    }
    run_code(block, names)
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(names["Diversity"]()(images, ["a cat"] * 3), by_hand(images, 3))
