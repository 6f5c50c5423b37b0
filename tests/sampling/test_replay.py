"""Steps taken again: predictions, Gaussians and images of recorded latents equal the run's, whatever the call draws."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, StepPlan
from draft_core.errors import SamplerError
from draft_core.sampling import randomness
from draft_core.sampling.rollout import StepOutput
from draft_core.sampling.seams import replaced, step_call
from tests.support.drawing import DRAWING, Drawing
from tests.support.drive import PROMPTS, gradient, newcomer_sampler, parameters, sampler_of, seeded
from tests.support.families import FAMILIES, Family
from tests.support.newcomer import newcomer
from tests.support.tiny import embeddings, make_scheduler, tiny_pipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

STOCHASTIC: list[tuple[Any, dict[str, Any]]] = [
    (diffusers.DDPMScheduler, {}),
    (diffusers.EulerAncestralDiscreteScheduler, {}),
    (diffusers.LCMScheduler, {}),
    (diffusers.DDIMScheduler, {"eta": 1.0}),
]


def kept(steps: int, grad_steps: frozenset[int] = frozenset()) -> StepPlan:
    return StepPlan(steps, grad_steps, keep_trajectory=True)


def replayable(family: Family) -> bool:
    return "two streams" not in family.name


@pytest.mark.parametrize("family", [one for one in FAMILIES if replayable(one)], ids=lambda one: one.name)
def test_the_prediction_at_every_step_is_the_recorded_one(family: Family) -> None:
    sampler = sampler_of(family, family.pipe())
    with torch.no_grad():
        rollout = sampler(family.prompts, plan=kept(sampler.steps), generator=seeded())
    assert [record.number for record in rollout.trajectory] == list(range(sampler.steps))
    assert rollout.latents is not None
    assert torch.equal(rollout.trajectory[-1].after, rollout.latents)
    for record in rollout.trajectory:
        seen: list[StepOutput] = []
        if record.number == 0 and family.name.startswith("FLUX.3"):  # its blocks make their latents by themselves
            with pytest.raises(SamplerError, match="cannot be started from given latents"):
                sampler.replay(rollout, {0: record.before}, seen.append)
            continue
        with torch.no_grad():
            sampler.replay(rollout, {record.number: record.before}, seen.append)
        assert [one.number for one in seen] == [record.number]
        assert torch.equal(seen[0].prediction, record.prediction), record.number


@pytest.mark.parametrize(("scheduler", "call"), STOCHASTIC, ids=lambda value: getattr(value, "__name__", ""))
def test_mean_and_deviation_explain_the_latents_that_were_drawn(scheduler: Any, call: dict[str, Any]) -> None:
    """What is left of the latents after mean and deviation is the very noise that the scheduler drew."""
    pipe = tiny_pipe(make_scheduler(scheduler))
    sampler = DifferentiableSampler(pipe, num_inference_steps=5, guidance_scale=4.0, **call, **embeddings())
    module = type(pipe.scheduler).__module__
    drawn: list[torch.Tensor] = []
    noise = diffusers.utils.torch_utils.randn_tensor

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(noise(*args, **kwargs))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(f"{module}.randn_tensor", watched)
        rollout = sampler(plan=kept(sampler.steps), generator=seeded())
    explained = 0
    for record in rollout.trajectory:

        def explain(output: StepOutput, record: Any = record) -> None:
            nonlocal explained
            gaussian = output.gaussian()
            if not gaussian.std.any():
                torch.testing.assert_close(record.after, gaussian.mean, rtol=0, atol=1e-6)
                return
            left = [float((record.after - gaussian.mean - gaussian.std * noise).abs().max()) for noise in drawn]
            assert min(left) <= 1e-5 * float(record.before.abs().max())
            explained += 1

        with torch.no_grad():
            sampler.replay(rollout, {record.number: record.before}, explain)
    assert explained >= sampler.steps - 1


def test_several_steps_are_visited_in_one_call_and_backpropagated_at_once() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=5, guidance_scale=4.0, **embeddings())
    rollout = sampler(plan=kept(sampler.steps), generator=seeded())
    seen, calls = [], []

    def visit(output: StepOutput) -> None:
        output.prediction.square().mean().backward()
        seen.append(output.number)

    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    sampler.replay(rollout, {step: rollout.trajectory[step].before for step in (1, 3)}, visit)
    hook.remove()
    assert (seen, calls) == ([1, 3], [False, True, False, True]), "the steps before are empty, those after are left out"
    assert pipe.unet.conv_in.weight.grad is not None
    assert pipe.unet.conv_in.weight.grad.any()


def test_the_posterior_mean_of_the_last_ddim_step_is_its_x0() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=5, guidance_scale=4.0, **embeddings())
    rollout = sampler(plan=kept(sampler.steps), generator=seeded())
    last = rollout.trajectory[-1]
    means: list[torch.Tensor] = []
    sampler.replay(rollout, {last.number: last.before}, lambda output: means.append(output.posterior_mean().detach()))
    pipe.scheduler.set_timesteps(5)
    alpha = pipe.scheduler.alphas_cumprod[int(last.timestep)]
    expected = (last.before - (1 - alpha).sqrt() * last.prediction) / alpha.sqrt()
    torch.testing.assert_close(means[0], expected, rtol=1e-5, atol=1e-5)


# Calls that draw noise of their own


@pytest.mark.parametrize("drawing", DRAWING, ids=lambda one: one.name)
def test_the_last_step_of_a_call_that_draws_is_the_sample_in_every_bit(drawing: Drawing) -> None:
    pipe = drawing.pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=drawing.steps, **drawing.call())
    with torch.no_grad():
        rollout = sampler(drawing.prompts, plan=kept(sampler.steps), generator=seeded())
        last = rollout.trajectory[-1]
        again = sampler.replay(rollout, {last.number: last.before}, decode=True)
    assert again is not None
    assert torch.equal(again, rollout.samples)


def test_a_replay_with_other_noise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the generator as it stands after the call."""
    drawing = next(one for one in DRAWING if one.conditions)
    pipe = drawing.pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=drawing.steps, **drawing.call())
    rollout = sampler(drawing.prompts, plan=kept(sampler.steps), generator=seeded())
    last = rollout.trajectory[-1]
    monkeypatch.setattr(
        "draft_core.sampling.replay.repeated",
        lambda generator, state, *more: randomness.repeated(generator, randomness.state_of(generator), *more),
    )
    with torch.no_grad():
        again = sampler.replay(rollout, {last.number: last.before}, decode=True)
    assert again is not None
    assert not torch.equal(again, rollout.samples)


