"""A short prefix: the x0 of a few large steps, re-noised, against the construction by hand, and what is refused."""

from __future__ import annotations

from random import Random
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, Objective, ShortPrefix, StepPlan, Trainer
from draft_core.adapters.lora import add_lora
from draft_core.errors import RecipeError, SamplerError
from draft_core.learners.direct import DirectLearner
from draft_core.plan import Renoising
from draft_core.sampling.chain import DryRun, PlannedRun, ShortRun
from draft_core.sampling.seams import replaced
from draft_core.training.settings import TrainSettings
from tests.support.drive import PROMPTS, gradient, newcomer_sampler, parameters, sampler_of, seeded
from tests.support.families import FAMILIES, Family
from tests.support.newcomer import newcomer
from tests.support.schedules import SCHEDULES, Schedule
from tests.support.tiny import Redness, RednessConfig, byte_tokenizer, embeddings, make_scheduler, tiny_pipe, with_lora

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS, PREFIX, GUIDANCE = 6, 2, 3.0
RNG = Random(0)
ONCE = Renoising(copies=1)
ADVICE = "use a scheduler without memory (DDIM, Euler), or a method that runs the whole chain."
# Schedulers whose last step builds on earlier predictions.
REMEMBERING = {
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EDMDPMSolverMultistepScheduler", "LMSDiscreteScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
}


def plan_of(steps: int, prefix: int = PREFIX, updates: int = 1) -> StepPlan:
    return ShortPrefix(prefix_steps=prefix, updates=updates).plan(steps, RNG)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_it_is_the_last_step_of_the_whole_schedule_from_the_x0_of_a_short_one(scheduler: str) -> None:
    """By hand: diffusers' own call of a few steps for its latents, noise, one guided step, the decoder."""
    pipe = tiny_pipe(make_scheduler(getattr(diffusers, scheduler)), torch.float64)
    words = embeddings(torch.float64)
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **words)
    found = sampler(plan=plan_of(STEPS), renoising=ONCE, generator=seeded()).images

    generator = seeded()
    call = {"guidance_scale": GUIDANCE, "generator": generator, **words}
    x0 = pipe(num_inference_steps=PREFIX, output_type="latent", **call).images
    pipe.scheduler.set_timesteps(STEPS)
    last = pipe.scheduler.timesteps[-1]
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    noisy = pipe.scheduler.add_noise(x0, noise, last[None])
    context = torch.cat([words["negative_prompt_embeds"], words["prompt_embeds"]])
    scaled = pipe.scheduler.scale_model_input(torch.cat([noisy, noisy]), last)
    without, with_words = pipe.unet(scaled, last, encoder_hidden_states=context)[0].chunk(2)
    x = pipe.scheduler.step(without + GUIDANCE * (with_words - without), last, noisy).prev_sample
    expected = (pipe.vae.decode(x / pipe.vae.config.scaling_factor)[0] / 2 + 0.5).clamp(0, 1)

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # sigma schedulers step in float32
    weights = parameters(pipe)
    one, other = gradient(found, weights), gradient(expected, weights)
    assert (one - other).norm() <= 1e-5 * other.norm()


def refusal(sampler: DifferentiableSampler, prompts: Any, plan: StepPlan) -> str:
    """The sentence with which it is refused; empty where it is not."""
    try:
        sampler(prompts, plan=plan, renoising=ONCE, generator=seeded())
    except SamplerError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_takes_a_short_prefix_or_says_why_not(family: Family) -> None:
    if family.missing:
        pytest.skip(f"no {family.missing}")
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    if sampler.steps == 1:
        with pytest.raises(RecipeError, match="prefix_steps = 1 is larger than the number of sampler steps before"):
            plan_of(1, prefix=1)
        return
    plan = plan_of(sampler.steps, prefix=min(2, sampler.steps - 1))
    if sentence := refusal(sampler, family.prompts, plan):
        assert sentence.endswith(ADVICE)
        assert type(pipe.scheduler).__name__ in REMEMBERING
        return
    rollout = sampler(family.prompts, plan=plan, renoising=ONCE, generator=seeded())
    assert rollout.images.isfinite().all()
    assert rollout.sample_count == 0
    assert gradient(rollout.images, parameters(pipe)).norm() > 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_the_scheduler_stands_before_its_last_step_as_after_a_whole_chain(schedule: Schedule) -> None:
    if schedule.missing or schedule.level is None or schedule.class_name == "PNDMScheduler":
        pytest.skip(schedule.missing or "it cannot add noise, or take so few steps")
    sampler = newcomer_sampler(newcomer(schedule.make()))
    plan = plan_of(sampler.steps)
    sentence = refusal(sampler, PROMPTS, plan)
    assert sentence.endswith(ADVICE) == (schedule.class_name in REMEMBERING)
    if sentence:
        return
    start = ShortRun(sampler, PROMPTS, plan, seeded()).origin().last
    run = PlannedRun(sampler, PROMPTS, DraftK(k=1).plan(sampler.steps, RNG), seeded())
    run.sample()
    origin = run.origin()
    assert origin is not None
    assert torch.equal(torch.as_tensor(start.timestep), torch.as_tensor(origin.last.timestep))
    assert start.state is not None
    assert origin.last.state is not None
    (state,), (whole,) = start.state, origin.last.state
    assert state.keys() == whole.keys()
    for name, value in state.items():
        expected = whole[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, expected, equal_nan=True)
        elif isinstance(value, (int, float, bool, str, type(None))):
            assert value == expected, name


