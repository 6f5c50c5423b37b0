"""Calls of one pipeline at a time, noise replaced for one thread alone, and replays with what made the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, StepPlan
from draft_core.errors import SamplerError
from draft_core.sampling import chain, replay
from draft_core.sampling.pipeline_call import Steering
from draft_core.sampling.randomness import drawn_by
from draft_core.sampling.rollout import Rollout
from tests.support.drive import seeded
from tests.support.tiny import embeddings, make_scheduler, tiny_pipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 3
PLAIN = StepPlan(STEPS, frozenset())
KEPT = StepPlan(STEPS, frozenset(), keep_trajectory=True)


def tiny_sampler(scheduler: Any = diffusers.DDIMScheduler, **call: Any) -> DifferentiableSampler:
    pipe = tiny_pipe(make_scheduler(scheduler))
    return DifferentiableSampler(pipe, num_inference_steps=STEPS, **{"guidance_scale": 3.0, **call}, **embeddings())


@pytest.fixture
def sampler() -> DifferentiableSampler:
    return tiny_sampler()


@pytest.fixture
def rollout(sampler: DifferentiableSampler) -> Rollout:
    with torch.no_grad():
        return sampler(plan=KEPT, generator=seeded())


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives in another thread, or the error that it raises there."""
    results: list[Any] = []

    def kept() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=kept)
    thread.start()
    thread.join()
    return results[0]


def test_another_thread_draws_its_own_noise_while_a_gaussian_is_read() -> None:
    """Thread two samples in the middle of thread one's replaced draws, with torch's and the scheduler's functions."""
    other = tiny_sampler(diffusers.DDPMScheduler)
    module = __import__(diffusers.DDPMScheduler.__module__, fromlist=["randn_tensor"])
    own = torch.randn, module.randn_tensor

    def sample() -> torch.Tensor:
        with torch.no_grad():
            return other(plan=PLAIN, generator=seeded()).images

    alone = sample()

    def constant(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(1)

    with drawn_by(torch, "randn", lambda _: constant), drawn_by(module, "randn_tensor", lambda _: constant):
        assert torch.equal(torch.randn(5), torch.zeros(1))
        assert torch.equal(in_thread(sample), alone)
    assert (torch.randn, module.randn_tensor) == own


def test_replacements_that_overlap_in_two_threads_leave_nothing() -> None:
    own = torch.randn
    entered, left = threading.Event(), threading.Event()

    def second() -> None:
        with drawn_by(torch, "randn", lambda _: torch.zeros):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=second)
    with drawn_by(torch, "randn", lambda _: torch.ones):
        thread.start()
        assert entered.wait(10)
        assert torch.equal(torch.randn(2), torch.ones(2))
    left.set()
    thread.join()
    assert torch.randn is own


def test_one_pipeline_in_two_threads_is_refused(sampler: DifferentiableSampler, rollout: Rollout) -> None:
    errors: list[Any] = []

    def visit(output: Any) -> None:
        errors.append(in_thread(lambda: sampler(plan=PLAIN, generator=seeded())))

    sampler.replay(rollout, {1: rollout.trajectory[1].before}, visit)
    assert isinstance(errors[0], SamplerError)
    assert "another thread samples with it" in str(errors[0])
    assert "give each thread a pipeline of its own" in str(errors[0])


@pytest.mark.parametrize("again", ["sample", "replay", "fresh sampler"])
def test_sampling_in_a_visit_is_refused_by_name(sampler: DifferentiableSampler, rollout: Rollout, again: str) -> None:
    fresh = DifferentiableSampler(sampler.pipe, num_inference_steps=STEPS, guidance_scale=3.0, **embeddings())
    last = rollout.trajectory[2].before
    inner: dict[str, Callable[[], Any]] = {
        "sample": lambda: sampler(plan=PLAIN, generator=seeded()),
        "replay": lambda: sampler.replay(rollout, {2: last}),
        "fresh sampler": lambda: fresh.steps,
    }
    with pytest.raises(SamplerError, match=r"cannot be called inside that .*sample after the replay"):
        sampler.replay(rollout, {1: rollout.trajectory[1].before, 2: last}, lambda output: inner[again]())
    with torch.no_grad():
        assert torch.equal(sampler(plan=PLAIN, generator=seeded()).images, rollout.images)


