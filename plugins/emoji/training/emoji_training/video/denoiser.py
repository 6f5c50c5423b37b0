"""Trains motion modules, a LoRA and the text tower on videos; the denoiser of scenes and its autoencoder stay frozen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from draft_emoji.motion_unet import ADAPTER, TextMotionUNet
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .. import captions, export, pictures, unet, vae
from ..loop import Budget, Loss, Recipe, Training
from ..pictures import Picture
from .moving import FRAMES, MOTIONS, Video, draw, shown

RECIPE = Recipe(lr=1e-3, weight_decay=1e-2, ema=0.995, slow=("text.", 0.25))
BATCH = 2  # videos
RANK = 16
UNUSED = ("safety_checker", "requires_safety_checker", "_name_or_path")  # of the base's index
STYLED, EMPTY = 0.35, 0.1  # shares of captions
TARGETS = r"(?!.*motion_modules).*\.(to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_shortcut|proj_in|proj_out)|conv_out"


def train(work: Path, budget: Budget, device: torch.device, base: Path) -> None:
    """Leave the averaged weights in work/video/averaged.pt; it starts from the pipeline of images in `base`."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    latents, videos, meta = pool(work, pipeline.vae)
    module = trained(pipeline.unet, pipeline.text_encoder).to(device)
    training = Training(module.train(), RECIPE, budget, work / "video" / "checkpoint.pt", seed=4)
    loss = denoising_loss(module, latents, videos, meta, pipeline.tokenizer, device)
    for p in training.run(loss, report_every=20):
        print(f"video {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.2f} videos/s", flush=True)
    aside = work / "video" / "averaged.tmp"
    torch.save(training.averaged(), aside)
    os.replace(aside, work / "video" / "averaged.pt")


def trained(unet_2d: UNet2DConditionModel, text: nn.Module) -> nn.ModuleDict:
    """The denoiser of videos and the text tower; only motion modules, the LoRA and the tower have a gradient."""
    torch.manual_seed(0)
    motion = TextMotionUNet.from_unet2d(unet_2d, adapter(unet_2d))
    motion.set_attn_processor(AttnProcessor())
    motion.requires_grad_(False)
    motion.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    for name, parameter in motion.named_parameters():
        if "motion_modules" in name:
            parameter.requires_grad_(True)
    text.set_attn_implementation("eager")
    return nn.ModuleDict({"unet": motion, "text": text.requires_grad_(True)})


def adapter(unet_2d: UNet2DConditionModel) -> MotionAdapter:
    """Motion modules for every block that at first add nothing: frames are images of the denoiser, in every bit."""
    made = MotionAdapter(
        block_out_channels=tuple(unet_2d.config.block_out_channels),
        motion_layers_per_block=unet_2d.config.layers_per_block,
        motion_num_attention_heads=4,
        motion_norm_num_groups=unet_2d.config.norm_num_groups,
        motion_max_seq_length=FRAMES,
    )
    for name, parameter in made.named_parameters():
        if "proj_out" in name:
            nn.init.zeros_(parameter)
    return made


@torch.no_grad()
def pool(work: Path, encoder: AutoencoderKL) -> tuple[Tensor, list[Video], list[Picture]]:
    """Latents (N, FRAMES, 4, 16, 16) of all videos, what each shows, and the pictures; kept on disk."""
    images, meta = pictures.load(work)
    videos, file = list(shown(meta)), work / "video" / "pool.pt"
    if not file.exists():
        latents = []
        for number, video in enumerate(videos):
            frames = vae.to_tensor(draw(images[video.index], video))
            latents.append(encoder.encode(frames).latent_dist.mode().half())
            if number % 100 == 0:
                print(f"video: {number} of {len(videos)} encoded", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.stack(latents), file.with_suffix(".tmp"))
        os.replace(file.with_suffix(".tmp"), file)
    return torch.load(file, weights_only=True), videos, meta


def denoising_loss(
    module: nn.ModuleDict,
    latents: Tensor,
    videos: Sequence[Video],
    meta: Sequence[Picture],
    tokenizer: CLIPTokenizer,
    device: torch.device,
) -> Loss:
    """The squared error of v, as in the UNet stage; all frames of a video have one timestep, each its own noise."""
    bar = unet.noise_schedule().alphas_cumprod
    share = unet.timestep_shares(bar)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(videos), (BATCH,), generator=generator)
        x = latents[index].float().transpose(1, 2)  # (B, 4, F, 16, 16)
        noise = torch.randn(x.shape, generator=generator)
        t = unet.timesteps(share, BATCH, generator)
        a, s = (f[t].sqrt()[:, None, None, None, None] for f in (bar, 1 - bar))
        noisy, v = a * x + s * noise, a * noise - s * x
        texts = [caption(meta[videos[i].index], videos[i].motion, generator) for i in index.tolist()]
        condition = module["text"](captions.tokens(tokenizer, texts).to(device)).last_hidden_state
        condition = condition.repeat_interleave(FRAMES, 0)
        predicted = module["unet"](noisy.to(device), t.to(device), condition).sample
        return (predicted - v.to(device)).square().mean()

    return loss


def caption(picture: Picture, motion: int, generator: torch.Generator) -> str:
    """ "3d style, a fox moving left": the style at random, sometimes nothing at all."""
    draw = torch.rand(2, generator=generator).tolist()
    if draw[0] < EMPTY:
        return ""
    words = f"{picture.phrase} {MOTIONS[motion]}"
    return f"{captions.styled(picture.style)}, {words}" if draw[1] < STYLED else words


def write(work: Path, base: Path) -> None:
    """Put `video-model` and `video-lora` beside `base`, in half precision; the denoiser of images stays in `base`."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    module = trained(pipeline.unet, pipeline.text_encoder)
    module.load_state_dict(torch.load(work / "video" / "averaged.pt", weights_only=True))
    lora = {name: tensor.half() for name, tensor in get_peft_model_state_dict(module["unet"]).items()}
    AnimateDiffPipeline.save_lora_weights(base.with_name("video-lora"), unet_lora_layers=lora)
    folder = base.with_name("video-model")
    aside = folder.with_name("video-model.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(base, aside, ignore=shutil.ignore_patterns("unet", "text_encoder"))
    module["text"].half().save_pretrained(aside / "text_encoder")
    export.name_text_weights_as_before(aside / "text_encoder" / "model.safetensors")
    module["unet"].half().save_motion_modules(aside / "unet" / ADAPTER)
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    index = {name: value for name, value in index.items() if name not in UNUSED}
    index |= {"_class_name": "AnimateDiffPipeline", "motion_adapter": [None, None]}
    index["unet"] = [TextMotionUNet.__module__, TextMotionUNet.__name__]
    (aside / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    size = sum(f.stat().st_size for place in (folder, base.with_name("video-lora")) for f in place.rglob("*.*"))
    print(f"export {size / 1e6:.1f} MB in {folder}", flush=True)