def test_it_calls_the_denoiser_as_often_as_it_says_and_decodes_nothing_in_vain() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **embeddings())
    assert sampler.steps == STEPS
    calls: list[bool] = []

    def watch(forward: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(*args, **kwargs)

    decoded: list[bool] = []
    with (
        replaced(pipe.unet, "forward", watch),
        replaced(pipe.vae, "decode", lambda f, *a, **k: decoded.append(True) or f(*a, **k)),
    ):
        rollout = sampler(plan=plan_of(STEPS, updates=3), renoising=Renoising(copies=3), generator=seeded())
    assert calls == [False] * PREFIX + [True] * 3
    assert len(decoded) == 3
    assert len(rollout.images) == 3 * 2
    assert not torch.equal(*rollout.images.chunk(3)[:2])


def test_the_trainer_takes_a_step_for_each_renoising(tmp_path: Any) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    add_lora(pipe, rank=2)
    trainer = Trainer(
        DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE),
        Objective({"redness": Redness(RednessConfig())}),
        DirectLearner(ShortPrefix(prefix_steps=PREFIX, updates=2)),
        ["a", "b", "c"],
        TrainSettings(steps=2, batch_size=2),
        device="cpu",
    )
    assert [report.optimizer_steps for report in trainer] == [2, 2]


def test_the_share_of_each_batch_of_renoisings_adds_up_to_one(tmp_path: Any) -> None:
    """Without a step after each: one gradient, the mean over all images, apart and together."""
    gradients = []
    for batched in (False, True):
        pipe = with_lora(tiny_pipe(tokenizer=byte_tokenizer(tmp_path)))
        plan = StepPlan(STEPS, frozenset({STEPS - 1}), prefix=PREFIX)
        trainer = Trainer(
            DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE),
            Objective({"redness": Redness(RednessConfig())}),
            DirectLearner(Fixed(plan, Renoising(copies=2, batched=batched))),
            ["a", "b", "c"],
            TrainSettings(steps=1, batch_size=2, max_grad_norm=1e9),
            device="cpu",
        )
        spied(trainer, gradients)
        trainer.train_step()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


def spied(trainer: Trainer, gradients: list[torch.Tensor]) -> None:
    """Has the trainer note the gradient of each optimiser step."""
    step = trainer.optimizer.step

    def noting() -> None:
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.parameters]))
        step()

    trainer.optimizer.step = noting


class Fixed:
    def __init__(self, plan: StepPlan, renoising: Renoising) -> None:
        self.fixed = plan, renoising

    def plan(self, steps: int, rng: Random) -> StepPlan:
        return self.fixed[0]

    def renoising(self) -> Renoising:
        return self.fixed[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prefix": 6}, "a prefix of 6 steps is not shorter than a chain of 6; use fewer"),
        ({"prefix": 0}, "a prefix of 0 steps"),
        ({"grad_steps": frozenset({4, 5})}, "leads to the last step alone; give it as the one grad step"),
    ],
)
def test_an_impossible_plan_is_refused(changed: dict[str, Any], message: str) -> None:
    fields = {"steps": STEPS, "grad_steps": frozenset({STEPS - 1}), "prefix": PREFIX, **changed}
    with pytest.raises(SamplerError, match=message):
        StepPlan(**fields)


def test_a_prefix_as_long_as_the_chain_is_refused_by_its_field() -> None:
    with pytest.raises(RecipeError, match=r"method.prefix_steps: prefix_steps = 6 is larger .* before the last, 5"):
        ShortPrefix(prefix_steps=6).plan(6, RNG)


def test_a_schedule_that_is_given_whole_is_refused() -> None:
    pipe = tiny_pipe(make_scheduler(diffusers.EulerDiscreteScheduler))
    call = {"timesteps": [900, 600, 300, 100], **embeddings()}
    sampler = DifferentiableSampler(pipe, num_inference_steps=4, guidance_scale=GUIDANCE, **call)
    with pytest.raises(SamplerError, match="the call is given its timesteps, so its prefix cannot have a schedule"):
        sampler(plan=plan_of(sampler.steps), renoising=ONCE, generator=seeded())


def test_the_schedule_is_walked_without_a_network() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **embeddings())
    short = ShortRun(sampler, None, plan_of(sampler.steps), seeded())
    short.origin()
    with replaced(pipe.unet, "forward", lambda forward, *args, **kwargs: pytest.fail("a network was called")):
        whole = DryRun(sampler, None, short.blanks, noted={STEPS - 1})
        whole.replay_encoders(short.encoded)
        assert whole.run().steps == STEPS
    assert list(whole.starts) == [STEPS - 1]
