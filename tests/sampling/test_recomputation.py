"""Less is kept for the backward pass: the same values and gradients, and how much less it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from draft_core import DifferentiableSampler, Draft, DraftK
from draft_core.adapters.lora import trainable
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import SamplerError
from draft_core.sampling.pipelines import find_denoisers, has_blocks
from draft_core.sampling.recomputing.selective import _Recipe, convolutions_small, kept_small
from tests.support.drive import gradient, parameters, sampler_of, seeded
from tests.support.families import DISTINCT, Family, sd
from tests.support.tiny import embeddings, tiny_pipe, with_lora

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")

Context = Callable[[Any], AbstractContextManager[Any]]  # of a network


def small(network: Any) -> AbstractContextManager[Any]:
    return kept_small()


def smaller_still(network: Any) -> AbstractContextManager[Any]:
    return kept_small(linear=True)


WAYS: dict[str, Context] = {"small": small, "convolutions alone": convolutions_small}


def compared(network: Callable[[torch.Tensor], torch.Tensor], *shape: int, context: Context = small) -> None:
    """Output and gradients of the input and of what is trained are those without `context`, in every bit."""
    trained = (
        [weight for weight in network.parameters() if weight.requires_grad] if hasattr(network, "parameters") else []
    )
    found = []
    for around in (nullcontext, context):
        x = torch.randn(shape, generator=seeded(), requires_grad=True)
        with around(network):
            y = network(x)
        slope = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append((y, torch.autograd.grad((y.float().square() * slope).sum(), [x, *trained])))
    (plain, plain_grads), (smaller, smaller_grads) = found
    assert torch.equal(plain, smaller)
    for one, other in zip(plain_grads, smaller_grads, strict=True):
        assert torch.equal(one, other)


def frozen(module: Any) -> Any:
    return module.requires_grad_(False)


def kept(network: Any, x: torch.Tensor, context: Context) -> int:
    """Bytes that the graph of one forward pass holds."""

    def work() -> None:
        with context(network):
            outputs.append(network(x))

    outputs: list[torch.Tensor] = []
    return peak_memory(work)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """But for the last bits: a transposed convolution may add up in another order."""
    assert (one - other).norm() <= 1e-5 * other.norm()


# Single operations


@pytest.mark.parametrize("context", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 8, 9)),
        (nn.Conv2d(4, 6, 3, stride=(2, 3), padding=(1, 0), dilation=2, bias=False), (1, 4, 12, 12)),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 8)),
        (nn.Conv2d(4, 6, 1), (4, 8, 8)),
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
        (nn.Conv3d(4, 6, (1, 3, 3), stride=(1, 2, 2)), (1, 4, 3, 8, 8)),
    ],
    ids=str,
)
def test_a_frozen_convolution_has_the_same_gradient(layer: Any, shape: Any, context: Context) -> None:
    compared(frozen(layer), *shape, context=context)


def test_a_convolution_that_is_trained_keeps_its_gradient() -> None:
    compared(nn.Conv2d(4, 6, 3), 2, 4, 8, 8)
    bias_alone = nn.Conv2d(4, 6, 3)
    bias_alone.weight.requires_grad_(False)
    compared(bias_alone, 2, 4, 8, 8)


def test_a_layer_with_a_convolution_of_its_own_keeps_that() -> None:
    class Doubled(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> torch.Tensor:
            return 2 * super()._conv_forward(*args)

    compared(frozen(Doubled(4, 4, 3)), 2, 4, 8, 8, context=convolutions_small)


def test_a_trained_convolution_beside_frozen_ones_keeps_its_input_and_all_are_left_as_they_were() -> None:
    network = nn.Sequential(frozen(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3), frozen(nn.Conv2d(4, 4, 3)))
    before = [dict(vars(layer)) for layer in network]
    compared(network, 2, 4, 9, 9, context=convolutions_small)
    assert [dict(vars(layer)) for layer in network] == before


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.GELU("tanh")),
        nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.RMSNorm(8), nn.SiLU()),
    ],
    ids=["convolutions", "linear"],
)
def test_chains_of_cheap_outputs_are_computed_again(network: Any) -> None:
    compared(frozen(network), 2, 4, 8, 8)
    trained = nn.Sequential(network, nn.Linear(network(torch.zeros(2, 4, 8, 8)).shape[-1], 3))
    compared(trained, 2, 4, 8, 8)


def test_modulated_norms_and_wider_copies_are_computed_again() -> None:
    lora = nn.Linear(8, 2)
    scale = torch.randn(1, 1, 8, generator=seeded(1))

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = functional.layer_norm(x, (8,)) * (1 + scale) + scale
        return (
            lora(hidden)
            + lora(hidden.bfloat16().to(torch.float32))
            + lora(hidden.view(-1, 8)[::2].view(2, 2, 8)).mean()
        )

    network.parameters = lora.parameters  # type: ignore[attr-defined]
    compared(network, 2, 4, 8)


def test_under_autocast_the_precision_is_that_of_the_call() -> None:
    network = frozen(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3)))

    def cast(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(x)

    compared(cast, 2, 4, 8, 8)


# What could go wrong unnoticed


def test_an_output_that_was_changed_in_place_is_kept_as_it_became() -> None:
    weight = torch.randn(8, 8, generator=seeded(1), requires_grad=True)

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = functional.silu(x)
        hidden += 1  # silu's own backward pass needs its input alone
        return hidden @ weight

    network.parameters = lambda: [weight]  # type: ignore[attr-defined]
    compared(network, 4, 8)


def test_an_input_that_was_changed_in_place_is_an_error_as_without() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with kept_small():
        hidden = x * 1
        y = functional.silu(hidden)
        hidden += 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_so_is_a_frozen_weight_that_was_changed() -> None:
    network = frozen(nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)))
    for changed in network:
        assert isinstance(changed.weight, torch.Tensor)
        with kept_small():
            y = network(torch.randn(1, 4, 2, 2, requires_grad=True))
        changed.weight.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


def test_a_second_derivative_is_the_same() -> None:
    network = frozen(nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.SiLU())).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, generator=seeded(), requires_grad=True)

    def smaller(x: torch.Tensor) -> torch.Tensor:
        with kept_small():
            return network(x)

    assert torch.autograd.gradgradcheck(smaller, (x,))


def test_checkpoints_inside_the_network_work_as_before() -> None:
    """A user may have switched on diffusers' own: what it computes again, it computes outside of the context."""
    block = frozen(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU()))
    compared(lambda x: checkpoint(block, checkpoint(block, x, use_reentrant=False), use_reentrant=False), 2, 4, 8, 8)
    pipe = adapted_pipe()
    expected = gradients_of(pipe)
    pipe.unet.enable_gradient_checkpointing()
    assert_same(gradients_of(pipe, gradient_checkpointing="selective"), expected)


