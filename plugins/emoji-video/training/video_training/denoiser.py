"""Trains the denoiser: on single frames first, then with motion modules on clips.

AnimateDiff (Guo et al., ICLR 2024) keeps the image model frozen. Here that cannot work: this image model fills the
frame with its thing, and no word of motion was in its captions. So all layers of a copy learn, and the text tower.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from draft_emoji.scene_words import things
from emoji_training import captions, pictures, unet
from emoji_training.loop import Budget, Loss, Recipe, Training
from emoji_training.vae import autocast, to_tensor
from PIL import Image
from torch import Tensor, nn

from .clips import FRAMES, Animator

STILL = Recipe(lr=3e-4, weight_decay=1e-2, ema=0.99, slow=("text.", 0.25))
MOVING = Recipe(lr=6e-4, weight_decay=1e-2, ema=0.99, slow=("text.", 0.5))
STILL_BATCH = 8  # frames, each of another clip
SINGLE_BATCH, SINGLE_UNTIL = 16, 0.9  # single frames until this share of the budget, which teach most for their cost
BATCH = 2  # whole clips, from there on
FOCUS = 1.5  # of a new motion module's attention on the frame itself
SNR_LIMIT = 0.5  # timesteps are drawn by min(1, this / SNR): where a thing is, is settled where noise is most
SEED = 11
GRID_MINUTES = 10.0
GRID = ["a red apple moving left", "a fox moving up", "a star growing"]


def train(work: Path, still: Budget, moving: Budget, device: torch.device, start: Path) -> None:
    """Leave the averaged parts in work/video: unet, motion_adapter and text_encoder; `start` is an image pipeline."""
    animator = Animator(*pictures.load(work))
    pipeline = StableDiffusionPipeline.from_pretrained(start, torch_dtype=torch.float32)
    pipeline.unet = without_pooled_text(pipeline)
    train_still(work, still, device, animator, pipeline)
    train_moving(work, moving, device, animator, pipeline)


@torch.no_grad()
def without_pooled_text(pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
    """The denoiser with the mean of its pooled text embedding in place of the embedding.

    UNetMotionModel has no such embedding. The mean goes into the bias that it is added to; drawings hardly change.
    """
    ids = captions.tokens(pipeline.tokenizer, things())
    pooled = pipeline.unet.add_embedding(pipeline.text_encoder(ids).last_hidden_state).mean(0)
    new = UNet2DConditionModel.from_config({**pipeline.unet.config, "addition_embed_type": None})
    state = {k: v for k, v in pipeline.unet.state_dict().items() if not k.startswith("add_embedding.")}
    state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + pooled
    new.load_state_dict(state)
    return new


def build_adapter(denoiser: UNet2DConditionModel) -> MotionAdapter:
    """Motion modules for the denoiser; those of the outermost level have no attention, as it costs most there."""
    channels = tuple(denoiser.config.block_out_channels)
    return MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_transformer_layers_per_block=(0, *[1] * (len(channels) - 1)),
        motion_num_attention_heads=4,
        motion_norm_num_groups=denoiser.config.norm_num_groups,
        motion_max_seq_length=2 * FRAMES,
    )


def train_still(
    work: Path, budget: Budget, device: torch.device, animator: Animator, pipeline: StableDiffusionPipeline
) -> None:
    """Train the pipeline's denoiser and text tower on single frames, and put the averaged weights into it."""
    module = nn.ModuleDict({"unet": pipeline.unet, "text": pipeline.text_encoder}).requires_grad_(True)
    training = prepare(module, STILL, budget, work / "video" / "still.pt", device)

    def loss(generator: torch.Generator) -> Tensor:
        x, texts, _ = batch(animator, STILL_BATCH, 1, generator)
        return denoising_loss(module, pipeline, x[:, :, 0], texts, generator, device)

    for _ in report("still", training, loss, STILL_BATCH):
        pass
    module.load_state_dict(training.averaged())


def train_moving(
    work: Path, budget: Budget, device: torch.device, animator: Animator, pipeline: StableDiffusionPipeline
) -> None:
    """Train denoiser, motion modules and text tower on clips; leave the averaged parts in work/video."""
    torch.manual_seed(SEED)  # of the motion modules' first weights
    module = nn.ModuleDict({"unet": quiet(pipeline.unet), "text": pipeline.text_encoder}).requires_grad_(True)
    places = FramePlaces(module)
    training = prepare(module, MOVING, budget, work / "video" / "moving.pt", device)

    def loss(generator: torch.Generator) -> Tensor:
        single = budget.share(training.elapsed_s, training.step) < SINGLE_UNTIL
        x, texts, chosen = batch(animator, SINGLE_BATCH if single else BATCH, 1 if single else FRAMES, generator)
        places.chosen = chosen
        return denoising_loss(module, pipeline, x, texts, generator, device)

    drawn = training.elapsed_s
    for _ in report("clips", training, loss, SINGLE_BATCH, every=25):
        if training.elapsed_s - drawn > 60 * GRID_MINUTES:
            drawn = training.elapsed_s
            save(training, pipeline, work)
            draw_grid(work, pipeline, work / "video" / f"grid-{training.step:06d}.png")
    save(training, pipeline, work)


