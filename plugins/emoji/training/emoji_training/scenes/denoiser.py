"""Trains the shipped denoiser and text tower further, on scenes; the autoencoder and the words stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from .. import captions, pictures, unet, vae
from ..loop import Budget, Loss, Recipe, Training
from .composing import Composer, Thing

RECIPE = Recipe(lr=5e-4, weight_decay=1e-2, ema=0.9985, slow=("text.", 0.25))
BATCH = 16
POOL = 24576  # scenes
SEED = 3
GRID_MINUTES = 10.0
GRID = [
    "a fox and a red apple", "a blue owl", "a rocket and a house", "a green cat face and a purple star",
    "a red apple and a pink doughnut", "an owl and a cactus", "a key", "a guitar and a yellow penguin",
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
    composer = Composer(*pictures.load(work))
    loss = denoising_loss(module, composer, pool(work, composer, pipeline.vae), pipeline, device)
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


@torch.no_grad()
def pool(work: Path, composer: Composer, encoder: AutoencoderKL) -> tuple[Tensor, list[tuple[Thing, ...]]]:
    """Latents (POOL, 4, 16, 16) of random scenes and what each shows; kept on disk, as encoding takes minutes."""
    file = work / "scenes" / "pool.pt"
    if not file.exists():
        generator = torch.Generator().manual_seed(SEED)
        latents, shown = [], []
        for at in range(0, POOL, 64):
            images, scenes = composer.batch(64, generator)
            latents.append(encoder.encode(images).latent_dist.mode().half())
            shown += [[[t.index, t.colour] for t in s.things] for s in scenes]
            if at % 4096 == 0:
                print(f"scenes: {at} of {POOL} encoded", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"latents": torch.cat(latents), "shown": shown}, file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    kept = torch.load(file, weights_only=True)
    return kept["latents"], [tuple(Thing(*t) for t in row) for row in kept["shown"]]


def denoising_loss(
    module: nn.ModuleDict,
    composer: Composer,
    scenes: tuple[Tensor, Sequence[tuple[Thing, ...]]],
    pipeline: StableDiffusionPipeline,
    device: torch.device,
) -> Loss:
    """The loss of the UNet stage on the pool's scenes, each with another caption every time."""
    latents, shown = scenes
    bar = unet.noise_schedule().alphas_cumprod
    share = unet.timestep_shares(bar)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(latents), (BATCH,), generator=generator)
        x = latents[chosen].float().to(device)
        texts = [composer.caption(shown[i], generator) for i in chosen.tolist()]
        t = unet.timesteps(share, BATCH, generator)
        ids = captions.tokens(pipeline.tokenizer, texts).to(device)
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
