"""Evaluations draw what the pipeline's own call draws, one image for each prompt and seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft_core.errors import DraftError
from draft_core.evaluation.evaluate import evaluate
from draft_core.rewards.objective import Objective
from draft_core.sampling.sampler import DifferentiableSampler
from tests.support.tiny import Redness, RednessConfig, byte_tokenizer, tiny_pipe


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_call_that_makes_several_images_of_a_prompt_makes_one_for_each_seed(tmp_path: Path, batch_size: int) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, num_images_per_prompt=2)
    rewards = Objective({"redness": Redness(RednessConfig())})
    found = evaluate(sampler, rewards, ["a cat", "a red dog"], range(5, 7), batch_size=batch_size)
    plain = [
        pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(seed), output_type="pt").images
        for prompt in ("a cat", "a red dog")
        for seed in (5, 6)
    ]
    torch.testing.assert_close(found.images, torch.cat(plain))
    assert found.scores["redness"].shape == (4,)
    assert sampler.call_kwargs == {"num_images_per_prompt": 2}, "training goes on with two"


def test_no_prompts_no_seeds_and_a_text_are_refused(tmp_path: Path) -> None:
    sampler = DifferentiableSampler(tiny_pipe(tokenizer=byte_tokenizer(tmp_path)), num_inference_steps=2)
    for prompts, seeds, said in (([], [1], "no prompts"), (["a"], [], "no seeds"), ("cat", [1], "are one text, 'cat'")):
        with pytest.raises(DraftError, match=f"evaluate: .*{said}"):
            evaluate(sampler, Objective({}), prompts, seeds)
    with pytest.raises(DraftError, match=r"evaluate: the seeds are one number, 3; give a list, such as range\(4\)"):
        evaluate(sampler, Objective({}), ["a"], 3)  # type: ignore[arg-type]
    with pytest.raises(DraftError, match="evaluate: batch_size: 0 is not a whole number from 1 on"):
        evaluate(sampler, Objective({}), ["a"], [1], batch_size=0)