class FramePlaces:
    """Puts each frame at its own place in time, whichever frames of a clip a batch has.

    Attributes:
        chosen: the numbers of the frames of each clip, (B, F).
    """

    def __init__(self, module: nn.Module) -> None:
        self.chosen = torch.arange(FRAMES)[None]
        for table in [m.pos_embed for m in module.modules() if getattr(m, "pos_embed", None) is not None]:
            table.forward = partial(self._add, table)

    def _add(self, table: nn.Module, x: Tensor) -> Tensor:
        """x, (B positions, F, C), plus the places of its frames."""
        places = table.pe[0, self.chosen]
        return x + places.repeat_interleave(len(x) // len(places), 0)


@torch.no_grad()
def quiet(denoiser: UNet2DConditionModel) -> UNetMotionModel:
    """The denoiser with new motion modules that change nothing yet, and whose attention is on the frame itself.

    So a single frame, which is all that most of the training sees, says the same as it would among others.
    """
    adapter = build_adapter(denoiser)
    for part in adapter.modules():
        if isinstance(part, AnimateDiffTransformer3D):
            nn.init.zeros_(part.proj_out.weight)
            nn.init.zeros_(part.proj_out.bias)
        if isinstance(part, Attention):
            for layer, size in ((part.to_q, FOCUS), (part.to_k, FOCUS), (part.to_v, 1.0), (part.to_out[0], 1.0)):
                layer.weight.copy_(size * torch.eye(len(layer.weight)))
    return UNetMotionModel.from_unet2d(denoiser, adapter)


def prepare(module: nn.ModuleDict, recipe: Recipe, budget: Budget, file: Path, device: torch.device) -> Training:
    """The training of the module's two parts, from its checkpoint if there is one."""
    module.to(device).train()
    if device.type == "cpu":  # at these sizes the backward pass of fused attention is the slower one there
        module["unet"].set_attn_processor(AttnProcessor())
        module["text"].set_attn_implementation("eager")
    return Training(module, recipe, budget, file, seed=SEED)


def report(name: str, training: Training, loss: Loss, batch_size: int, every: int = 50):
    """Run the training, print each progress and hand it on."""
    for p in training.run(loss, report_every=every):
        print(f"{name} {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * batch_size:.2f}/s", flush=True)
        yield p


def batch(animator: Animator, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, list[str], Tensor]:
    """Random frames of `count` random clips: pixels (count, 3, frames, 64, 64) in [-1, 1], captions, frame numbers."""
    clips = [animator.draw(generator) for _ in range(count)]
    chosen = [torch.randperm(FRAMES, generator=generator)[:frames].sort().values for _ in clips]
    pixels = [to_tensor(animator.frames(c, at.tolist())) for c, at in zip(clips, chosen, strict=True)]
    texts = [animator.caption(c, generator) for c in clips]
    return torch.stack(pixels).transpose(1, 2), texts, torch.stack(chosen)


def denoising_loss(
    module: nn.ModuleDict,
    pipeline: StableDiffusionPipeline,
    pixels: Tensor,
    texts: list[str],
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """The squared error of v on images (B, 3, H, W) or clips (B, 3, F, H, W), all frames of one at one timestep."""
    x = encode(pipeline, pixels).to(device)
    bar = unet.noise_schedule().alphas_cumprod
    weight = (SNR_LIMIT * (1 - bar) / bar).clamp(max=1)
    t = unet.timesteps(weight / weight.sum(), len(x), generator)
    a, s = (f[t].sqrt().view(-1, *[1] * (x.ndim - 1)).to(device) for f in (bar, 1 - bar))
    noise = torch.randn(x.shape, generator=generator).to(device)
    noisy, v = a * x + s * noise, a * noise - s * x
    ids = captions.tokens(pipeline.tokenizer, texts).to(device)
    with autocast(device):
        condition = module["text"](ids).last_hidden_state
        if x.ndim == 5:
            condition = condition.repeat_interleave(x.shape[2], 0)
        predicted = module["unet"](noisy, t.to(device), condition).sample
    return (predicted.float() - v).square().mean()


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, pixels: Tensor) -> Tensor:
    """The latents of images (B, 3, H, W), or of clips (B, 3, F, H, W) frame by frame."""
    if pixels.ndim == 4:
        return pipeline.vae.encode(pixels).latent_dist.mode()
    each = pixels.transpose(1, 2)
    z = pipeline.vae.encode(each.flatten(0, 1)).latent_dist.mode()
    return z.unflatten(0, each.shape[:2]).transpose(1, 2)


def save(training: Training, pipeline: StableDiffusionPipeline, work: Path) -> None:
    """Write the averaged parts: the denoiser without motion modules, those, and the text tower."""
    state = training.averaged()
    moving = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
    flat = UNet2DConditionModel.from_config(pipeline.unet.config)
    flat.load_state_dict({k: v for k, v in moving.items() if "motion_modules" not in k})
    adapter = build_adapter(flat)
    adapter.load_state_dict({k: v for k, v in moving.items() if "motion_modules" in k})
    flat.save_pretrained(work / "video" / "unet")
    adapter.save_pretrained(work / "video" / "motion_adapter")
    text = type(pipeline.text_encoder)(pipeline.text_encoder.config)
    text.load_state_dict({k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")})
    text.save_pretrained(work / "video" / "text_encoder")


def assembled(work: Path, start: StableDiffusionPipeline) -> AnimateDiffPipeline:
    """The pipeline of the parts in work/video, and of the rest of `start`."""
    folder = work / "video"
    pipeline = AnimateDiffPipeline(
        vae=start.vae,
        text_encoder=type(start.text_encoder).from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        tokenizer=start.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet").eval(),
        motion_adapter=MotionAdapter.from_pretrained(folder / "motion_adapter").eval(),
        scheduler=unet.noise_schedule(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_grid(work: Path, start: StableDiffusionPipeline, file: Path) -> None:
    """One row a prompt, one column a frame."""
    drawn = assembled(work, start)(
        GRID,
        num_frames=FRAMES,
        height=pictures.SIZE,
        width=pictures.SIZE,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    rows = [np.concatenate(list(clip), 1) for clip in (np.asarray(drawn) * 255).round().astype(np.uint8)]
    Image.fromarray(np.concatenate(rows, 0)).save(file)
