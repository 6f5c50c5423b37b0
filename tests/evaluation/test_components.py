"""Rewards that tell what their score is made of: evaluations store the parts, and the report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from draft_core.errors import RewardError
from draft_core.evaluation.collapse import eval_record
from draft_core.evaluation.evaluate import evaluate
from draft_core.reporting.curves import evaluation_panels
from draft_core.reporting.run_record import EVALUATIONS, append_row, read_rows
from draft_core.reporting.summary import summarize
from draft_core.rewards import FrozenModule, RewardWithComponents
from draft_core.rewards.objective import Objective
from draft_core.rewards.placement import OnDevice
from draft_core.sampling.sampler import DifferentiableSampler
from tests.support.runs import made_run
from tests.support.tiny import byte_tokenizer, tiny_pipe


class Channels(FrozenModule):
    """Twice red plus blue, and what each gives."""

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_with_components(images, prompts)[0]

    def score_with_components(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        red, blue = images[..., 0, :, :].flatten(1).mean(1), images[..., 2, :, :].flatten(1).mean(1)
        return 2 * red + blue, {"red": red, "blue": blue}


class OfVideos(Channels):
    """Red of the last frame: no mean over frames gives it."""

    takes = "any"

    def score_with_components(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert images.ndim == 5
        assert len(prompts) == len(images)
        last = images[:, -1, 0].flatten(1).mean(1)
        return last, {"last": last}


def test_an_evaluation_keeps_the_parts_and_their_order(tmp_path: Path) -> None:
    sampler = DifferentiableSampler(tiny_pipe(tokenizer=byte_tokenizer(tmp_path)), num_inference_steps=2)
    rewards = Objective({"parts": Channels(), "elsewhere": OnDevice(Channels(), "cpu")})
    found = evaluate(sampler, rewards, ["a cat", "a red dog"], [5, 6], batch_size=3)
    assert list(found.components) == ["parts: red", "parts: blue", "elsewhere: red", "elsewhere: blue"]
    torch.testing.assert_close(found.components["parts: red"], found.images[:, 0].flatten(1).mean(1))
    torch.testing.assert_close(found.components["elsewhere: blue"], found.images[:, 2].flatten(1).mean(1))
    total = 2 * found.components["parts: red"] + found.components["parts: blue"]
    torch.testing.assert_close(found.scores["parts"], total)
    record = eval_record(found, found, 0)
    append_row(tmp_path / EVALUATIONS, record)
    assert read_rows(tmp_path / EVALUATIONS, type(record))[0].components == record.components


def test_of_videos_parts_are_means_over_frames_unless_the_reward_takes_whole_videos() -> None:
    videos = torch.rand(2, 3, 3, 8, 8)
    rewards = Objective({"frames": Channels(), "whole": OfVideos(), "far": OnDevice(OfVideos(), "cpu")})
    scores, parts = rewards.components_of("frames", videos, ["a", "b"])
    torch.testing.assert_close(parts["red"], videos[:, :, 0].mean((1, 2, 3)))
    torch.testing.assert_close(scores, rewards(videos, ["a", "b"]).per_reward["frames"])
    for name in ("whole", "far"):
        scores, parts = rewards.components_of(name, videos, ["a", "b"])
        torch.testing.assert_close(scores, videos[:, -1, 0].mean((1, 2)))
        torch.testing.assert_close(parts["last"], scores)
        torch.testing.assert_close(rewards(videos, ["a", "b"]).per_reward[name], scores)


def test_a_reward_without_parts_has_none() -> None:
    class Plain(FrozenModule):
        def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return images.flatten(1).mean(1)

    assert isinstance(Channels(), RewardWithComponents)
    assert not isinstance(Plain(), RewardWithComponents)
    rewards = Objective({"plain": Plain(), "far": OnDevice(Plain(), "cpu")})
    for name in rewards.rewards:
        assert rewards.components_of(name, torch.rand(2, 3, 8, 8), ["a", "b"])[1] == {}


class Torn(Channels):
    """Parts of a wrong shape, or of other names for each prompt."""

    def __init__(self, shape: bool) -> None:
        super().__init__()
        self.shape = shape

    def score_with_components(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        scores = images.flatten(1).mean(1)
        return scores, {"mean": scores.mean()} if self.shape else {prompts[0]: scores}


def test_torn_parts_are_refused(tmp_path: Path) -> None:
    sampler = DifferentiableSampler(tiny_pipe(tokenizer=byte_tokenizer(tmp_path)), num_inference_steps=1)
    with pytest.raises(RewardError, match=r"reward 'torn': its component 'mean' has the shape \(\) for 1 images"):
        evaluate(sampler, Objective({"torn": Torn(True)}), ["a", "b"], [1], batch_size=1)
    with pytest.raises(RewardError, match="tells other components of one batch than of another"):
        evaluate(sampler, Objective({"torn": Torn(False)}), ["a", "b"], [1], batch_size=1)


def test_the_report_has_a_row_and_a_curve_for_each_part(tmp_path: Path) -> None:
    scores = {"vlm": [1.0, 2.0]}
    record = made_run(tmp_path / "run", scores, trained={"vlm": 1.0})
    count = len(record.before.drift)
    for number, row in enumerate(record.evaluations):
        object.__setattr__(row, "components", {"vlm: physics": [0.5 + number] * count, "vlm: colour": [0.1] * count})
    rows = {row.name: row for row in summarize(record).rows}
    assert rows["vlm: physics"].role == "component"
    assert rows["vlm: physics"].change.mean == pytest.approx(1.0)
    assert list(rows)[:3] == ["vlm", "vlm: physics", "vlm: colour"]
    panel = next(panel for panel in evaluation_panels(record) if panel.title == "vlm, its components")
    assert [line.label for line in panel.lines] == ["physics", "colour"]
    assert list(panel.lines[0].values) == pytest.approx([0.5, 1.5])
    assert record.rule.verdict(record.before, record.last).lost == ()
