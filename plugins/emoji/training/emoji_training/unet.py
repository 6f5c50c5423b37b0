"""Trains the denoiser together with the text tower on the concepts' latents.

On a CPU two processes of one thread each train side by side. Two threads in one process would meet at
every operation, and beside any other busy process they then wait for each other most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import captions, clip, pictures, vae
from .loop import Budget, Loss, Recipe, Training, side_by_side
from .pictures import Picture

RECIPE = Recipe(lr=7e-4, weight_decay=1e-2, ema=0.9985, slow=("text.", 0.25))
BATCH = 12  # in each process
MIRROR = 0.1  # share of mirrored pictures: some variety, at little cost in samples
SNR_LIMIT = 5.0  # gamma of Hang et al. 2023
GUIDANCE, SAMPLING_STEPS = 4.0, 20
GRID_MINUTES = 10.0
TIMESTEPS = 1000


def train(work: Path, budget: Budget, device: torch.device, processes: int = 1, batch: int = BATCH) -> None:
    """Leave the averaged UNet and text tower in work/unet, with sample grids made on the way."""
    side_by_side(worker, processes, work / "unet", work, budget, device, batch)


def worker(rank: int, world: int, work: Path, budget: Budget, device: torch.device, batch: int) -> None:
    """One of `world` processes that train together; the first one reports, draws and saves the result."""
    text, tokenizer = text_tower(work)
    data = Latents.encode(work)
    torch.manual_seed(0)  # the same start in every process
    module = nn.ModuleDict({"unet": build(), "text": text}).to(device)
    module["unet"].to(memory_format=torch.channels_last)
    if device.type == "cpu":  # at these sizes the backward pass of fused attention is the slower one there
        module["unet"].set_attn_processor(AttnProcessor())
        module["text"].set_attn_implementation("eager")
    training = Training(module.train(), RECIPE, budget, work / "unet" / "checkpoint.pt", rank, world)
    loss = denoising_loss(module, data, tokenizer, device, batch)
    drawn = training.elapsed_s
    for p in training.run(loss):
        if rank:
            continue
        rate = p.steps_per_s * batch * world
        samples = p.step * batch * world
        print(
            f"unet  {p.share:4.0%} step {p.step} ({samples} samples) loss {p.loss:.4f} {rate:.0f} img/s",
            flush=True,
        )
        if training.elapsed_s - drawn > 60 * GRID_MINUTES:
            drawn = training.elapsed_s
            draw_grid(parts(training, tokenizer, vae.load(work)), work / "unet" / f"grid-{p.step:06d}.png")
    if rank == 0:
        finish(training, tokenizer, work, data)


def build() -> UNet2DConditionModel:
    """16x16x4 latents, three levels; the outer one has no cross-attention, as it costs most there.

    A pooled text embedding joins that of the timestep and so reaches every block. Cross-attention alone
    took many times as long to learn which words mean which picture.
    """
    return UNet2DConditionModel(
        sample_size=pictures.SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,  # the number of heads, whatever its name says
        cross_attention_dim=160,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion's schedule with v-prediction; trailing spacing starts at the noisiest step."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def text_tower(work: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text half of the CLIP stage as a model of its own."""
    model, tokenizer = clip.load(work)
    text = CLIPTextModel(model.config.text_config)
    own = {k.removeprefix("text_model."): v for k, v in model.text_model.state_dict().items()}
    prefix = "text_model." if any(k.startswith("text_model.") for k in text.state_dict()) else ""
    text.load_state_dict({prefix + k: v for k, v in own.items()})
    return text.requires_grad_(True), tokenizer


@dataclass(frozen=True)
class Latents:
    """Mean and deviation of each concept picture's posterior, as it is and mirrored: (2, N, 4, 16, 16)."""

    mean: Tensor
    std: Tensor
    meta: Sequence[Picture]

    @classmethod
    @torch.no_grad()
    def encode(cls, work: Path) -> Latents:
        """The latents of every concept picture under work/data."""
        images, meta = pictures.load(work)
        chosen = [i for i, p in enumerate(meta) if p.concept >= 0]
        encoder = vae.load(work)
        means, stds = [], []
        for side in (images[chosen], images[chosen][:, :, ::-1].copy()):
            posteriors = [encoder.encode(x).latent_dist for x in vae.chunks(side)]
            means.append(torch.cat([p.mean for p in posteriors]))
            stds.append(torch.cat([p.std for p in posteriors]))
        return cls(torch.stack(means), torch.stack(stds), [meta[i] for i in chosen])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[Picture]]:
        """Latents (count, 4, 16, 16) sampled from the posteriors of random pictures, and those pictures."""
        index = torch.randint(len(self.meta), (count,), generator=generator)
        chosen = [self.meta[i] for i in index.tolist()]
        mirror = (torch.rand(count, generator=generator) < MIRROR) & torch.tensor([p.mirror for p in chosen])
        at = mirror.long(), index
        mean = self.mean[at]
        return mean + self.std[at] * torch.randn(mean.shape, generator=generator), chosen


