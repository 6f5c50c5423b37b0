"""The sampler against oracles: the pipeline's own call, naive autograd through it, and finite differences."""

from __future__ import annotations

import inspect
from random import Random
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from draft_core import DifferentiableSampler, Draft, DraftK, DraftLV, StepPlan
from draft_core.errors import SamplerError
from draft_core.plan import Renoising
from draft_core.sampling.seams import replaced
from tests.support.tiny import PROMPTS, byte_tokenizer, embeddings, make_scheduler, tiny_pipe

SCHEDULERS = [
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]
STEPS = 4
RNG = Random(0)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampler_of(pipe: Any, steps: int = STEPS, dtype: torch.dtype = torch.float32, **more: Any) -> DifferentiableSampler:
    return DifferentiableSampler(
        pipe, num_inference_steps=steps, **{"guidance_scale": 4.0, **embeddings(dtype), **more}
    )


def gradient(pipe: Any, images: torch.Tensor) -> torch.Tensor:
    """Of a non-linear function of the images, for all parameters of the denoiser, flat."""
    weights = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    grads = torch.autograd.grad((images.square() * weights).sum(), list(pipe.unet.parameters()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("method", [Draft(), DraftK(k=2), DraftLV(resamples=1)], ids=lambda e: e.kind)
def test_samples_are_those_of_the_plain_call_in_every_bit(scheduler: Any, method: Any) -> None:
    pipe = tiny_pipe(make_scheduler(scheduler))
    sampler = sampler_of(pipe)
    plain = pipe(
        num_inference_steps=STEPS, generator=seeded(), output_type="pt", guidance_scale=4.0, **embeddings()
    ).images
    rollout = sampler(plan=method.plan(sampler.steps, RNG), renoising=method.renoising(), generator=seeded())
    assert torch.equal(rollout.samples, plain)
    assert gradient(pipe, rollout.images).norm() > 0


@pytest.mark.parametrize(
    "method",
    [Draft(), DraftK(k=1), DraftK(k=3), DraftLV(resamples=0), DraftLV(resamples=2)],
    ids=lambda e: "-".join(map(str, e.model_dump().values())),
)
def test_exactly_the_planned_denoiser_calls_are_recorded(method: Any) -> None:
    pipe = tiny_pipe()
    sampler = sampler_of(pipe)
    plan = method.plan(sampler.steps, RNG)
    recorded: list[bool] = []
    inputs: list[torch.Tensor] = []

    def watch(module: Any, args: tuple[Any, ...], output: Any) -> None:
        recorded.append(output[0].requires_grad)
        inputs.append(args[0])

    pipe.unet.register_forward_hook(watch)
    sampler(plan=plan, renoising=method.renoising(), generator=seeded())
    rollout, blanks_and_last = recorded[:STEPS], recorded[STEPS:]
    assert rollout == [step in plan.grad_steps for step in range(STEPS)]
    # a re-noising calls the real denoiser once; its other calls return constants
    assert blanks_and_last == [*[False] * (STEPS - 1), True] * method.renoising().copies
    first = STEPS - len(plan.grad_steps)
    assert not inputs[first].requires_grad, "the gradient stops where the first grad step begins"


def test_k_equal_to_t_is_naive_autograd_through_the_unwrapped_call() -> None:
    pipe = tiny_pipe(dtype=torch.float64)
    naive = inspect.unwrap(type(pipe).__call__)(
        pipe,
        num_inference_steps=STEPS,
        generator=seeded(),
        output_type="pt",
        guidance_scale=4.0,
        **embeddings(torch.float64),
    ).images
    sampler = sampler_of(pipe, dtype=torch.float64)
    rollout = sampler(plan=DraftK(k=STEPS).plan(STEPS, RNG), generator=seeded())
    assert torch.equal(rollout.images, naive)
    torch.testing.assert_close(gradient(pipe, rollout.images), gradient(pipe, naive), rtol=1e-10, atol=1e-14)


def test_k_equal_to_t_agrees_with_finite_differences() -> None:
    pipe = tiny_pipe(dtype=torch.float64)
    # no pixel may be clamped on its way, or the finite difference would see the edge
    pipe.vae.decoder.conv_out.weight.data *= 0.1
    sampler = sampler_of(pipe, dtype=torch.float64)
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight
    direction = torch.randn(weight.shape, generator=seeded(5), dtype=torch.float64)

    def value(shift: float) -> torch.Tensor:
        original = weight.data.clone()
        weight.data += shift * direction
        images = sampler(plan=Draft().plan(STEPS, RNG), generator=seeded()).images
        result = (images.square() * torch.linspace(-1, 1, images.numel()).view_as(images)).sum()
        weight.data = original
        return result

    (grad,) = torch.autograd.grad(value(0.0), weight)
    step = 1e-5
    difference = (value(step) - value(-step)) / (2 * step)
    torch.testing.assert_close((grad * direction).sum(), difference.detach(), rtol=1e-6, atol=1e-12)


def test_draft_k_of_all_steps_is_draft() -> None:
    pipe = tiny_pipe()
    sampler = sampler_of(pipe)
    one = sampler(plan=Draft().plan(STEPS, RNG), generator=seeded())
    other = sampler(plan=DraftK(k=STEPS).plan(STEPS, RNG), generator=seeded())
    assert torch.equal(one.images, other.images)
    assert torch.equal(gradient(pipe, one.images), gradient(pipe, other.images))


def test_lv_without_resamples_is_draft_1() -> None:
    pipe = tiny_pipe()
    sampler = sampler_of(pipe)
    one = sampler(plan=DraftLV(resamples=0).plan(STEPS, RNG), renoising=Renoising(copies=0), generator=seeded())
    other = sampler(plan=DraftK(k=1).plan(STEPS, RNG), generator=seeded())
    assert torch.equal(one.images, other.images)
    assert torch.equal(gradient(pipe, one.images), gradient(pipe, other.images))


def test_sparse_plans_record_the_chain_between_graded_steps() -> None:
    """The denoiser of a step without gradient is constant; its step's own update still carries the gradient on."""
    pipe = tiny_pipe(dtype=torch.float64)
    sampler = sampler_of(pipe, dtype=torch.float64)
    sparse = sampler(plan=StepPlan(STEPS, frozenset({1, 3})), generator=seeded())
    last = sampler(plan=StepPlan(STEPS, frozenset({3})), generator=seeded())
    assert torch.equal(sparse.images, last.images)
    assert not torch.allclose(gradient(pipe, sparse.images), gradient(pipe, last.images))


@pytest.mark.parametrize("steps", [STEPS, 1])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler], ids=lambda cls: cls.__name__)
def test_lv_renoises_a_detached_x0_at_the_level_of_the_last_step(scheduler: Any, steps: int) -> None:
    """Against the closed form x_1 = alpha_1 x0 + sigma_1 eps, with eps drawn as the generator gives it."""
    pipe = tiny_pipe(make_scheduler(scheduler, timestep_spacing="trailing"))
    sampler = sampler_of(pipe, steps=steps)
    assert sampler.steps == steps
    stepped: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watch(step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = step(model_output, timestep, sample, *args, **kwargs)
        stepped.append((sample, output[0]))
        return output

    generator = seeded()
    with replaced(pipe.scheduler, "step", watch):
        rollout = sampler(
            plan=DraftLV(resamples=1).plan(steps, RNG), renoising=Renoising(copies=1), generator=generator
        )

    *_, (_, x0), (noisy, _) = stepped
    assert len(stepped) == steps + 1, "one real step in the rollout's end, one in the re-noising"
    assert not noisy.requires_grad

    replay = seeded()
    torch.randn(x0.shape, generator=replay)  # the initial noise
    eps = torch.randn(x0.shape, generator=replay)
    last = pipe.scheduler.timesteps[-1]
    alpha_bar = pipe.scheduler.alphas_cumprod[last.long()]
    if scheduler is DDIMScheduler:
        expected = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    else:  # sigma schedulers hold x / alpha
        expected = x0 + ((1 - alpha_bar) / alpha_bar).sqrt() * eps
    torch.testing.assert_close(noisy, expected.detach(), rtol=1e-4, atol=1e-5)
    assert rollout.images.shape[0] == 2 * rollout.sample_count
    assert rollout.prompts == rollout.prompts[: rollout.sample_count] * 2


def test_lv_images_are_one_plain_step_from_the_noisy_latents() -> None:
    """By hand: denoiser with guidance, scheduler step, decode."""
    pipe = tiny_pipe()
    sampler = sampler_of(pipe)
    seen: list[torch.Tensor] = []

    def watch(step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(sample)
        return step(model_output, timestep, sample, *args, **kwargs)

    with replaced(pipe.scheduler, "step", watch):
        rollout = sampler(plan=DraftLV(resamples=1).plan(STEPS, RNG), renoising=Renoising(copies=1), generator=seeded())
    noisy, timestep, embeds = seen[-1], pipe.scheduler.timesteps[-1], embeddings()
    with torch.no_grad():
        both = pipe.unet(
            torch.cat([noisy] * 2),
            timestep,
            encoder_hidden_states=torch.cat([embeds["negative_prompt_embeds"], embeds["prompt_embeds"]]),
        ).sample
        uncond, cond = both.chunk(2)
        x0 = pipe.scheduler.step(uncond + 4.0 * (cond - uncond), timestep, noisy).prev_sample
        by_hand = (pipe.vae.decode(x0 / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(rollout.images[rollout.sample_count :], by_hand, rtol=1e-5, atol=1e-6)


def test_each_resample_draws_fresh_noise_and_the_generator_fixes_all() -> None:
    sampler = sampler_of(tiny_pipe())
    plan = DraftLV(resamples=2).plan(STEPS, RNG)
    one, other = (sampler(plan=plan, renoising=Renoising(copies=2), generator=seeded()).images for _ in range(2))
    assert torch.equal(one, other)
    _, first, second = one.chunk(3)
    assert not torch.equal(first, second)


def test_gradient_reaches_dark_and_bright_pixels_alike() -> None:
    """Seen in ports: clamping to [0, 1] before rescaling from [-1, 1] silences the dark half."""
    pipe = tiny_pipe()
    pipe.vae.decoder.conv_out.weight.data *= 3
    rollout = sampler_of(pipe)(plan=DraftK(k=1).plan(STEPS, RNG), generator=seeded())
    images = rollout.images.detach()
    decoded = rollout.images.grad_fn
    assert decoded is not None
    pixels = [((images < 0.4) & (images > 0.05)).nonzero(), ((images > 0.6) & (images < 0.95)).nonzero()]
    norms = []
    for places in pixels:
        assert len(places) > 10
        place = tuple(places[len(places) // 2])
        grads = torch.autograd.grad(
            rollout.images[place], list(pipe.unet.parameters()), retain_graph=True, allow_unused=True
        )
        norms.append(torch.cat([grad.flatten() for grad in grads if grad is not None]).norm().item())
    assert min(norms) > 0.1 * max(norms)


def test_guidance_is_in_the_gradient() -> None:
    """Seen in neighbours: guidance dropped, or forbidden, under backpropagation."""
    pipe = tiny_pipe()
    plan = DraftK(k=1).plan(STEPS, RNG)
    grads = [
        gradient(pipe, sampler_of(pipe, guidance_scale=scale)(plan=plan, generator=seeded()).images)
        for scale in (1.0, 8.0)
    ]
    assert not torch.allclose(*grads, rtol=0.1)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    pipe = tiny_pipe(dtype=torch.float64)
    plan = DraftLV(resamples=1).plan(STEPS, RNG)
    grads = []
    for on in (False, True):
        sampler = sampler_of(pipe, dtype=torch.float64, gradient_checkpointing=on)
        images = sampler(plan=plan, renoising=Renoising(copies=1), generator=seeded()).images
        grads.append(gradient(pipe, images))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)
    saved = []
    for on in (False, True):
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            sampler_of(pipe, dtype=torch.float64, gradient_checkpointing=on)(plan=Draft().plan(STEPS, RNG))
        saved.append(kept)
    assert saved[1] < 0.5 * saved[0]


def test_nothing_is_recorded_under_no_grad() -> None:
    sampler = sampler_of(tiny_pipe())
    with torch.no_grad():
        rollout = sampler(plan=DraftLV(resamples=1).plan(STEPS, RNG), renoising=Renoising(copies=1), generator=seeded())
    assert not rollout.images.requires_grad


def test_pipeline_and_grad_mode_are_as_before_also_after_an_error() -> None:
    pipe = tiny_pipe()
    sampler = sampler_of(pipe)

    def state() -> list[Any]:
        owners = (pipe.scheduler, pipe.unet, pipe)
        names = ("step", "forward", "encode_prompt", "prepare_latents")
        return [name in vars(owner) for owner in owners for name in names] + [torch.is_grad_enabled()]

    before = state()
    sampler(plan=Draft().plan(STEPS, RNG))
    assert state() == before

    def fail(*args: Any) -> None:
        raise RuntimeError("denoiser broke")

    handle = pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="denoiser broke"), torch.no_grad():
        sampler(plan=Draft().plan(STEPS, RNG))
    handle.remove()
    assert state() == before


def test_the_scheduler_keeps_no_graph_alive() -> None:
    pipe = tiny_pipe(make_scheduler(DPMSolverMultistepScheduler))
    sampler = sampler_of(pipe)
    sampler(plan=Draft().plan(STEPS, RNG))
    kept = [tensor for tensor in pipe.scheduler.model_outputs if tensor is not None]
    assert kept
    assert not any(tensor.requires_grad for tensor in kept)


def test_replacing_keeps_the_signature_and_an_earlier_replacement() -> None:
    pipe = tiny_pipe()
    own = pipe.unet.forward  # as accelerate's hooks leave one
    pipe.unet.forward = own
    with replaced(pipe.unet, "forward", lambda forward, *args, **kwargs: forward(*args, **kwargs)):
        assert inspect.signature(pipe.unet.forward) == inspect.signature(own)
    assert vars(pipe.unet)["forward"] is own


def test_prompts_are_encoded_once_and_named_beside_every_image(tmp_path: Any) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, num_images_per_prompt=2, guidance_scale=3.0)
    assert sampler.steps == 2
    calls = []

    def watch(forward: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(*args, **kwargs)

    with replaced(pipe.text_encoder, "forward", watch):
        rollout = sampler(
            PROMPTS, plan=DraftLV(resamples=2).plan(2, RNG), renoising=Renoising(copies=2), generator=seeded()
        )
    assert rollout.images.shape == (12, 3, 16, 16)
    assert rollout.sample_count == 4
    assert rollout.prompts == ("a cat", "a cat", "a red dog", "a red dog") * 3
    assert calls == [False, False], "prompt and empty prompt, once each, without gradient"
    plain = pipe(
        PROMPTS,
        num_inference_steps=2,
        num_images_per_prompt=2,
        guidance_scale=3.0,
        generator=seeded(),
        output_type="pt",
    )
    assert torch.equal(rollout.samples, plain.images)


def test_one_generator_for_each_image() -> None:
    sampler = sampler_of(tiny_pipe())
    plan = DraftLV(resamples=1).plan(STEPS, RNG)
    once = Renoising(copies=1)
    one, again = (sampler(plan=plan, renoising=once, generator=[seeded(1), seeded(2)]) for _ in range(2))
    assert torch.equal(one.images, again.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"guidence_scale": 2.0},
            "StableDiffusionPipeline: its call takes no 'guidence_scale'; did you mean 'guidance_scale'?",
        ),
        ({"output_type": "pil"}, "'output_type' is set by the sampler itself"),
    ],
)
def test_a_wrong_keyword_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplerError) as caught:
        DifferentiableSampler(tiny_pipe(), num_inference_steps=2, **arguments)
    assert message in str(caught.value)


