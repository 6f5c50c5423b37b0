"""Writes the trained parts as a folder of diffusers in half precision: what the plugin ships."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel
from emoji_training import export as images

from . import denoiser

LIMIT_MB = 32.0


def export(work: Path, start: Path, folder: Path) -> None:
    """Replace `folder` by an AnimateDiffPipeline in fp16 safetensors: an image denoiser and its motion adapter.

    AnimateDiffPipeline would save both as one model and the adapter again; loading puts them together anyway.

    Raises:
        ValueError: if it is above LIMIT_MB.
    """
    parts = denoiser.assembled(work, StableDiffusionPipeline.from_pretrained(start, torch_dtype=torch.float32))
    parts.register_modules(
        unet=UNet2DConditionModel.from_pretrained(work / "video" / "unet"),
        motion_adapter=MotionAdapter.from_pretrained(work / "video" / "motion_adapter").half(),
    )
    size = images.write(parts, start / "tokenizer", folder, LIMIT_MB)
    images.drop_origin(folder / "motion_adapter" / "config.json")
    print(f"export {size:.1f} MB in {folder}", flush=True)
    shutil.rmtree(folder.with_name(folder.name + ".tmp"), ignore_errors=True)