def test_the_graph_can_be_used_twice() -> None:
    network = frozen(nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.SiLU()))
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with kept_small():
        y = network(x).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


# How much less


def test_a_block_of_a_unet_keeps_one_tensor_for_each_convolution() -> None:
    layers = [layer for _ in range(8) for layer in (nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))]
    network, x = frozen(nn.Sequential(*layers)), torch.randn(1, 8, 32, 32, requires_grad=True)
    each = x.nbytes
    plain, convolutions, least = (kept(network, x, context) for context in (nullcontext, *reversed(WAYS.values())))
    assert plain == pytest.approx(24 * each, rel=0.05)  # input of every layer
    assert convolutions == pytest.approx(17 * each, rel=0.05)  # but for the convolutions', and the last one's output
    assert least == pytest.approx(10 * each, rel=0.1)  # inputs of the norms, and what is just being computed


def test_wider_copies_for_a_lora_are_not_kept() -> None:
    """peft casts the input of every adapted layer to the LoRA's float32, once for query, key and value each."""
    loras = [nn.Linear(64, 2) for _ in range(3)]
    x = torch.randn(1, 256, 64).bfloat16().requires_grad_()

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = functional.layer_norm(x, (64,))
        return sum(lora(hidden.to(torch.float32)) for lora in loras)  # type: ignore[return-value]

    plain, least = (kept(network, x, context) for context in (nullcontext, small))
    wide = 2 * x.nbytes
    assert plain > 3 * wide
    assert least < 2 * wide