def test_what_cuts_the_gradient_is_refused_by_name() -> None:
    pipe = tiny_pipe()
    pipe.safety_checker = torch.nn.Identity()
    with pytest.raises(
        SamplerError, match=r"safety_checker of StableDiffusionPipeline .* set `pipe.safety_checker = None`"
    ):
        DifferentiableSampler(pipe, num_inference_steps=2)


def test_a_decode_without_gradient_is_noticed() -> None:
    """Seen in a neighbour: the decode under no_grad, so that nothing trains and nothing says so."""
    pipe = tiny_pipe()
    pipe.vae.decode = torch.no_grad()(pipe.vae.decode)
    with pytest.raises(SamplerError, match="its images carry no gradient"):
        sampler_of(pipe)(plan=Draft().plan(STEPS, RNG))


@pytest.mark.parametrize("method", [Draft(), DraftLV(resamples=1)], ids=["chain", "replay"])
def test_latents_that_are_cut_before_a_trained_decoder_are_noticed(method: Any) -> None:
    """The images then carry the decoder's gradient, and the denoiser gets none."""
    pipe = tiny_pipe()
    assert all(weight.requires_grad for weight in pipe.vae.parameters())
    images = sampler_of(pipe)(plan=method.plan(STEPS, RNG), renoising=method.renoising()).images
    assert torch.autograd.grad(images.sum(), pipe.unet.conv_in.weight)[0].norm() > 0
    decode = pipe.vae.decode
    pipe.vae.decode = lambda latents, *args, **kwargs: decode(latents.detach(), *args, **kwargs)
    sampler = sampler_of(pipe)
    with pytest.raises(SamplerError, match="its images carry no gradient of the denoiser"):
        sampler(plan=method.plan(STEPS, RNG), renoising=method.renoising())


