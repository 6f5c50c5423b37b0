"""Trains a decoder of a few convolutions to decode as the model's own does, for the gradient in training alone.

It is distilled: fitted to the frozen decoder's outputs on the latents of emoji, on those of images that the model
draws itself, and on both with noise, since tuning moves latents to where no image has been.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from . import captions, drawn, pictures, vae
from .loop import Budget, Recipe, Training

BATCH = 16
RECIPE = Recipe(lr=2e-3, weight_decay=1e-4, ema=0.997)
NOISE = 0.2  # largest standard deviation of the noise, where latents have 1
WIDTH, BLOCKS = 24, (3, 2, 1)
EVERY = 4  # of the emoji one in so many: a decoder is local, and each picture is 256 examples for it
STEPS, GUIDANCE = 8, 4.0  # of the model's own samples: as good as with 20 steps for what a decoder has to see


def train(work: Path, budget: Budget, device: torch.device, model: Path, own: int = 256) -> None:
    """Leave the averaged decoder in work/tiny-decoder/model; its PSNR against the model's own decoder is printed.

    Arguments:
        model: whose decoder is distilled, a StableDiffusionPipeline whose latents are not scaled.
        own: how many samples of the model itself are taken beside the emoji.
    """
    folder = work / "tiny-decoder"
    latents, images = prepare(work, model, own)
    held_out = torch.arange(len(latents)) % 20 == 0
    seen = torch.nonzero(~held_out).flatten()
    training = Training(build().decoder.to(device), RECIPE, budget, folder / "checkpoint.pt")
    decoder = training.module.to(memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> Tensor:
        rows = seen[torch.randint(len(seen), (BATCH,), generator=generator)]
        return distillation_loss(decoder(latents[rows].float().to(device)), images[rows].float().to(device))

    for p in training.run(loss):
        rate = p.steps_per_s * BATCH
        print(f"tiny-decoder {p.share:4.0%} step {p.step} loss {p.loss:.4f} {rate:.0f} img/s", flush=True)
    made = build()
    made.decoder.load_state_dict(training.averaged())
    print(f"tiny-decoder PSNR {psnr(made, latents[held_out], images[held_out]):.2f} dB on held-out latents", flush=True)
    aside = folder / "model.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    made.save_pretrained(aside, safe_serialization=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    aside.rename(folder / "model")


def build() -> AutoencoderTiny:
    """Four channels of 16x16 to 64x64x3, a third of the own decoder's work; the encoder is as small as it can be."""
    return AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_decoder_blocks=BLOCKS,
    )


def distillation_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """The loss of the autoencoder's own training, between two decoders; (B, 3, H, W) in [-1, 1]."""
    return vae.reconstruction_loss(made, wanted) + F.mse_loss(made, wanted)


def prepare(work: Path, model: Path, own: int) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16), and what the model's own decoder makes of them, (N, 3, 64, 64) in [-1, 1], in float16."""
    file = work / "tiny-decoder" / "latents.npz"
    if not file.exists():
        pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        of_images = encoded(pipe.vae, pictures.load(work)[0][::EVERY])
        of_samples = sampled(pipe, own)
        generator = torch.Generator().manual_seed(0)
        clean = torch.cat([of_images, of_samples])
        size = NOISE * torch.rand(len(clean), 1, 1, 1, generator=generator)
        noisy = clean + size * torch.randn(clean.shape, generator=generator)
        latents = torch.cat([clean, noisy])[torch.randperm(2 * len(clean), generator=generator)]
        print(f"tiny-decoder {len(latents)} latents", flush=True)
        images = decoded(pipe.vae, latents)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp.npz")
        np.savez(aside, latents=latents.half().numpy(), images=images.half().numpy())
        os.replace(aside, file)
    with np.load(file) as found:
        return torch.from_numpy(found["latents"]), torch.from_numpy(found["images"])


@torch.no_grad()
def encoded(autoencoder: AutoencoderKL, images: np.ndarray) -> Tensor:
    """The modes of the latents of images, uint8 (N, 64, 64, 3)."""
    return torch.cat([autoencoder.encode(x).latent_dist.mode() for x in vae.chunks(images)])


@torch.no_grad()
def sampled(pipe: StableDiffusionPipeline, count: int) -> Tensor:
    """Latents of the model's own samples, with and without a style in their prompts."""
    phrases = pictures.phrases()
    prompts = [
        phrases[i % len(phrases)] if i % 2 else f"{captions.styled(drawn.STYLES[i % 3])}, {phrases[i % len(phrases)]}"
        for i in range(count)
    ]
    found = []
    for first in range(0, count, drawn.CHUNK):
        some = prompts[first : first + drawn.CHUNK]
        generators = [torch.Generator().manual_seed(2_000_000 + first + i) for i in range(len(some))]
        call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
        found.append(pipe(some, generator=generators, **call).images)
    return torch.cat(found) if found else torch.zeros(0, 4, 16, 16)


@torch.no_grad()
def decoded(autoencoder: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """What a decoder makes of latents."""
    return torch.cat([autoencoder.decode(some.float()).sample for some in latents.split(64)])


def psnr(made: AutoencoderTiny, latents: Tensor, images: Tensor) -> float:
    """Mean over latents of the ratio, in dB, of the range to the difference between two decoders."""
    mse = ((decoded(made, latents).clamp(-1, 1) - images.float().clamp(-1, 1)) / 2).square().mean((1, 2, 3))
    return float((-10 * mse.log10()).mean())


def export(work: Path, model: Path) -> None:
    """Put the decoder beside `model`, in half precision."""
    beside = model.with_name("tiny-decoder")
    shutil.rmtree(beside, ignore_errors=True)
    AutoencoderTiny.from_pretrained(work / "tiny-decoder" / "model").half().save_pretrained(beside)
    config = json.loads((beside / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in beside.rglob("*") if file.is_file()) / 1e6
    print(f"export {size:.1f} MB in {beside}", flush=True)
