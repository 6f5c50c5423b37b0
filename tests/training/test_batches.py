"""What an update draws: several images of one prompt side by side, and what of that is refused."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, Objective, Trainer
from draft_core.adapters.lora import add_lora
from draft_core.errors import RecipeError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.learner import Batch
from draft_core.training.batches import Batches
from draft_core.training.scoring import check_images
from draft_core.training.settings import TrainSettings
from draft_core.training.step_report import Tally
from tests.support.tiny import Redness, RednessConfig, byte_tokenizer, tiny_pipe

PROMPTS = ["a", "b", "c"]


def batches(repeats: int, *, size: int = 4, rank: int = 0, world: int = 1) -> Batches:
    ranks: Any = SimpleNamespace(rank=rank, world_size=world)
    return Batches(PROMPTS, 7, size, 1, 1, ranks, repeats=repeats, columns={"where": ["x", "y", "z"]})


def noise(batch: Batch) -> list[int]:
    return [generator.initial_seed() for generator in batch.generators]


def test_images_of_one_prompt_stand_side_by_side_each_with_its_own_noise() -> None:
    drawn = [next(batches(2).draw(update)) for update in range(3)]
    for batch in drawn:
        assert batch.prompts[::2] == batch.prompts[1::2]
        assert batch.columns["where"] == ["xyz"["abc".index(prompt)] for prompt in batch.prompts]
        assert len(set(noise(batch))) == 4
    assert sorted(prompt for batch in drawn for prompt in batch.prompts[::2]) == sorted(PROMPTS * 2)


def test_two_processes_draw_the_prompts_and_the_noise_of_one() -> None:
    whole = next(batches(2, size=4).draw(5))
    parts = [next(batches(2, size=2, rank=rank, world=2).draw(5)) for rank in range(2)]
    assert [prompt for part in parts for prompt in part.prompts] == whole.prompts
    assert [seed for part in parts for seed in noise(part)] == noise(whole)


def test_the_noise_of_an_image_depends_on_seed_prompt_and_copy_alone() -> None:
    drawn = noise(next(batches(1).draw(0)))
    assert drawn == [Random(f"noise 7 {index} 0").getrandbits(62) for index in range(4)]
    assert noise(next(batches(2).draw(0)))[:2] == [Random(f"noise 7 0 {copy}").getrandbits(62) for copy in range(2)]


def test_images_that_do_not_divide_a_pass_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        TrainSettings(batch_size=8, images_per_prompt=3)
    assert str(caught.value) == (
        "train.images_per_prompt: 3 images of each prompt do not divide a pass of 8 images; make train.batch_size a "
        "multiple of 3."
    )
    with pytest.raises(RecipeError, match="the call makes 2 images of each prompt already; leave one of them out"):
        check_images(TrainSettings(images_per_prompt=2), 2, 1)


def test_every_method_honours_it_and_queries_are_counted(tmp_path: Any) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    add_lora(pipe, rank=2)
    seen: list[Any] = []

    class Watched(Redness):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            seen.extend(prompts)
            return super().forward(images, prompts)

    one = Trainer(
        DifferentiableSampler(pipe, num_inference_steps=2),
        Objective({"redness": Watched(RednessConfig())}),
        DirectLearner(DraftK(k=1)),
        PROMPTS,
        TrainSettings(batch_size=4, images_per_prompt=2, gradient_accumulation_steps=2),
        device="cpu",
    )
    assert one.train_step().reward_queries == 8
    assert len(seen) == 8
    assert seen[::2] == seen[1::2]


def test_the_queries_of_all_processes_add_up_also_those_of_a_round_that_is_thrown_away() -> None:
    tallies = [Tally(queries=4), Tally(queries=3)]
    mark = tallies[0].mark()
    tallies[0].queries += 2
    tallies[0].back_to(mark)
    tallies[0].merge(tallies)
    assert tallies[0].report(1, {}, learning_rate=0.1, seconds=1.0).reward_queries == 9
