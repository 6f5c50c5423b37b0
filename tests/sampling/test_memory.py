"""Memory is bounded, and counted in every byte: what grows with what, and what the options for less memory do."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, Draft, DraftK, DraftLV, Objective, Trainer
from draft_core.adapters.lora import add_lora
from draft_core.cost.peak_memory import MemoryMeter, peak_memory
from draft_core.errors import DraftError
from draft_core.learners.direct import DirectLearner
from draft_core.training.settings import TrainSettings
from tests.support.tiny import Redness, RednessConfig, byte_tokenizer, embeddings, tiny_pipe

BATCH = 2
LATENTS = BATCH * 4 * 8 * 8 * 4  # bytes: channels, height and width of the tiny model's, float32


def sampler_of(steps: int, batch: int = BATCH, **options: Any) -> DifferentiableSampler:
    return DifferentiableSampler(
        tiny_pipe(), num_inference_steps=steps, guidance_scale=4.0, **embeddings(batch=batch), **options
    )


def peak(method: Any, steps: int, batch: int = BATCH, **options: Any) -> int:
    """Bytes of one rollout with its backward pass, each pass by itself as in the trainer."""
    sampler = sampler_of(steps, batch, **options)
    plan, renoising = method.plan(sampler.steps, Random(0)), method.renoising()

    def work() -> None:
        for rollout in sampler.passes(plan=plan, renoising=renoising, generator=torch.Generator().manual_seed(1)):
            rollout.images.square().sum().backward()
            del rollout  # or its graph would live until the next one is made

    return peak_memory(work)


def gradient(method: Any, steps: int = 4, **options: Any) -> torch.Tensor:
    sampler = sampler_of(steps, **options)
    plan, renoising = method.plan(sampler.steps, Random(0)), method.renoising()
    rollout = sampler(plan=plan, renoising=renoising, generator=torch.Generator().manual_seed(1))
    ramp = torch.linspace(-1, 1, rollout.images[0].numel()).view_as(rollout.images[0])
    (rollout.images.square() * ramp).sum().backward()
    return torch.cat([p.grad.flatten() for p in sampler.pipe.unet.parameters() if p.grad is not None])


# The measure itself


def test_the_meter_counts_storages_once_and_as_long_as_they_live() -> None:
    before = torch.zeros(1000)
    with MemoryMeter() as meter:
        view = before.view(10, 100)  # of what was there before: nothing
        doubled = view * 2  # 4000 bytes
        row = doubled[0]
        assert (meter.live, meter.peak) == (4000, 4000)
        tripled = doubled + row
        assert (meter.live, meter.peak) == (8000, 8000)
        del doubled, tripled
        assert meter.live == 4000, "a row keeps the whole storage alive"
        del row
        assert (meter.live, meter.peak) == (0, 8000)


def test_the_meter_sees_what_autograd_keeps() -> None:
    weight = torch.zeros(100, 100, requires_grad=True)
    rows = torch.zeros(50, 100)

    def work() -> None:
        hidden = (rows @ weight).exp()  # the product, 20 kB, then its exponential, which the graph keeps
        hidden.square().sum().backward()

    # at the end: the exponential, gradients of square and exponential, then the weight's, 40 kB
    assert 80_000 <= peak_memory(work) <= 110_000
    assert weight.grad is not None


def test_the_meter_agrees_with_the_allocator() -> None:
    sampler = sampler_of(3)
    plan = Draft().plan(3, Random(0))

    def work() -> None:
        sampler(plan=plan, generator=torch.Generator().manual_seed(1)).images.square().sum().backward()

    work()
    for parameter in sampler.pipe.unet.parameters():
        parameter.grad = None
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    live = highest = 0
    for event in sorted(profile.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    for parameter in sampler.pipe.unet.parameters():
        parameter.grad = None
    # the allocator also sees scratch space inside kernels, a few per cent of so small a model
    assert peak_memory(work) == pytest.approx(highest, rel=0.05)


def test_a_device_without_a_measure_is_refused() -> None:
    with pytest.raises(DraftError, match="memory cannot be measured on mps"):
        peak_memory(lambda: None, "mps")


def test_the_meta_device_is_counted_like_the_cpu() -> None:
    def work(device: str) -> int:
        weight = torch.zeros(100, 100, requires_grad=True, device=device)
        return peak_memory(lambda: (torch.zeros(50, 100, device=device) @ weight).exp().sum().backward(), device)

    assert work("meta") == work("cpu") > 60_000


# What grows with what


@pytest.mark.parametrize("method", [DraftK(k=1), DraftLV(resamples=2)], ids=lambda e: e.kind)
def test_memory_does_not_grow_with_the_steps(method: Any) -> None:
    assert peak(method, 100) == pytest.approx(peak(method, 10), rel=0.03)


def test_a_checkpointed_graded_step_stores_its_latents_and_nothing_else() -> None:
    short, long = (peak(Draft(), steps, gradient_checkpointing=True) for steps in (5, 15))
    # the denoiser's input, conditional and unconditional, and a handful of numbers of one element each:
    # the step's noise levels, its timestep
    assert 2 * LATENTS <= (long - short) / 10 <= 2 * LATENTS + 128


def test_without_checkpointing_a_graded_step_stores_more_than_ten_times_that() -> None:
    short, long = (peak(Draft(), steps) for steps in (3, 5))
    assert (long - short) / 2 > 20 * LATENTS


def test_memory_does_not_grow_with_the_renoisings(tmp_path: Any) -> None:
    tokenizer = byte_tokenizer(tmp_path)

    def peak_of_an_update(resamples: int) -> int:
        pipe = tiny_pipe(tokenizer=tokenizer)
        add_lora(pipe, rank=2)
        trainer = Trainer(
            DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=3.0),
            Objective({"redness": Redness(RednessConfig())}),
            DirectLearner(DraftLV(resamples=resamples)),
            ["a", "b"],
            TrainSettings(batch_size=2),
            device="cpu",
        )
        trainer.train_step()
        return peak_memory(trainer.train_step)

    once, often = peak_of_an_update(1), peak_of_an_update(8)
    # the re-noised latents are drawn beforehand, so that the order of random draws is that of one batch
    assert often - once <= 7 * LATENTS + 0.01 * once


# Options for less memory


@pytest.mark.parametrize("method", [DraftK(k=2), DraftLV(resamples=1)], ids=lambda e: e.kind)
def test_a_recomputed_decode_has_the_same_gradient_in_every_bit(method: Any) -> None:
    assert torch.equal(gradient(method, decode="checkpointed"), gradient(method))


@pytest.mark.parametrize("method", [DraftK(k=2), DraftLV(resamples=1)], ids=lambda e: e.kind)
def test_a_sliced_decode_has_the_same_gradient(method: Any) -> None:
    whole = gradient(method)
    torch.testing.assert_close(
        gradient(method, decode="sliced"), whole, rtol=1e-4, atol=float(whole.abs().max()) * 1e-5
    )


@pytest.mark.parametrize("method", [DraftK(k=2), Draft(), DraftLV(resamples=1)], ids=lambda e: e.kind)
def test_gradient_checkpointing_has_the_same_gradient_in_every_bit(method: Any) -> None:
    assert torch.equal(gradient(method, gradient_checkpointing=True), gradient(method))


def test_each_option_lowers_the_peak() -> None:
    whole = peak(DraftK(k=1), 2, batch=6)
    checkpointed = peak(DraftK(k=1), 2, batch=6, decode="checkpointed")
    assert checkpointed < whole, "decoder and reward do not meet"
    assert peak(DraftK(k=1), 2, batch=6, decode="sliced") < 0.9 * checkpointed
    assert peak(DraftK(k=1), 2, batch=6, gradient_checkpointing=True) < 0.9 * whole
