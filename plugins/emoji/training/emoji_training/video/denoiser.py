"""Trains motion modules, a LoRA and the text tower on videos; the denoiser of scenes itself stays frozen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from draft_emoji.motion_unet import ADAPTER, BOXES, TextMotionUNet
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from .. import captions, export, pictures, unet, vae
from ..loop import Budget, Loss, Recipe, Training
from ..pictures import Picture
from .moving import ALL, FRAMES, THINGS, Video, box, draw, is_hidden, shown

RECIPE = Recipe(lr=1e-3, weight_decay=1e-2, ema=0.995, slow=("text.", 0.25))
BATCH = 2  # videos
RANK = 16
UNUSED = ("safety_checker", "requires_safety_checker", "_name_or_path")  # of the base's index
NOISY = 500  # a timestep
READING_STEPS, READING_LR = 5000, 3e-3
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
    module.load_state_dict(training.averaged())
    read_boxes(module, pipeline.tokenizer)
    aside = work / "video" / "averaged.tmp"
    torch.save(module.state_dict(), aside)
    os.replace(aside, work / "video" / "averaged.pt")


def trained(unet_2d: UNet2DConditionModel, text: nn.Module) -> nn.ModuleDict:
    """The denoiser of videos and the text tower; only motion modules, the LoRA and the tower have a gradient."""
    torch.manual_seed(0)
    motion = TextMotionUNet.from_unet2d(unet_2d, adapter(unet_2d))
    motion.set_attn_processor(AttnProcessor())
    motion.requires_grad_(False)
    motion.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    for name, parameter in motion.named_parameters():
        if "motion_modules" in name or name.startswith("boxes.show"):
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
    share[NOISY:] *= 3  # there the way is decided
    share = share / share.sum()

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
        asked = torch.tensor([float(bool(text)) for text in texts])
        boxes = torch.stack([filled(videos[i]) for i in index.tolist()])
        true = boxes.to(device), asked.to(device)
        predicted = module["unet"](noisy.to(device), t.to(device), condition, boxes=true).sample
        return (predicted - v.to(device)).square().mean()

    return loss


def filled(video: Video) -> Tensor:
    """The boxes (FRAMES, 3) that its thing fills, in the units of `draft_emoji.motion_unet.Boxes`."""
    found = torch.tensor([box(video, frame) for frame in range(FRAMES)], dtype=torch.float32) / pictures.SIZE
    half = found[:, :1] / 2
    return torch.cat([found[:, 1:] + half, half], dim=1)


def read_boxes(module: nn.ModuleDict, tokenizer: CLIPTokenizer) -> None:
    """Teach the network of boxes to read them off the finished text tower, of all that is not hidden."""
    styles = ["", *(f"{captions.styled(style)}, " for style in pictures.STYLES)]
    pairs = [(i, m) for i in range(len(THINGS)) for m, words in enumerate(ALL) if not is_hidden(i, words)]
    texts = [f"{style}{THINGS[i]} {' and '.join(ALL[m])}" for i, m in pairs for style in styles]
    boxes = [filled(Video(0, m)) for _, m in pairs for _ in styles]
    plain = [*(f"{style}{thing}" for thing in THINGS for style in styles), ""]
    with torch.no_grad():
        ids = captions.tokens(tokenizer, texts + plain)
        states = torch.cat([module["text"](part).last_hidden_state for part in ids.split(64)])
    wanted, asked = torch.stack(boxes), (torch.arange(len(states)) < len(texts)).float()
    reader, generator = module["unet"].boxes, torch.Generator().manual_seed(0)
    parameters = [*reader.choose.parameters(), *reader.read.parameters()]
    optimizer = torch.optim.AdamW([p.requires_grad_(True) for p in parameters], lr=READING_LR, weight_decay=0.1)
    for step in range(READING_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = READING_LR * (1 - step / READING_STEPS)
        some = torch.randint(len(states), (64,), generator=generator)
        moving = some[some < len(texts)]
        found, sure = reader(states[some])
        error = (found[some < len(texts)] - wanted[moving]).square().mean()
        loss = 100 * error + nn.functional.binary_cross_entropy(sure, asked[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"video: boxes are read to {error.sqrt():.4f} of a side, of every prompt that asks", flush=True)


def caption(picture: Picture, motion: int, generator: torch.Generator) -> str:
    """ "3d style, a fox moving left": the style at random, sometimes nothing at all."""
    draw = torch.rand(2, generator=generator).tolist()
    if draw[0] < EMPTY:
        return ""
    words = f"{picture.phrase} {' and '.join(ALL[motion])}"
    return f"{captions.styled(picture.style)}, {words}" if draw[1] < STYLED else words


def reread_boxes(base: Path) -> None:
    """Teach the network of boxes of the `video-model` beside `base` anew, from nothing; the rest of it stays."""
    folder = base.with_name("video-model")
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32)
    module = trained(pipeline.unet, CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32))
    file = folder / "unet" / ADAPTER / BOXES
    shown = {name: tensor for name, tensor in load_file(file).items() if name.startswith("show.")}
    module["unet"].boxes.load_state_dict(shown, strict=False)
    read_boxes(module, pipeline.tokenizer)
    save_file(dict(module["unet"].boxes.state_dict()), file)


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
    motion = aside / "unet" / ADAPTER
    module["unet"].save_motion_modules(motion)
    MotionAdapter.from_pretrained(motion).half().save_pretrained(motion)
    export.drop_origin(motion / "config.json")
    save_file(dict(module["unet"].boxes.state_dict()), motion / BOXES)
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    index = {name: value for name, value in index.items() if name not in UNUSED}
    index |= {"_class_name": "AnimateDiffPipeline", "motion_adapter": [None, None]}
    index["unet"] = [TextMotionUNet.__module__, TextMotionUNet.__name__]
    (aside / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    size = sum(f.stat().st_size for place in (folder, base.with_name("video-lora")) for f in place.rglob("*.*"))
    print(f"export {size / 1e6:.1f} MB in {folder}", flush=True)
