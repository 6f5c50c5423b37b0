"""Trains the autoencoder, folds the latents' mean and spread into its 1x1 convolutions, steadies the decoder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import pictures
from .loop import Budget, Recipe, Training

BATCH = 16
RECIPE = Recipe(lr=2e-3, weight_decay=1e-4, ema=0.997)
STEADY_RECIPE = Recipe(lr=5e-4, weight_decay=1e-4, ema=0.997)
STEADY_MINUTES = 4.0
STEADY_NOISE = 0.2  # largest standard deviation of the noise, where latents have 1
KL = 1e-4  # per latent number; only keeps the posterior from collapsing to a point


def train(work: Path, budget: Budget, device: torch.device) -> None:
    """Leave the averaged, folded autoencoder in work/vae; its PSNR is printed in dB."""
    images, meta = pictures.load(work)
    training = Training(build().to(device), RECIPE, budget, work / "vae" / "checkpoint.pt")
    vae = training.module.to(memory_format=torch.channels_last)
    chosen = np.array([p.concept >= 0 for p in meta])

    def loss(generator: torch.Generator) -> Tensor:
        x = batch(images, chosen, generator, device)
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample(generator if device.type == "cpu" else None)).sample
        return reconstruction_loss(y.float(), x) + KL * posterior.kl().mean() / 1024

    for p in training.run(loss):
        print(
            f"vae   {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.0f} img/s",
            flush=True,
        )

    final = build()
    final.load_state_dict(training.averaged())
    mean, std = latent_statistics(final, images[chosen])
    fold(final, mean, std)
    save_file(final.state_dict(), work / "vae" / "folded.safetensors")
    report(final, images, chosen)
    steady(work, Budget(minutes=STEADY_MINUTES), device)


def steady(work: Path, budget: Budget, device: torch.device) -> None:
    """Train the decoder alone on latents with noise on them; the latents themselves stay what they are.

    The posterior is so narrow (0.004 to 0.03) that the decoder has seen no error of the size a small
    denoiser makes, and answers one with specks of colour.
    """
    images, meta = pictures.load(work)
    chosen = np.array([p.concept >= 0 for p in meta])
    vae = load(work).to(device, memory_format=torch.channels_last)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)
    training = Training(decoder, STEADY_RECIPE, budget, work / "vae" / "steady.pt")

    def loss(generator: torch.Generator) -> Tensor:
        x = batch(images, chosen, generator, device)
        with autocast(device):
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mode().float()
            size = STEADY_NOISE * torch.rand(len(z), 1, 1, 1, generator=generator)
            noise = size * torch.randn(z.shape, generator=generator)
            y = vae.decode(z + noise.to(device)).sample
        return reconstruction_loss(y.float(), x)

    for p in training.run(loss):
        rate = p.steps_per_s * BATCH
        print(f"vae   steadying {p.share:4.0%} step {p.step} loss {p.loss:.4f} {rate:.0f} img/s", flush=True)
    final = load(work)
    final.load_state_dict({**final.state_dict(), **training.averaged()})
    report(final, images, chosen)
    aside = work / "vae" / "steady.tmp"
    save_file(final.state_dict(), aside)
    os.replace(aside, work / "vae" / "folded.safetensors")


def report(vae: AutoencoderKL, images: np.ndarray, chosen: np.ndarray) -> None:
    """Print the PSNR on the concepts and on a sample of the other emoji."""
    concepts, others = psnr(vae, images[chosen]), psnr(vae, images[~chosen][::8])
    print(f"vae   PSNR {concepts:.2f} dB on the concepts, {others:.2f} dB on the other emoji", flush=True)


def load(work: Path) -> AutoencoderKL:
    """The finished autoencoder, frozen."""
    vae = build()
    vae.load_state_dict(load_file(work / "vae" / "folded.safetensors"))
    return vae.eval().requires_grad_(False)


def build() -> AutoencoderKL:
    """64x64x3 to 16x16x4; no attention in the middle, which costs more here than it gives."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=pictures.SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 MSE + half the L1 of the image gradients; x and y are (B, 3, H, W) in [-1, 1]."""
    down = (y.diff(dim=2) - x.diff(dim=2)).abs().mean()
    across = (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.5 * (down + across)


def batch(images: np.ndarray, chosen: np.ndarray, generator: torch.Generator, device: torch.device) -> Tensor:
    """(BATCH, 3, 64, 64) in [-1, 1]: half from the concepts, half from all emoji, mirrored at random."""
    concepts = np.flatnonzero(chosen)
    half = BATCH // 2
    first = concepts[torch.randint(len(concepts), (half,), generator=generator).numpy()]
    rest = torch.randint(len(images), (BATCH - half,), generator=generator).numpy()
    x = to_tensor(images[np.concatenate([first, rest])])
    mirror = torch.rand(BATCH, generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
    return x.to(device, memory_format=torch.channels_last)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over pictures and their posterior, each (4,)."""
    latents = []
    for x in chunks(images):
        posterior = vae.encode(x).latent_dist
        latents.append(posterior.sample(torch.Generator().manual_seed(0)))
    z = torch.cat(latents)
    return z.mean((0, 2, 3)), z.std((0, 2, 3))


@torch.no_grad()
def fold(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make the latents (z - mean) / std without changing decode(encode(x)).

    StableDiffusionPipeline knows a scaling factor but ignores a shift, so both go into the weights of the
    1x1 convolutions around the latents. The encoder's has twice the channels: means, then log-variances,
    which the division shifts by -2 log std.
    """
    encode, decode = vae.quant_conv, vae.post_quant_conv
    n = len(mean)
    encode.weight[:n] /= std[:, None, None, None]
    encode.bias[:n] = (encode.bias[:n] - mean) / std
    encode.bias[n:] -= 2 * std.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB of posterior mode, decoded and clamped."""
    values = []
    for x in chunks(images):
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((y - x) / 2).square().mean((1, 2, 3))
        values.append(-10 * mse.log10())
    return float(torch.cat(values).mean())


def chunks(images: np.ndarray, size: int = 64) -> Iterable[Tensor]:
    """The pictures as tensors of up to `size`."""
    return (to_tensor(images[i : i + size]) for i in range(0, len(images), size))


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute in bfloat16 where that is safe and fast; processors without its instructions take three times as long."""
    slow = device.type == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.autocast(device.type, torch.bfloat16, enabled=not slow)
