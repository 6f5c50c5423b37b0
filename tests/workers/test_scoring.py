"""A reward behind the messages of a worker is the reward itself in every bit, whatever becomes of its process.

The process is this one here, so that a test takes milliseconds; test_processes.py has real ones.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
import torch

from draft_core.errors import DraftError, RewardError, as_fields, from_fields
from draft_core.library.rewards import load_reward
from draft_core.prompt_rows import Column, PromptRow
from draft_core.registry.catalog import Catalog
from draft_core.reward_process import scoring
from draft_core.rewards.objective import Objective
from draft_core.runs.cut_prompts import cut_prompts
from draft_core.workers import tensors, worker
from draft_core.workers.process import WorkerDiedError
from draft_core.workers.remote_reward import RemoteReward
from draft_core.workers.worker import Worker
from tests.support.environments import in_one_process

CATALOG = in_one_process(Catalog())
PROMPTS = ["a", "b", "c"]


class HereProcess:
    """Answers like a worker's process, and dies over the questions whose numbers are in `deaths`."""

    deaths: ClassVar[set[int]] = set()
    asked = 0
    questions: ClassVar[list[str]] = []

    def __init__(self, python: Path, *, where: str) -> None:
        self.process = self
        self.pid, self.where = 0, where

    def poll(self) -> None:
        return None

    def close(self) -> None:
        pass

    def ask(self, question: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        HereProcess.asked += 1
        HereProcess.questions.append(question["do"])
        if HereProcess.asked in HereProcess.deaths:
            raise WorkerDiedError("it was ended by SIGKILL")
        told = json.loads(json.dumps(question))
        try:
            if told["do"] == "build":
                self.scorer = scoring.Scorer(told)
                answer: dict[str, Any] = {"takes": self.scorer.takes}
            else:
                answer = getattr(self.scorer, told["do"])(told)
        except DraftError as error:
            refusal = as_fields(error)
            raise from_fields({**refusal, "where": refusal["where"] or self.where}) from None
        return json.loads(json.dumps(answer))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> type[HereProcess]:
    monkeypatch.setattr(worker, "WorkerProcess", HereProcess)
    monkeypatch.setattr(scoring, "load_catalog", lambda: CATALOG)
    HereProcess.deaths, HereProcess.asked, HereProcess.questions = set(), 0, []
    return HereProcess


def both(kind: str, **fields: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The reward in this process, and behind messages."""
    there = Worker(Path("python"), {"kind": kind, **fields}, timeout=9, where=f"reward {kind!r}")
    differentiable = CATALOG.reward(kind).spec.differentiable
    return load_reward(kind, catalog=CATALOG, **fields), RemoteReward(there, differentiable=differentiable)


def images_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def gradient(reward: Any, images: torch.Tensor, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    scores = reward(leaf, prompts)
    (scores * torch.arange(1.0, len(scores) + 1)).mean().backward()
    assert leaf.grad is not None
    return scores, leaf.grad


def same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a, b) and a.dtype == b.dtype and a.requires_grad == b.requires_grad for a, b in pairs)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced", "one image"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_and_gradients_are_those_of_the_reward_in_every_bit(layout: str, dtype: torch.dtype) -> None:
    images = images_of(6, 3, 20, 24, dtype=dtype)
    laid_out = {
        "contiguous": images[:3],
        "channels last": images[:3].to(memory_format=torch.channels_last),
        "sliced": images[::2, :, 2:18],
        "one image": images[:1],
    }[layout]
    reward, there = both("old-tint", strength=1.25)
    prompts = PROMPTS[: len(laid_out)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert same(gradient(reward, laid_out, prompts), gradient(there, laid_out, prompts))


def test_a_worker_that_rounded_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reward, there = both("old-tint")
    exact = scoring.take
    monkeypatch.setattr(scoring, "take", lambda *given: exact(*given).bfloat16().float())
    assert not same(
        gradient(reward, images_of(3, 3, 20, 24), PROMPTS), gradient(there, images_of(3, 3, 20, 24), PROMPTS)
    )


def test_strides_and_empty_batches_come_through() -> None:
    memory = worker.SharedMemory()
    for tensor in (images_of(2, 3, 5, 7).permute(0, 2, 3, 1), torch.zeros(0, 3, 4, 4), torch.ones(3).expand(4, 3)):
        told = tensors.put(memory, [torch.ones(1, dtype=torch.float64), tensor])
        taken = tensors.take(memory, json.loads(json.dumps(told[1])))
        assert torch.equal(taken, tensor)
        assert taken.numel() == 0 or 0 in tensor.stride() or taken.stride() == tensor.stride()
    memory.close()
    assert not Path(memory.path).exists()


def test_memory_grows_and_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = worker.SharedMemory()
    other = worker.SharedMemory(memory.path)
    small, large = images_of(1, 3, 4, 4), images_of(2, 3, 700, 700)
    for tensor in (small, large, small):
        assert torch.equal(tensors.take(other, tensors.put(memory, [tensor])[0]), tensor)
    other.close()

    class Full:
        def seek(self, *given: int) -> int:
            return 0

        def write(self, part: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "_file", Full())
    with pytest.raises(RewardError, match="there is no room for 24 MB \\(No space left on device\\); make room there"):
        tensors.put(memory, [torch.zeros(6_000_000)])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_calls_before_their_backward_passes_in_any_order(order: tuple[int, ...]) -> None:
    found = []
    for reward in both("old-tint"):
        leaves = [images_of(3, 3, 20, 24).roll(place, -1).requires_grad_() for place in range(3)]
        scores = [reward(leaf, PROMPTS).sum() for leaf in leaves]
        for place in order:
            scores[place].backward()
        found.append([leaf.grad for leaf in leaves])
    assert same(*found)  # type: ignore[arg-type]


def test_a_kept_graph_gives_its_gradient_twice(here: type[HereProcess]) -> None:
    found = []
    for reward in both("old-tint"):
        leaf = images_of(3, 3, 20, 24).requires_grad_()
        scores = reward(leaf, PROMPTS)
        found.append([torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in (scores.sum(), scores[1])])
    assert same(*found)
    assert here.questions == ["build", "score", "gradient", "gradient", "score", "gradient"]


def test_without_gradient_nothing_is_kept_and_a_graph_that_is_gone_is_forgotten() -> None:
    reward, there = both("old-tint")
    images = images_of(3, 3, 20, 24).requires_grad_()
    process = there.worker._process.scorer  # type: ignore[union-attr]
    with torch.no_grad():
        assert same([reward(images, PROMPTS)], [there(images, PROMPTS)])
    assert not process.calls
    scores = there(images, PROMPTS)
    assert len(process.calls) == 1
    del scores
    gc.collect()
    with torch.no_grad():
        there(images, PROMPTS)
    assert not process.calls


def test_a_reward_without_a_gradient_is_asked_for_none(here: type[HereProcess]) -> None:
    for reward in both("flat"):
        assert not reward(images_of(3, 3, 8, 8).requires_grad_(), PROMPTS).requires_grad
    assert here.questions == ["build", "score"]


def test_components_columns_and_videos_come_through() -> None:
    reward, there = both("old-tint")
    objective = Objective({"here": reward, "there": there})
    (a, parts), (b, parts_there) = (
        objective.components_of(name, images_of(3, 3, 8, 8), PROMPTS) for name in objective.rewards
    )
    assert same([a, *parts.values()], [b, *parts_there.values()])
    assert [*parts] == [*parts_there] == ["hidden"]

    columns = {name: Column(name, kind) for name, kind in CATALOG.reward("columned").spec.columns.items()}
    rows = [
        PromptRow("a", {"target": images_of(3, 4 + place, 5), "weight": f"0.{place}1", "text": "x" * place or "?"})
        for place in range(3)
    ]
    found = []
    for reward in both("columned"):
        columned = Objective({"columned": reward}, columns={"columned": columns})
        found.append(
            gradient(lambda images, prompts, it=columned: it(images, prompts).total, images_of(3, 3, 8, 8), rows)
        )
    assert same(*found)

    reward, there = both("still")
    assert there.takes == "video"
    videos = images_of(3, 3, 4, 8, 8).transpose(1, 2)
    assert same(gradient(reward, videos, PROMPTS), gradient(there, videos, PROMPTS))


def test_a_frame_at_a_time_and_chunks_of_a_batch() -> None:
    for reward in both("old-tint"):
        objective = Objective({"tint": reward})
        whole = objective(images_of(3, 2, 3, 8, 8), PROMPTS).total
        chunks = [objective(images_of(3, 2, 3, 8, 8)[place : place + 1], ["a"]).total for place in range(3)]
        torch.testing.assert_close(whole, torch.cat(chunks))


@pytest.mark.parametrize("word", ["raise", "list"])
def test_what_a_reward_does_wrong_is_said_in_the_same_words(word: str) -> None:
    said = []
    for reward in both("odd"):
        with pytest.raises(RewardError) as caught:
            Objective({"odd": reward})(images_of(1, 3, 8, 8), [word])
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "reward 'odd': it " in said[0]


def test_a_want_of_memory_is_one_sentence() -> None:
    _, there = both("odd")
    with pytest.raises(RewardError, match="it does not fit into memory \\(tried to allocate 9 GiB\\); lower train"):
        there(images_of(1, 3, 8, 8), ["memory"])


def trained(rewards: Mapping[str, torch.nn.Module]) -> torch.Tensor:
    """Pixels after a few steps up the sum of rewards."""
    images = images_of(3, 3, 12, 12).requires_grad_()
    objective = Objective(rewards)
    for _ in range(20):
        (slope,) = torch.autograd.grad(objective(images, PROMPTS).total.sum(), images)
        images = (images + 0.1 * slope).detach().requires_grad_()
    return images


def test_ten_deaths_at_random_questions_change_no_bit(here: type[HereProcess]) -> None:
    reward, there = both("old-tint")
    expected = trained({"tint": reward})
    here.asked = 0
    draw = Random(7)
    here.deaths = {6 * number + draw.randrange(2) for number in range(1, 11)}  # never twice over one question
    assert torch.equal(trained({"tint": there}), expected)
    assert there.worker.starts == 11  # type: ignore[union-attr]


def test_a_new_start_is_said(here: type[HereProcess], caplog: pytest.LogCaptureFixture) -> None:
    _, there = both("old-tint")
    here.deaths = {here.asked + 1}
    there(images_of(3, 3, 8, 8), PROMPTS)
    there(images_of(3, 3, 8, 8), PROMPTS)
    said = "reward 'old-tint': its process was started again, since it was ended by SIGKILL; no result changes"
    assert caplog.messages == [said]
    notes: list[str] = []
    with cut_prompts() as told:
        told.progress = lambda stage, done, total, note: notes.append(note)
        here.deaths = {here.asked + 1}
        there(images_of(3, 3, 8, 8), PROMPTS)
    assert notes == [said]


def test_what_is_not_asked_again_would_be_found(here: type[HereProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    _, there = both("old-tint")
    monkeypatch.setattr(worker, "STARTS", 1)
    here.deaths = {here.asked + 3}
    with pytest.raises(RewardError, match="its process died"):
        trained({"tint": there})


def test_a_process_that_dies_twice_over_a_question_is_one_sentence(here: type[HereProcess]) -> None:
    _, there = both("old-tint")
    here.deaths = {here.asked + 1, here.asked + 3}  # the second start builds, and then is asked
    with pytest.raises(RewardError) as caught:
        there(images_of(3, 3, 8, 8), PROMPTS)
    assert "reward 'old-tint': its process died twice over the same question: it was ended by SIGKILL" in str(
        caught.value
    )
    assert "lower train.batch_size" in str(caught.value)
    there(images_of(3, 3, 8, 8), PROMPTS)  # and the next call starts another


def test_a_second_derivative_is_refused() -> None:
    _, there = both("old-tint")
    images = images_of(1, 3, 8, 8).requires_grad_()
    with pytest.raises(RewardError, match="a gradient of its gradient is asked for, and its process gives none"):
        torch.autograd.grad(there(images, ["a"]).sum(), images, create_graph=True)
