"""A small random Stable-Diffusion pipeline, a small plugin, and the catalog that offers both."""

from __future__ import annotations

import inspect
import math
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from draft_core.adapters.lora import add_lora, trainable
from draft_core.plugin import Field, PretrainedSpec, RewardConfig, RewardSpec
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.rewards import FrozenModule, checked_images
from draft_core.testing.models import WIDTH, byte_tokenizer, small_networks

PROMPTS = ["a cat", "a red dog"]


def make_scheduler(cls: Any, **config: Any) -> Any:
    """A scheduler as Stable Diffusion configures it, with those options that its class has."""
    usual = {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1, **config}
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in usual.items() if name in known})


def tiny_pipe(scheduler: Any = None, dtype: torch.dtype = torch.float32, tokenizer: Any = None) -> Any:
    """Seeded, 16x16 pixels, and as deep as needed to have attention and a decoder."""
    networks = small_networks()
    pipe = StableDiffusionPipeline(
        vae=networks["vae"].to(dtype),
        text_encoder=networks["text_encoder"].to(dtype) if tokenizer is not None else None,
        tokenizer=tokenizer,
        unet=networks["unet"].to(dtype),
        scheduler=scheduler or make_scheduler(DDIMScheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_lora(pipe: Any, rank: int = 2, *, std: float | None = None) -> Any:
    """The pipeline, with a LoRA of seeded weights on it; with `std` all of them are normal, and it changes images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=rank)
        for weight in () if std is None else trainable(pipe):
            torch.nn.init.normal_(weight, std=std)
    return pipe


def embeddings(dtype: torch.dtype = torch.float32, batch: int = 2) -> dict[str, torch.Tensor]:
    """Prompt embeddings for a pipeline without a text encoder."""
    generator = torch.Generator().manual_seed(3)
    positive, negative = torch.randn(2, batch, 5, WIDTH, generator=generator, dtype=dtype)
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


# A recipe of the tiny catalog.
GOOD: dict[str, Any] = {
    "model": {"pretrained": "tiny", "num_inference_steps": 3},
    "prompts": "tiny-train",
    "rewards": [{"kind": "redness"}],
}


class RednessConfig(RewardConfig):
    """How red an image is."""

    kind: Literal["redness"] = "redness"
    contrast: float = Field(1.0, gt=0, description="Factor of the score.")


class ClockConfig(RewardConfig):
    """A measure without gradient."""

    kind: Literal["brightness"] = "brightness"


class Redness(FrozenModule):
    """Mean of red minus half of green and blue, times the contrast."""

    def __init__(self, config: RednessConfig) -> None:
        super().__init__()
        self.contrast = config.contrast

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        images = checked_images(images, [""] * len(images), where="reward 'redness'")
        red, green, blue = images.mean(dim=(-2, -1)).unbind(dim=1)
        return self.contrast * (red - (green + blue) / 2)


class Brightness(FrozenModule):
    """Mean level, without gradient."""

    def __init__(self, config: ClockConfig) -> None:
        super().__init__()

    @torch.no_grad()
    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.float().mean(dim=(1, 2, 3))


class Impatient(Redness):
    """Redness whose eighth call with a gradient is a Ctrl-C, once in a process."""

    calls = 0

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if images.requires_grad:
            Impatient.calls += 1
        if Impatient.calls == 8:  # one of them predicts the memory of an update
            Impatient.calls += 1
            signal.raise_signal(signal.SIGINT)
        return super().forward(images, prompts)


class Nan(Redness):
    """Redness that is NaN in some of its calls, counted from 1."""

    def __init__(self, config: RednessConfig, calls: Collection[int]) -> None:
        super().__init__(config)
        self.count, self.calls = 0, calls

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        self.count += 1
        return super().forward(images, prompts) * (math.nan if self.count in self.calls else 1.0)


def spec(kind: str, config: type[RewardConfig], factory: str, **more: Any) -> RewardSpec:
    defaults = {"summary": f"the {kind} of an image", "unit": "level", "code_license": "Apache-2.0"}
    return RewardSpec(kind=kind, config=config, factory=factory, **{**defaults, **more})


REDNESS = spec("redness", RednessConfig, "tests.support.tiny:Redness")
BRIGHTNESS = spec("brightness", ClockConfig, "tests.support.tiny:Brightness", differentiable=False)


def tiny_catalog(folder: Path) -> Catalog:
    """Both rewards, and under `tiny` a saved pipeline with two prompt lists; what is there already is taken."""
    if not (folder / "model").is_dir():
        tiny_pipe(tokenizer=byte_tokenizer(folder / "bytes")).save_pretrained(folder / "model")
        (folder / "train.txt").write_text("a cat\na dog\na red hat\n\n")
        (folder / "heldout.txt").write_text("a bird\na fish\n")
    pretrained = PretrainedSpec(
        alias="tiny",
        summary="random",
        folder=folder / "model",
        license="Apache-2.0",
        prompts={"tiny-train": folder / "train.txt", "tiny-heldout": folder / "heldout.txt"},
        call={"num_inference_steps": 3, "guidance_scale": 3.0},
    )
    distribution = Distribution("tiny-plugin", "1.2")
    return Catalog(
        rewards={spec.kind: Entry(spec, distribution) for spec in (BRIGHTNESS, REDNESS)},
        pretrained={"tiny": Entry(pretrained, distribution)},
    )
