"""Writes the trained parts as diffusers and transformers folders in half precision: what the plugin ships."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, ResNetForImageClassification

from . import clip, unet, vae

LIMIT_MB = 25.0

# Stage -> folder in the package, and class.
SCORERS = {"judge": ("judge", ResNetForImageClassification), "preference": ("preference", CLIPModel)}
SCENE_SCORERS = {
    "scenes-matcher": ("scene-clip", CLIPModel),
    "scenes-judge": ("scene-judge", ResNetForImageClassification),
}


def export(work: Path, folder: Path) -> None:
    """Replace `folder` by a StableDiffusionPipeline in fp16 safetensors, and `clip` beside it by the CLIP.

    Raises:
        ValueError: if the pipeline is above LIMIT_MB.
    """
    matcher, tokenizer = clip.load(work)
    pipeline = StableDiffusionPipeline(
        vae=vae.load(work),
        text_encoder=CLIPTextModel.from_pretrained(work / "unet" / "text_encoder", dtype=torch.float32),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(work / "unet" / "unet"),
        scheduler=unet.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    size = write(pipeline, work / "clip" / "model", folder)
    beside = folder.with_name("clip")
    shutil.rmtree(beside, ignore_errors=True)
    matcher.half().save_pretrained(beside)
    print(f"export {size:.1f} MB in {folder}, the CLIP in {beside}", flush=True)


def export_scenes(work: Path, model: Path) -> None:
    """Put the pipeline of scenes and its scorers beside `model`, whose other parts it shares."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        model,
        unet=UNet2DConditionModel.from_pretrained(work / "scenes" / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(work / "scenes" / "text_encoder", dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    size = write(pipeline, model / "tokenizer", model.with_name("scenes-model"))
    print(f"export {size:.1f} MB in {model.with_name('scenes-model')}", flush=True)
    export_scorers(work, model, SCENE_SCORERS)


def write(pipeline: StableDiffusionPipeline, words: Path, folder: Path) -> float:
    """Replace `folder` by the pipeline in fp16 safetensors and give its size in MB; `words` has the tokenizer's files.

    Raises:
        ValueError: if it is above LIMIT_MB.
    """
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(aside, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # transformers 5 leaves them out, 4.x asks for them
        shutil.copy(words / name, aside / "tokenizer" / name)
    name_text_weights_as_before(aside / "text_encoder" / "model.safetensors")
    complete_tokenizer_config(aside / "tokenizer" / "tokenizer_config.json")
    for config in (aside / "model_index.json", aside / "vae" / "config.json", aside / "unet" / "config.json"):
        drop_origin(config)
    size = sum(f.stat().st_size for f in aside.rglob("*") if f.is_file()) / 1e6
    if size > LIMIT_MB:
        raise ValueError(f"{aside} has {size:.1f} MB, above the {LIMIT_MB} MB that fit a package; make it smaller")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return size


def export_scorers(work: Path, folder: Path, scorers: Mapping[str, tuple[str, type]] = SCORERS) -> None:
    """Put the scorers beside `folder`, in fp16 safetensors."""
    for stage, (name, architecture) in scorers.items():
        beside = folder.with_name(name)
        shutil.rmtree(beside, ignore_errors=True)
        architecture.from_pretrained(work / stage / "model", dtype=torch.float32).half().save_pretrained(beside)
        size = sum(f.stat().st_size for f in beside.rglob("*") if f.is_file()) / 1e6
        print(f"export {size:.1f} MB in {beside}", flush=True)


def name_text_weights_as_before(file: Path) -> None:
    """Put "text_model." before the names, which transformers 5 leaves off when it writes and still reads.

    transformers 4.x would find none of the weights without it, and go on with random ones after a warning.
    """
    weights = {"text_model." + k.removeprefix("text_model."): v for k, v in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def drop_origin(file: Path) -> None:
    """Take out where on this machine a part was loaded from, which nobody reads."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def complete_tokenizer_config(file: Path) -> None:
    """Name the class as every transformers knows it and drop paths of this machine."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "CLIPTokenizer"
    for key in ("name_or_path", "is_local", "local_files_only", "backend"):
        config.pop(key, None)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