def test_what_is_no_pipeline_is_refused_by_name() -> None:
    with pytest.raises(SamplerError, match="Linear is no diffusers pipeline"):
        DifferentiableSampler(torch.nn.Linear(1, 1), num_inference_steps=2)


def test_a_plan_of_another_length_is_refused_before_the_first_step() -> None:
    pipe = tiny_pipe()
    with pytest.raises(SamplerError, match="the plan is for 7 steps, StableDiffusionPipeline takes 4"):
        sampler_of(pipe)(plan=Draft().plan(7, RNG))


def test_a_bare_string_is_no_list_of_prompts() -> None:
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=2)
    with pytest.raises(SamplerError, match="give a list of one or more strings"):
        sampler("a cat", plan=Draft().plan(2, RNG))


@pytest.mark.parametrize("seed", [0, 7, [0, 1], []])
@pytest.mark.parametrize("of_every_call", [False, True])
def test_a_seed_is_no_generator(seed: Any, of_every_call: bool) -> None:
    """0 and an empty list would otherwise pass for no generator, and draw other noise every time."""
    of_sampler, of_call = ({"generator": seed}, {}) if of_every_call else ({}, {"generator": seed})
    call: Any = {**embeddings(), **of_sampler}
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=2, **call)
    with pytest.raises(SamplerError, match=r"generator: it is .*; give a torch\.Generator\(\)\.manual_seed\(SEED\)"):
        sampler(plan=Draft().plan(2, RNG), **of_call)


def test_a_rollout_is_one_line_at_a_prompt() -> None:
    """Not the thousands of its tensors and of the pipeline that it can be replayed with."""
    sampler = sampler_of(tiny_pipe())
    method = DraftLV(resamples=1)
    rollout = sampler(plan=method.plan(STEPS, RNG), renoising=method.renoising())
    shape = tuple(rollout.images.shape)
    copies = len(rollout.images) - rollout.sample_count
    counts = f"samples={rollout.sample_count}, renoised={copies}"
    assert repr(rollout) == f"Rollout({counts}, images={shape}, with gradient)"
    with torch.no_grad():
        bare = sampler(plan=Draft().plan(STEPS, RNG))
    assert repr(bare).endswith(f"renoised=0, images={tuple(bare.images.shape)}, without gradient)")
