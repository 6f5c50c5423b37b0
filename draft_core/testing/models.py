"""A small random model in a folder, so that the tests of methods and of pipelines need no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 16  # of the text embedding


def write_small_model(folder: Path) -> Path:
    """A Stable Diffusion of 16 x 16 pixels with seeded random weights, in diffusers' format; returns the folder.

    Its text encoder reads single bytes, its images show nothing, and any recipe may name the folder.

    Arguments:
        folder: where it is written; it is made.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        **small_networks(),
        tokenizer=byte_tokenizer(folder / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def small_networks() -> dict[str, Any]:
    """Denoiser, autoencoder and text encoder, by their names in the pipeline: as deep as needed to have attention."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

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
    return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": text_encoder.eval()}


def byte_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows single bytes only; its files are left in `folder`."""
    from transformers import CLIPTokenizer

    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in codes] + [chr(256 + n) for n in range(256 - len(codes))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: place for place, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)