def test_another_pipeline_may_sample_in_a_visit(sampler: DifferentiableSampler, rollout: Rollout) -> None:
    other = tiny_sampler()
    images: list[torch.Tensor] = []
    visited: list[int] = []

    def visit(output: Any) -> None:
        visited.append(output.number)
        images.append(other(plan=PLAIN, generator=seeded()).images)

    given = {record.number: record.before for record in rollout.trajectory[1:]}
    with torch.no_grad():
        sampler.replay(rollout, given, visit)
    assert visited == [1, 2]
    assert all(torch.equal(one, rollout.images) for one in images)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda sampler: setattr(sampler.pipe, "scheduler", make_scheduler(diffusers.EulerDiscreteScheduler)),
            "scheduler",
        ),
        (lambda sampler: sampler.call_kwargs.update(guidance_scale=7.0), "guidance_scale"),
        (lambda sampler: sampler.call_kwargs.update(height=64), "height"),
        (lambda sampler: sampler.call_kwargs.pop("guidance_scale"), "guidance_scale"),
        (lambda sampler: setattr(sampler, "num_inference_steps", 6), "num_inference_steps"),
    ],
    ids=["scheduler", "guidance", "added", "taken away", "steps"],
)
def test_a_replay_with_something_else_than_made_the_run_is_refused(
    sampler: DifferentiableSampler, rollout: Rollout, change: Callable[[Any], Any], named: str
) -> None:
    change(sampler)
    with pytest.raises(SamplerError, match=f"sampled with another {named}"):
        sampler.replay(rollout, {1: rollout.trajectory[1].before})


def test_a_rollout_of_another_pipeline_is_refused(rollout: Rollout) -> None:
    with pytest.raises(SamplerError, match="rollout: it was sampled with another pipe; replay it with the sampler"):
        tiny_sampler().replay(rollout, {1: rollout.trajectory[1].before})


def test_a_second_sampler_of_the_same_pipeline_and_keywords_may_replay(
    sampler: DifferentiableSampler, rollout: Rollout
) -> None:
    second = DifferentiableSampler(sampler.pipe, num_inference_steps=STEPS, **sampler.call_kwargs)
    seen: list[Any] = []
    second.replay(rollout, {1: rollout.trajectory[1].before}, seen.append)
    assert torch.equal(seen[0].prediction, rollout.trajectory[1].prediction)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (lambda latents: {1: latents.double()}, r"step 1 are torch.float64 on cpu, the run's torch.float32"),
        (lambda latents: {1: latents[:0]}, r"the latents of step 1 are \(0, "),
        (lambda latents: {1: latents.numpy()}, "step 1 is given a ndarray"),
        (lambda latents: {"1": latents}, "did not keep step '1'"),
        (lambda latents: [latents], "given: it is a list"),
        (lambda latents: {}, "no step is given"),
    ],
    ids=["float64", "empty", "numpy", "text", "list", "nothing"],
)
def test_latents_that_no_step_can_take_are_one_sentence(
    sampler: DifferentiableSampler, rollout: Rollout, given: Callable[[torch.Tensor], Any], sentence: str
) -> None:
    with pytest.raises(SamplerError, match=sentence):
        sampler.replay(rollout, given(rollout.trajectory[1].before))


def test_no_rollout_and_no_visit_are_one_sentence(sampler: DifferentiableSampler, rollout: Rollout) -> None:
    latents = rollout.trajectory[1].before
    with pytest.raises(SamplerError, match="rollout: it is a NoneType"):
        sampler.replay(None, {1: latents})  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match="visit is None"):
        sampler.replay(rollout, {1: latents}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"), [("decode", "hole"), ("gradient_checkpointing", "yes"), ("gradient_checkpointing", 1)]
)
def test_a_setting_that_is_none_of_its_values_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(SamplerError, match=f"DifferentiableSampler.{setting}: {setting} is {value!r}; use one of"):
        DifferentiableSampler(tiny_pipe(), num_inference_steps=2, **{setting: value}, **embeddings())


def test_the_classes_that_steer_a_call_cannot_be_inherited_from() -> None:
    asked = {name for name, value in vars(Steering).items() if callable(value) and not name.startswith("_")}
    classes = [
        kind
        for module in (chain, replay)
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and all(hasattr(kind, name) for name in asked)
    ]
    assert {kind.__name__ for kind in classes} == {"PlannedRun", "ShortRun", "DryRun", "Replay"}
    assert all(getattr(kind, "__final__", False) for kind in classes)


@pytest.mark.parametrize(
    ("steps", "said"), [(0, "0 is less than 1; give 1 or more"), (2.5, "2.5 is not a whole number"), (True, "True is")]
)
def test_a_number_of_steps_that_is_none_is_refused(steps: Any, said: str) -> None:
    with pytest.raises(SamplerError, match=f"DifferentiableSampler.num_inference_steps: {said}"):
        DifferentiableSampler(tiny_pipe(), num_inference_steps=steps, **embeddings())


@pytest.mark.parametrize("prompts", [(), [], "cat"])
def test_prompts_that_are_none_are_refused(sampler: DifferentiableSampler, prompts: Any) -> None:
    with pytest.raises(SamplerError, match="give a list of one or more strings"):
        sampler(prompts, plan=PLAIN)
