"""Trains the shipped denoiser and text tower further, on scenes; the autoencoder and the words stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from .. import captions, pictures, unet, vae
from ..loop import Budget, Loss, Recipe, Training
from .composing import Composer

RECIPE = Recipe(lr=5e-4, weight_decay=1e-2, ema=0.9985, slow=("text.", 0.25))
BATCH = 16
SEED = 3
GRID_MINUTES = 10.0
GRID = [
    "a fox and a red apple", "a blue owl", "a rocket and a house", "a green cat face and a purple heart",
    "a red apple and a blue heart", "an owl and a cactus", "a pink elephant", "a guitar and a yellow penguin",
]  # fmt: skip


def train(work: Path, budget: Budget, device: torch.device, model: Path) -> None:
    """Leave the averaged UNet and text tower in work/scenes, with grids on the way; it starts from `model`."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    module = nn.ModuleDict({"unet": pipeline.unet, "text": pipeline.text_encoder}).to(device).requires_grad_(True)
    module["unet"].to(memory_format=torch.channels_last)
    if device.type == "cpu":  # at these sizes the backward pass of fused attention is the slower one there
        module["unet"].set_attn_processor(AttnProcessor())
        module["text"].set_attn_implementation("eager")
    training = Training(module.train(), RECIPE, budget, work / "scenes" / "checkpoint.pt", seed=SEED)
    loss = denoising_loss(module, Composer(*pictures.load(work)), pipeline, device)
    drawn = training.elapsed_s
    for p in training.run(loss):
        print(f"scenes {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.0f} img/s", flush=True)
        if training.elapsed_s - drawn > 60 * GRID_MINUTES:
            drawn = training.elapsed_s
            unet.draw_grid(averaged(training, model), work / "scenes" / f"grid-{p.step:06d}.png", GRID)
    final = averaged(training, model)
    final.unet.save_pretrained(work / "scenes" / "unet")
    final.text_encoder.save_pretrained(work / "scenes" / "text_encoder")
    unet.draw_grid(final, work / "scenes" / "grid-final.png", GRID)


def denoising_loss(
    module: nn.ModuleDict, composer: Composer, pipeline: StableDiffusionPipeline, device: torch.device
) -> Loss:
    """The loss of the UNet stage, of scenes that are composed and encoded anew in each batch."""
    bar = unet.noise_schedule().alphas_cumprod
    share = unet.timestep_shares(bar)
    encoder = pipeline.vae.requires_grad_(False).to(device)

    def loss(generator: torch.Generator) -> Tensor:
        images, scenes = composer.batch(BATCH, generator)
        with torch.no_grad(), vae.autocast(device):
            x = encoder.encode(images.to(device)).latent_dist.mode().float()
        t = unet.timesteps(share, BATCH, generator)
        ids = captions.tokens(pipeline.tokenizer, [s.caption for s in scenes]).to(device)
        noise = torch.randn(x.shape, generator=generator).to(device)
        a, s = (f[t].sqrt()[:, None, None, None].to(device) for f in (bar, 1 - bar))
        noisy, v = a * x + s * noise, a * noise - s * x
        with vae.autocast(device):
            condition = module["text"](ids).last_hidden_state
            noisy = noisy.to(memory_format=torch.channels_last)
            predicted = module["unet"](noisy, t.to(device), condition).sample
        return (predicted.float() - v).square().mean()

    return loss


def averaged(training: Training, model: Path) -> StableDiffusionPipeline:
    """The pipeline with the averaged weights, on the CPU in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    state = training.averaged()
    pipeline.unet.load_state_dict({k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")})
    text = {k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")}
    pipeline.text_encoder.load_state_dict(text)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