@pytest.mark.parametrize(
    "generator", [seeded, lambda: [seeded(1), seeded(2)], lambda: None], ids=["one", "list", "global"]
)
def test_a_replay_leaves_the_source_of_noise_where_it_is(generator: Any) -> None:
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=3, guidance_scale=4.0, **embeddings())
    source = generator()
    with torch.random.fork_rng():
        rollout = sampler(plan=kept(3), generator=source)
        before = randomness.state_of(source)
        sampler.replay(rollout, {2: rollout.trajectory[2].before})
        after = randomness.state_of(source)
    assert before is not None
    assert after is not None
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(before, after, strict=True))


# What is refused


def test_a_step_that_was_not_kept_is_refused() -> None:
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=4, guidance_scale=4.0, **embeddings())
    rollout = sampler(plan=DraftK(k=1).plan(4, None), generator=seeded())  # type: ignore[arg-type]
    latents = rollout.latents
    assert latents is not None
    for given, decode, message in (
        ({1: latents}, False, "the run did not keep step 1, only [3]; sample with StepPlan(..., keep_trajectory=True)"),
        ({3: latents[:, :2]}, False, "the latents of step 3 are"),
        ({}, False, "no step is given"),
    ):
        with pytest.raises(SamplerError, match=re.escape(message)):
            sampler.replay(rollout, given, decode=decode)
    whole = sampler(plan=kept(4), generator=seeded())
    with pytest.raises(SamplerError, match="images need the last step, 3"):
        sampler.replay(whole, {1: latents}, decode=True)
    early = sampler(plan=StepPlan(4, frozenset({2}), stop_at=2), generator=seeded())
    with pytest.raises(SamplerError, match="it was left early"):
        sampler.replay(early, {1: latents})


def test_a_pipeline_of_its_own_is_replayed_like_the_others() -> None:
    sampler = newcomer_sampler(newcomer(make_scheduler(diffusers.DDIMScheduler)))
    rollout = sampler(PROMPTS, plan=kept(sampler.steps), generator=seeded())
    for record in rollout.trajectory:
        seen: list[StepOutput] = []
        sampler.replay(rollout, {record.number: record.before}, seen.append)
        assert torch.equal(seen[0].prediction, record.prediction)
    last = rollout.trajectory[-1]
    images = sampler.replay(rollout, {last.number: last.before}, decode=True)
    assert images is not None
    assert gradient(images, parameters(sampler.pipe)).norm() > 0


def test_what_watches_the_scheduler_sees_the_given_latents() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=4, guidance_scale=4.0, **embeddings())
    rollout = sampler(plan=kept(4), generator=seeded())
    given = torch.randn(rollout.trajectory[2].before.shape, generator=seeded(5))
    seen: list[torch.Tensor] = []

    def watch(step: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(step_call(step, args, kwargs).sample)
        return step(*args, **kwargs)

    with replaced(pipe.scheduler, "step", watch):
        sampler.replay(rollout, {2: given}, lambda output: seen.append(output.latents))
    assert any(torch.equal(one, given) for one in seen)
