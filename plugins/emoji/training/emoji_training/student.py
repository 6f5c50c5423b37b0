"""A LoRA with which two steps without guidance draw what twenty guided ones do: distilled from their trajectories.

Progressive distillation (Salimans and Ho 2022, arXiv 2202.00512) from many steps to two at once. The teacher is the
shipped model, 20 steps of DDIM with guidance 4. Of each of its trajectories three latents are kept: the noise, where it
is half way, and where it ends. The student is to take each half in one DDIM step. Its second step is also trained from
where its own first step arrives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .loop import Budget, Recipe, Training

RECIPE = Recipe(lr=1.5e-3, weight_decay=1e-3, ema=0.995)
STEPS, GUIDANCE, CHUNK, BATCH = 20, 4.0, 32, 24
TRAJECTORIES = 1024
OWN = 0.5  # share of the second steps that begin where the student's own first one ends
RANK = 16
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "conv_out"]


def train(work: Path, budget: Budget, device: torch.device, model: Path, prompts: Sequence[str]) -> None:
    """Draw the trajectories of `prompts`, then train; the LoRA goes to work/student/lora in diffusers' format."""
    folder = work / "student"
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    noise, middle, end, words = trajectories(folder, pipeline, prompts)
    unet = pipeline.unet
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    unet.train()
    halves = Halves(pipeline.scheduler, unet, device)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(noise), (BATCH,), generator=generator)
        start, half, last, text = (part[chosen].to(device) for part in (noise, middle, end, words))
        arrived = halves.step(0, start, text)
        own = torch.rand(BATCH, 1, 1, 1, generator=generator).to(device) < OWN
        done = halves.step(1, torch.where(own, arrived.detach(), half), text)
        return nn.functional.mse_loss(arrived, half) + nn.functional.mse_loss(done, last)

    training = Training(unet, RECIPE, budget, folder / "checkpoint.pt")
    for at in training.run(loss, report_every=25):
        print(f"student {100 * at.share:.0f} %: step {at.step}, loss {at.loss:.4f}, {at.steps_per_s:.2f}/s", flush=True)
    unet.load_state_dict(training.averaged())
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=get_peft_model_state_dict(unet))


class Halves:
    """The two DDIM steps that the student takes: from the noise half way, and from there to the end."""

    def __init__(self, scheduler: object, unet: nn.Module, device: torch.device) -> None:
        self.scheduler, self.unet = type(scheduler).from_config(scheduler.config), unet
        self.scheduler.set_timesteps(2, device=device)

    def step(self, half: int, latents: Tensor, words: Tensor) -> Tensor:
        """(B, C, H, W) after the half; words (B, L, D)."""
        timestep = self.scheduler.timesteps[half]
        predicted = self.unet(latents, timestep, encoder_hidden_states=words).sample
        return self.scheduler.step(predicted, timestep, latents).prev_sample


def trajectories(
    folder: Path, pipeline: StableDiffusionPipeline, prompts: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (N, C, H, W) at the start, half way and at the end, and texts (N, L, D); parts survive a kill."""
    parts = []
    for first in range(0, TRAJECTORIES, CHUNK):
        file = folder / f"part-{first // CHUNK:04d}.safetensors"
        if not file.exists():
            part = draw(pipeline, [prompts[n % len(prompts)] for n in range(first, first + CHUNK)], first)
            aside = file.with_suffix(".tmp")
            save_file(part, aside)
            os.replace(aside, file)
            print(f"trajectories {first + CHUNK} of {TRAJECTORIES}", flush=True)
        parts.append(load_file(file))
    noise, middle, end, words = (torch.cat([part[name] for part in parts]).float() for name in NAMES)
    return noise, middle, end, words


NAMES = ("noise", "middle", "end", "words")


def draw(pipeline: StableDiffusionPipeline, prompts: Sequence[str], first: int) -> dict[str, Tensor]:
    """One batch by the teacher; image i starts from the noise of seed 5,000,000 + first + i."""
    seen: list[Tensor] = []

    def keep(_pipeline: object, _step: int, _timestep: object, found: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(found["latents"])
        return {}

    generators = [torch.Generator().manual_seed(5_000_000 + first + place) for place in range(len(prompts))]
    size = pipeline.unet.config.sample_size
    shape = (1, pipeline.unet.config.in_channels, size, size)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    with torch.no_grad():
        pipeline(
            list(prompts),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=noise.to(pipeline.device),
            output_type="latent",
            callback_on_step_end=keep,
        )
        words = pipeline.encode_prompt(list(prompts), pipeline.device, 1, False)[0]
    kept = (noise, seen[STEPS // 2 - 1], seen[-1], words)
    return {name: part.cpu().half().contiguous() for name, part in zip(NAMES, kept, strict=True)}
