"""A small random Stable-Diffusion pipeline, a small plugin, and the catalog that offers both."""

from __future__ import annotations

import inspect
import json
import math
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from draft_core.adapters.lora import add_lora, trainable
from draft_core.plugin import Field, PretrainedSpec, RewardConfig, RewardSpec
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.rewards import FrozenModule, checked_images

PROMPTS = ["a cat", "a red dog"]
WIDTH = 16  # of the text embedding


def make_scheduler(cls: Any, **config: Any) -> Any:
    """A scheduler as Stable Diffusion configures it, with those options that its class has."""
    usual = {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1, **config}
    known = inspect.signature(cls).parameters
    return cls(**{name: value for name, value in usual.items() if name in known})


def tiny_pipe(scheduler: Any = None, dtype: torch.dtype = torch.float32, tokenizer: Any = None) -> Any:
    """Seeded, 16x16 pixels, and as deep as needed to have attention and a decoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=600,
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=512,
                eos_token_id=513,
                pad_token_id=513,
            )
        )
    pipe = StableDiffusionPipeline(
        vae=vae.to(dtype).eval(),
        text_encoder=text_encoder.to(dtype).eval() if tokenizer is not None else None,
        tokenizer=tokenizer,
        unet=unet.to(dtype).eval(),
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


def byte_tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer that knows single bytes only."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in codes] + [chr(256 + n) for n in range(256 - len(codes))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


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