class FeedForward(nn.Module):
    """A gated feed-forward layer as transformer blocks have it: eight times as wide inside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(16), nn.Linear(16, 128), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, gate = self.wide(self.norm(x)).chunk(2, dim=-1)
        return x + self.back(hidden * functional.gelu(gate))


def test_wide_layers_are_computed_again_once_where_they_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    compared(frozen(FeedForward()), 4, 16, context=smaller_still)
    compared(FeedForward(), 4, 16, context=smaller_still)
    x = torch.randn(64, 16, generator=seeded(), requires_grad=True)
    layers = frozen(nn.Sequential(*(FeedForward() for _ in range(8))))
    most, less, least = (kept(layers, x, way) for way in (nullcontext, small, smaller_still))
    assert least < (8 * 2 + 16) * x.nbytes < 8 * 8 * x.nbytes < less < most
    with smaller_still(None):
        y = frozen(FeedForward())(x).sum()
    widths, linear = list[int](), functional.linear

    def counted(self: Any) -> torch.Tensor:
        widths.append(self.args[1].tensor.shape[0] if self.func is linear else 0)
        return computed(self)

    computed = _Recipe._computed
    monkeypatch.setattr(_Recipe, "_computed", counted)
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    assert widths.count(128) == 1, "three tensors of the backward pass are parts of it"
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


# In the sampler


def adapted_pipe() -> Any:
    return with_lora(tiny_pipe())


def gradients_of(pipe: Any, steps: int = 2, **options: Any) -> torch.Tensor:
    sampler = DifferentiableSampler(pipe, num_inference_steps=steps, guidance_scale=3.0, **embeddings(), **options)
    images = sampler(plan=Draft().plan(steps, None), generator=seeded()).images  # type: ignore[arg-type]
    return gradient(images, list(trainable(pipe)))


@pytest.mark.parametrize("how", ["selective", "blocks"])
@pytest.mark.parametrize("family", DISTINCT.values(), ids=DISTINCT)
def test_every_family_has_the_same_images_and_gradient(family: Family, how: Any) -> None:
    if family.missing:
        pytest.skip(f"no {family.missing}")
    pipe = family.pipe()
    if how == "blocks" and not has_blocks(*find_denoisers(pipe).values(), getattr(pipe, "vae", None)):
        with pytest.raises(SamplerError, match="cannot be recomputed block by block; use another way"):
            DifferentiableSampler(pipe, num_inference_steps=2, gradient_checkpointing=how, decode=how)
        return
    plain, small = sampler_of(family, pipe), sampler_of(family, pipe)
    small.gradient_checkpointing, small.decode = how, how
    plan = DraftK(k=1).plan(plain.steps, None)  # type: ignore[arg-type]
    one, other = (sampler(family.prompts, plan=plan, generator=seeded()).images for sampler in (plain, small))
    assert torch.equal(one, other)
    weights = parameters(pipe)
    for weight in pipe.vae.parameters() if getattr(pipe, "vae", None) is not None else []:
        weight.requires_grad_(False)
    one, other = (sampler(family.prompts, plan=plan, generator=seeded()).images for sampler in (plain, small))
    found = [gradient(images, weights) for images in (one, other)]
    assert_same(*found)


@pytest.mark.parametrize("how", ["selective", "blocks"])
@pytest.mark.parametrize("option", ["gradient_checkpointing", "decode"])
def test_a_lora_has_the_same_gradient_and_takes_less_memory(option: str, how: str) -> None:
    peaks = []
    for given in ({}, {option: how}):
        pipe = adapted_pipe()
        found = gradients_of(pipe, **given)
        peaks.append(peak_memory(partial(gradients_of, pipe, **given)))
        if not given:
            expected = found
    assert_same(found, expected)
    assert peaks[1] < (0.9 if how == "selective" else 1) * peaks[0]  # so small a model has hardly two blocks


def test_it_is_off_outside_of_graded_calls() -> None:
    pipe = sd()
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=2, guidance_scale=3.0, gradient_checkpointing="selective", decode="selective"
    )
    with torch.no_grad():
        images = sampler(["a cat"], plan=DraftK(k=1).plan(2, None), generator=seeded()).images  # type: ignore[arg-type]
    assert not images.requires_grad