def denoising_loss(
    module: nn.ModuleDict, data: Latents, tokenizer: CLIPTokenizer, device: torch.device, batch: int
) -> Loss:
    """The loss of one batch: the squared error of v (Salimans and Ho 2022) at the timesteps of `timesteps`."""
    bar = noise_schedule().alphas_cumprod
    share = timestep_shares(bar)

    def loss(generator: torch.Generator) -> Tensor:
        x, chosen = data.draw(batch, generator)
        noise = torch.randn(x.shape, generator=generator)
        t = timesteps(share, batch, generator)
        a, s = (f[t].sqrt()[:, None, None, None] for f in (bar, 1 - bar))
        noisy, v = a * x + s * noise, a * noise - s * x
        ids = captions.tokens(tokenizer, [captions.caption(p, generator) for p in chosen])
        with vae.autocast(device):
            condition = module["text"](ids.to(device)).last_hidden_state
            noisy = noisy.to(device, memory_format=torch.channels_last)
            predicted = module["unet"](noisy, t.to(device), condition).sample
        return (predicted.float() - v.to(device)).square().mean()

    return loss


def timestep_shares(bar: Tensor) -> Tensor:
    """How often each timestep is drawn, (1000,): in proportion to min(1, 5 / SNR).

    At less noise than that, v is mostly the noise, and there is little of a picture to learn from it.
    """
    weight = (SNR_LIMIT * (1 - bar) / bar).clamp(max=1)
    return weight / weight.sum()


def timesteps(share: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps, one from each of as many equally likely parts of the range, in order."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.searchsorted(share.cumsum(0), u).clamp(max=TIMESTEPS - 1)


def parts(training: Training, tokenizer: CLIPTokenizer, decoder: AutoencoderKL) -> StableDiffusionPipeline:
    """A pipeline of the averaged weights on the CPU in float32."""
    state = training.averaged()
    unet, text = build(), CLIPTextModel(training.module["text"].config)
    unet.load_state_dict({k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")})
    text.load_state_dict({k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")})
    pipeline = StableDiffusionPipeline(
        vae=decoder,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def finish(training: Training, tokenizer: CLIPTokenizer, work: Path, data: Latents) -> None:
    """Save the averaged parts, draw the last grid and print how often the right thing is drawn."""
    pipeline = parts(training, tokenizer, vae.load(work))
    pipeline.unet.save_pretrained(work / "unet" / "unet")
    pipeline.text_encoder.save_pretrained(work / "unet" / "text_encoder")
    draw_grid(pipeline, work / "unet" / "grid-final.png")
    for guidance in (1.0, GUIDANCE):
        thing, style = nearest_latent(pipeline, data, guidance)
        print(
            f"unet  guidance {guidance}: nearest latent shows the concept {thing:.3f}, the style {style:.3f}",
            flush=True,
        )


GRID = [
    "a red apple", "a slice of pizza", "a tiger face", "a red heart", "a rocket", "a house", "a penguin",
    "a guitar",
    "a sunflower", "a ghost", "a bus", "a cactus", "an owl", "a birthday cake", "a robot", "a soccer ball",
]  # fmt: skip


def draw_grid(pipeline: StableDiffusionPipeline, file: Path, things: Sequence[str] = GRID) -> None:
    """One column a thing; rows: without a style, then each style."""
    prompts = [*things, *(f"{captions.styled(s)}, {thing}" for s in pictures.STYLES for thing in things)]
    drawn = sample(pipeline, prompts, GUIDANCE, "np")
    tiles = (np.asarray(drawn) * 255).round().astype(np.uint8).reshape(-1, len(things), *drawn[0].shape)
    rows, columns, h, w, _ = tiles.shape
    Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)).save(file)


def sample(pipeline: StableDiffusionPipeline, prompts: Sequence[str], guidance: float, kind: str):
    """Pictures or latents of the prompts, from seed 0, in chunks of 32."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(0, len(prompts), 32):
        with vae.autocast(torch.device("cpu")):
            found.append(
                pipeline(
                    list(prompts[i : i + 32]),
                    guidance_scale=guidance,
                    num_inference_steps=SAMPLING_STEPS,
                    generator=generator,
                    output_type=kind,
                ).images
            )
    return torch.cat(found) if kind == "latent" else np.concatenate(found)


def nearest_latent(pipeline: StableDiffusionPipeline, data: Latents, guidance: float) -> tuple[float, float]:
    """Shares of one drawing per concept whose nearest real latent has its concept; and its style."""
    styles = list(pictures.STYLES)
    wanted = [p for p in data.meta if p.style == styles[p.concept % 3]]
    prompts = [f"{captions.styled(p.style)}, {p.phrase}" for p in wanted]
    drawn = sample(pipeline, prompts, guidance, "latent").float().flatten(1)
    real = data.mean.flatten(2)
    distance = torch.stack([torch.cdist(drawn, side) for side in real]).amin(0)
    nearest = [data.meta[i] for i in distance.argmin(1).tolist()]
    pairs = list(zip(wanted, nearest, strict=True))
    return (
        sum(a.concept == b.concept for a, b in pairs) / len(pairs),
        sum(a.style == b.style for a, b in pairs) / len(pairs),
    )
