"""Denoiser calls that are computed again part by part: samples in every bit, gradients, memory, refusals by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from draft_core import DifferentiableSampler, DraftK
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import DraftError, SamplerError
from draft_core.sampling.recomputing import slices
from draft_core.sampling.recomputing.slices import recomputed_in_slices
from draft_core.training.sharding import check_recomputed
from tests.support.drive import gradient, parameters, sampler_of, seeded
from tests.support.families import FAMILIES, Family
from tests.support.thorough import some
from tests.support.tiny import embeddings, tiny_pipe, with_lora

BY_NAME = {
    family.name: family for family in FAMILIES if family.name != "Z-Image"
}  # but for one that takes a list of latents
TRIED = some(BY_NAME, "SD with ControlNet", "FLUX.1", "Wan 2.1, video")
REFUSED = "cannot be computed again part by part; use gradient_checkpointing: true"


class Network(nn.Module):
    """A denoiser of few numbers, with a trained weight of as many rows as there are images."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.trained = nn.Linear(4, 4)
        self.mixes, self.calls = mixes, 0

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: Any, scale: Any) -> Any:
        self.calls += len(sample)
        hidden = self.frozen(sample).tanh() * timestep[:, None] + encoder_hidden_states
        if self.mixes:
            hidden = hidden - hidden.mean(0)
        return (self.trained(hidden * scale).exp(),)


def call(network: Network, slices: int | None = None, *, sliced: bool = True) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(4, width, generator=generator, requires_grad=True) for width in (3, 4))
    scale = torch.tensor(1.5, requires_grad=True)
    given = (x, torch.arange(4.0), text, scale)
    (found,) = recomputed_in_slices(slices, network, network, *given) if sliced else network(*given)
    slope = torch.linspace(-1, 1, found.numel()).view_as(found)
    wanted = [x, text, scale, *network.trained.parameters()]
    return found, torch.autograd.grad((found * slope).sum(), wanted, retain_graph=True)


