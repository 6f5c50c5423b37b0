"""`decode="tiles"`: the decoder's own tiles, one recomputed after another."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLHunyuanVideo

from draft_core import DifferentiableSampler, DraftK
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import RecipeError, SamplerError
from draft_core.sampling.decoders.tiles import check_tiles, decoded_by_tiles, tile_decode
from tests.support import families

SMALL = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
STRIDES = {"tile_sample_stride_height": 24, "tile_sample_stride_width": 24}


def kl() -> Any:
    vae = families.image_vae()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    return vae


def wan() -> Any:
    vae = families.wan_vae()
    vae.enable_tiling(**SMALL, **STRIDES)
    return vae


def hunyuan() -> Any:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.enable_tiling(**SMALL, **STRIDES)
    return vae


CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "AutoencoderKL": (kl, (2, 4, 8, 12)),
    "AutoencoderKLWan": (wan, (2, 4, 2, 4, 5)),
    "AutoencoderKLHunyuanVideo": (hunyuan, (1, 4, 1, 4, 5)),
}


def made(name: str) -> tuple[Any, torch.Tensor]:
    """The decoder in float64, and latents for several tiles of it."""
    make, shape = CASES[name]
    torch.manual_seed(0)
    vae = make().double().eval().requires_grad_(False)
    return vae, torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gradient(images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    ramp = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    return torch.autograd.grad((images.square() * ramp).sum(), latents)[0]


@pytest.mark.parametrize("name", CASES)
def test_images_and_gradients_are_those_of_the_decoders_own_tiles(name: str) -> None:
    vae, latents = made(name)
    own = vae.decode(latents).sample
    ours = decoded_by_tiles(vae, vae.decode, latents).sample
    expected = torch.cat([vae.decode(piece).sample for piece in latents.detach().split(1)])
    assert torch.equal(ours, expected), "one image after another"
    torch.testing.assert_close(gradient(ours, latents), gradient(own, latents), rtol=1e-9, atol=1e-12)
    assert "forward" not in vae.decoder.__dict__


def test_features_that_frames_hand_on_carry_a_gradient() -> None:
    vae, latents = made("AutoencoderKLWan")
    expected, forward = gradient(vae.decode(latents).sample, latents), vae.decoder.forward

    def cut(*args: Any, feat_cache: list[Any], **kwargs: Any) -> Any:
        output = forward(*args, feat_cache=feat_cache, **kwargs)
        feat_cache[:] = [one.detach() if isinstance(one, torch.Tensor) else one for one in feat_cache]
        return output

    vae.decoder.__dict__["forward"] = cut
    found = gradient(decoded_by_tiles(vae, vae.decode, latents).sample, latents)
    assert (found - expected).abs().max() > 1e-3 * expected.abs().max(), "what the comparison above would catch"
    assert vae.decoder.__dict__["forward"] is cut


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_no_more_than_a_tile_is_kept(name: str) -> None:
    vae, latents = made(name)
    wide = torch.cat([latents] * 3, dim=-1).detach()[:1].requires_grad_()

    def work(decode: Callable[..., Any]) -> int:
        return peak_memory(lambda: decode(wide).sample.square().sum().backward())

    assert work(lambda z: decoded_by_tiles(vae, vae.decode, z)) < 0.4 * work(vae.decode)


def test_autocast_is_that_of_the_forward_pass() -> None:
    vae, latents = made("AutoencoderKL")
    vae, latents = vae.float(), latents.detach().float()[:1].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        own, ours = vae.decode(latents).sample, decoded_by_tiles(vae, vae.decode, latents).sample
    assert torch.equal(own, ours)
    expected, found = gradient(own.float(), latents), gradient(ours.float(), latents)
    assert torch.nn.functional.cosine_similarity(expected.flatten(), found.flatten(), dim=0) > 0.999


def test_a_sampler_learns_through_tiles() -> None:
    def of(decode: Any) -> torch.Tensor:
        torch.manual_seed(0)
        pipe = families.wan()
        pipe.vae.enable_tiling(**SMALL, **STRIDES)
        pipe.vae.requires_grad_(False)
        sampler = DifferentiableSampler(
            pipe, num_inference_steps=2, guidance_scale=1.0, decode=decode, height=48, width=64, num_frames=5
        )
        rollout = sampler(["a fox"], plan=DraftK(k=1).plan(2, Random(0)), generator=torch.Generator().manual_seed(1))
        rollout.images.square().sum().backward()
        return torch.cat([one.grad.flatten() for one in pipe.transformer.parameters() if one.grad is not None])

    torch.testing.assert_close(of("tiles"), of("whole"), rtol=1e-4, atol=1e-6)


def test_what_cannot_is_refused_by_name() -> None:
    with pytest.raises(SamplerError, match="was not told to decode in tiles"):
        check_tiles(families.wan_vae().requires_grad_(False))
    with pytest.raises(SamplerError, match="does not decode in tiles"):
        check_tiles(None)
    vae, latents = wan(), torch.zeros(1, 4, 1, 4, 4, requires_grad=True)
    check_tiles(vae)  # which a trainer freezes only later
    with pytest.raises(SamplerError, match="the decoder is to be trained"):
        decoded_by_tiles(vae, vae.decode, latents)


def test_a_decoder_whose_tiles_give_more_than_a_tensor_is_refused() -> None:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4
    ).requires_grad_(False)
    vae.enable_tiling(**SMALL)
    latents = torch.randn(1, 4, 2, 6, 6, requires_grad=True)
    with pytest.raises(SamplerError, match="more than a tensor"):
        decoded_by_tiles(vae, vae.decode, latents)


@pytest.mark.parametrize(
    ("make", "sizes", "said"),
    [
        (wan, {"tile_height": 32}, "takes no tile_height"),
        (kl, {"tile_sample_min_height": 32}, "have a size of their own"),
        (wan, {"tile_sample_min_height": 16, "tile_sample_stride_height": 24}, "leave gaps"),
        (wan, {"tile_sample_stride_height": 3}, "stride_height 3 is no multiple of 8, .*; give 8"),
        (hunyuan, {"tile_sample_min_num_frames": 18}, "num_frames 18 is no multiple of 4, .*; give 16"),
        (lambda: None, True, "cannot work in tiles"),
    ],
)
def test_sizes_that_a_decoder_does_not_take_are_refused_by_name(make: Any, sizes: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        tile_decode(SimpleNamespace(vae=make()), sizes)


def test_sizes_reach_the_decoder() -> None:
    vae = families.wan_vae()
    tile_decode(SimpleNamespace(vae=vae), SMALL | STRIDES)
    assert (vae.use_tiling, vae.tile_sample_min_height, vae.tile_sample_stride_width) == (True, 32, 24)
