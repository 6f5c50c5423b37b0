"""The denoiser of `emoji-video`: AnimateDiff's (Guo et al. 2023) on an embedded model, whose text it adds to the time too.

diffusers' own motion UNet knows no `addition_embed_type: text`, by which the embedded denoiser hears most of a prompt.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding
from torch import Tensor

from draft_emoji import FOLDER

BASE = FOLDER / "scenes-model" / "unet"
ADAPTER = "motion_adapter"
TEXT_HEADS = 4  # of the embedded denoiser's pooling


class TimeAndText(TimestepEmbedding):
    """The embedding of a timestep, plus one that is handed in."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, D) from (B, C), and `condition` (B, D)."""
        embedded: Tensor = super().forward(sample)
        return embedded if condition is None else embedded + condition


class TextMotionUNet(UNetMotionModel):
    """A UNetMotionModel that adds a pooled embedding of the text to that of the timestep."""

    @functools.wraps(UNetMotionModel.__init__)  # diffusers reads a model's settings off this signature
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        first, text = self.config.block_out_channels[0], self.config.cross_attention_dim
        self.time_embedding = TimeAndText(first, 4 * first, act_fn=self.config.act_fn)
        self.add_embedding = TextTimeEmbedding(text, 4 * first, TEXT_HEADS)

    @classmethod
    def from_unet2d(
        cls, unet: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None, load_weights: bool = True
    ) -> TextMotionUNet:
        """The denoiser of images with the adapter in it; with an adapter that adds nothing, frames are its images."""
        model: TextMotionUNet = super().from_unet2d(unet, motion_adapter, load_weights)
        if load_weights:
            model.add_embedding.load_state_dict(unet.add_embedding.state_dict())
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **more: Any) -> TextMotionUNet:
        """The model of a folder; where that holds a motion adapter alone, on the frozen denoiser of `emoji-scenes`.

        The package so carries those 18 MB once.
        """
        adapter = Path(pretrained_model_name_or_path) / ADAPTER
        if not adapter.is_dir():
            whole: TextMotionUNet = super().from_pretrained(pretrained_model_name_or_path, **more)
            return whole
        dtype = {name: more[name] for name in ("dtype", "torch_dtype") if more.get(name) is not None}
        base = UNet2DConditionModel.from_pretrained(BASE, **dtype)
        return cls.from_unet2d(base, MotionAdapter.from_pretrained(adapter, **dtype)).eval()

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, *args: Any, **more: Any
    ) -> Any:
        """What UNetMotionModel's gives, of latents (B, C, F, h, w) and the text of every frame (B F, L, D)."""
        text = self.add_embedding(encoder_hidden_states[:: sample.shape[2]])
        return super().forward(sample, timestep, encoder_hidden_states, text, *args, **more)