@pytest.mark.parametrize("slices", [None, 1, 2, 3])
def test_output_and_every_gradient_are_those_of_the_whole_batch(slices: int | None) -> None:
    (output, gradients), (expected, whole) = call(Network(), slices), call(Network(), sliced=False)
    assert torch.equal(output, expected)
    for one, other in zip(gradients, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_each_image_is_computed_twice_and_again_for_another_backward_pass() -> None:
    network = Network()
    output, first = call(network, 2)
    assert network.calls == 8
    output.sum().backward()
    assert network.calls == 12
    assert network.trained.weight.grad is not None
    assert torch.isfinite(first[0]).all()


def test_a_batch_whose_images_are_mixed_is_refused() -> None:
    with pytest.raises(SamplerError, match=f"Network: it gives another output for a part of a batch, and {REFUSED}"):
        call(Network(mixes=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mixed_batch_is_refused_in_half_precision_too(dtype: torch.dtype) -> None:
    network = nn.Linear(8, 8).to(dtype)
    x = torch.randn(4, 8, generator=seeded()).to(dtype).requires_grad_()
    for mix in (lambda h: h - h.mean(0), lambda h: h.roll(1, 0) * 0.5 + h):
        (found,) = recomputed_in_slices(None, network, lambda x, mix=mix: (mix(network(x)),), x)
        with pytest.raises(SamplerError, match=f"gives another output for a part of a batch, and {REFUSED}"):
            found.sum().backward()


def test_an_argument_that_is_given_twice_has_its_whole_gradient() -> None:
    network = nn.Linear(3, 3)
    x = torch.randn(4, 3, generator=seeded(), requires_grad=True)

    def twice(x: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:  # a tensor alone, as some denoisers return
        return (network(x) * others[0]).tanh() * others[1]

    (found,) = torch.autograd.grad(recomputed_in_slices(2, network, twice, x, [x, x]).sum(), x)
    (expected,) = torch.autograd.grad(twice(x, [x, x]).sum(), x)
    torch.testing.assert_close(found, expected)


def test_what_is_trained_beside_arguments_and_weights_is_refused() -> None:
    network, beside = nn.Linear(3, 3), torch.zeros(3, requires_grad=True)
    found = recomputed_in_slices(2, network, lambda x: (network(x) + beside,), torch.randn(4, 3))
    with pytest.raises(SamplerError, match="is given a gradient by what is neither its argument nor its weight, and"):
        found[0].sum().backward()


def test_texts_of_frames_and_positions_go_with_their_rows() -> None:
    """AnimateDiff repeats the text for each frame; Kandinsky 5 gives lists of positions."""
    network = nn.Linear(3, 3)
    x = torch.randn(2, 5, 3, generator=seeded(), requires_grad=True)
    text = torch.randn(10, 3, generator=seeded()).requires_grad_()
    given = {"encoder_hidden_states": text, "visual_rope_pos": [torch.arange(2), torch.arange(5)]}

    def denoise(x: torch.Tensor, encoder_hidden_states: torch.Tensor, visual_rope_pos: list[torch.Tensor]) -> Any:
        assert [len(position) for position in visual_rope_pos] == [2, 5]
        return (network(x) * encoder_hidden_states.view_as(x),)

    (found,) = recomputed_in_slices(None, network, denoise, x, **given)
    gradients = torch.autograd.grad(found.square().sum(), [x, text])
    expected = torch.autograd.grad(denoise(x, **given)[0].square().sum(), [x, text])
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_an_error_in_a_part_is_one_sentence() -> None:
    def denoise(x: torch.Tensor) -> Any:
        if len(x) < 4:
            raise RuntimeError("shapes")
        return (2 * x,)

    (found,) = recomputed_in_slices(None, nn.Linear(1, 1), denoise, torch.ones(4, 1, requires_grad=True))
    with pytest.raises(SamplerError, match=f"it raised RuntimeError for a part of a batch, and {REFUSED}"):
        found.sum().backward()


def test_a_list_of_latents_and_several_tensors_are_refused() -> None:
    x = [torch.randn(3, requires_grad=True)]
    with pytest.raises(SamplerError, match=f"takes its latents as a list, and {REFUSED}"):
        recomputed_in_slices(1, Network(), lambda x: x, x)
    pair = lambda x: (x, 2 * x)  # noqa: E731
    with pytest.raises(SamplerError, match=f"gives more than one tensor, and {REFUSED}"):
        recomputed_in_slices(1, Network(), pair, torch.randn(2, 3, requires_grad=True))


def test_sharded_denoisers_are_refused() -> None:
    with pytest.raises(DraftError, match=r"train.sharding: a denoiser that is spread over processes is not computed"):
        check_recomputed("sliced")
    check_recomputed(True)


@pytest.mark.parametrize("how", ["lean", "halves", "sliced"])
@pytest.mark.parametrize("family", TRIED.values(), ids=TRIED)
def test_images_are_equal_in_every_bit_and_gradients_nearly(family: Family, how: Any) -> None:
    if family.missing:
        pytest.skip(f"no {family.missing}")
    pipe = family.pipe()
    found = []
    for kept in (False, how):
        sampler = sampler_of(family, pipe)
        sampler.gradient_checkpointing = kept
        images = sampler(family.prompts, plan=DraftK(k=1).plan(sampler.steps, None), generator=seeded()).images  # type: ignore[arg-type]
        found.append((images.detach(), gradient(images, parameters(pipe))))
    (one, slope), (other, sliced) = found
    assert torch.equal(one, other)
    assert (slope - sliced).norm() <= 1e-4 * slope.norm()


def test_memory_is_that_of_one_image() -> None:
    def peak(**kept: Any) -> int:
        given = embeddings(batch=4)
        sampler = DifferentiableSampler(
            with_lora(tiny_pipe()), num_inference_steps=1, guidance_scale=4.0, **given, **kept
        )
        plan = DraftK(k=1).plan(1, None)  # type: ignore[arg-type]
        return peak_memory(lambda: sampler(plan=plan, generator=seeded()).images.square().sum().backward())

    whole = peak(gradient_checkpointing=True, decode="checkpointed")
    lean, halves, sliced = (peak(gradient_checkpointing=how, decode="sliced") for how in ("lean", "halves", "sliced"))
    assert sliced < 0.7 * halves < 0.5 * whole
    assert lean < 0.7 * whole


def test_rows_of_another_image_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(call: Any, tensor: torch.Tensor, number: int) -> Any:
        return slice(0, None, call.slices) if id(tensor) in call.divided else ...

    monkeypatch.setattr(slices._Call, "_rows", first)
    with pytest.raises(SamplerError, match="gives another output for a part of a batch"):
        call(Network(), 4)
