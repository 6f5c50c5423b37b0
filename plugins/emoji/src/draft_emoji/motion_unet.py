"""The denoiser of `emoji-video`: AnimateDiff's (Guo et al. 2023) on an embedded model, and a hint of where things go.

diffusers' own motion UNet knows no `addition_embed_type: text`, by which the embedded denoiser hears most of a prompt.
That denoiser cannot tell places apart but by the edges of the image, so a small network also reads off the prompt the
box that the thing should fill in each frame.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.embeddings import TextTimeEmbedding, TimestepEmbedding
from safetensors.torch import load_file
from torch import Tensor, nn

from draft_emoji import FOLDER

__all__ = ["ModelMixin", "TextMotionUNet"]  # diffusers asks a component's own module for the class that loads it

BASE = FOLDER / "scenes-model" / "unet"
ADAPTER, BOXES = "motion_adapter", "boxes.safetensors"
TEXT_HEADS = 4  # of the embedded denoiser's pooling
READ = 2  # weighted means of the text's tokens, from which boxes are read
WIDTH = 128  # of the network that reads boxes off a prompt
SOFT = 0.02  # sides of the frame over which a box ends


class TimeAndText(TimestepEmbedding):  # type: ignore[misc]
    """The embedding of a timestep, plus one that is handed in."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, D) from (B, C), and `condition` (B, D)."""
        embedded: Tensor = super().forward(sample)
        return embedded if condition is None else embedded + condition


class LatentsAndHint(nn.Conv2d):
    """A convolution of the first channels, to which the others are added."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, h, w) from (N, 4 + C, h, w)."""
        return super().forward(input[:, : self.in_channels]) + input[:, self.in_channels :]


class Boxes(nn.Module):
    """The box that a prompt's thing should fill in each frame, read off the text and drawn; new, it adds nothing."""

    def __init__(self, text: int, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.choose = nn.Linear(text, READ)
        self.read = nn.Sequential(nn.Linear(READ * text, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 3 * frames + 1))
        self.show = nn.Conv2d(1, channels, 3, padding=1)
        for parameter in self.show.parameters():
            nn.init.zeros_(parameter)

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, F, 3) from text (B, L, D), and (B,) in [0, 1] whether it asks for a motion at all.

        Middle x and y and half the side, in sides of the frame.
        """
        chosen = self.choose(text).softmax(1).transpose(1, 2) @ text
        found = self.read(chosen.flatten(1))
        return found[:, 1:].unflatten(1, (self.frames, 3)), found[:, 0].sigmoid()

    def drawn(self, boxes: Tensor, asked: Tensor, height: int, width: int) -> Tensor:
        """What is added to the features of latents, (B, C, F, h, w)."""
        across, down = ((torch.arange(n, device=boxes.device) + 0.5).to(boxes) / n for n in (width, height))
        x, y, half = boxes[..., None].unbind(2)
        inside_x, inside_y = (
            torch.sigmoid((half - (grid - middle).abs()) / SOFT) for grid, middle in ((across, x), (down, y))
        )
        inside = asked[:, None, None, None] * inside_y[..., :, None] * inside_x[..., None, :]
        shown: Tensor = self.show(inside.flatten(0, 1)[:, None])
        return shown.view(*boxes.shape[:2], *shown.shape[1:]).transpose(1, 2)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that an empty list of modules must stay in float32, of which diffusers warns at each change of dtype."""
    return "should be kept in float32: []" not in record.getMessage()


class TextMotionUNet(UNetMotionModel):  # type: ignore[misc]
    """A UNetMotionModel that adds a pooled embedding of the text to that of the timestep."""

    @functools.wraps(UNetMotionModel.__init__)  # type: ignore[misc]  # diffusers reads its settings off this
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        first, text = self.config.block_out_channels[0], self.config.cross_attention_dim
        self.time_embedding = TimeAndText(first, 4 * first, act_fn=self.config.act_fn)
        self.add_embedding = TextTimeEmbedding(text, 4 * first, TEXT_HEADS)
        self.conv_in = LatentsAndHint(self.config.in_channels, first, 3, padding=1)
        self.boxes = Boxes(text, first, self.config.motion_max_seq_length)

    @classmethod
    def from_unet2d(
        cls, unet: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None, load_weights: bool = True
    ) -> TextMotionUNet:
        """The denoiser of images with the adapter in it; with an adapter that adds nothing, frames are its images."""
        told = logging.getLogger(ModelMixin.__module__)
        told.addFilter(_is_news)
        try:
            model: TextMotionUNet = super().from_unet2d(unet, motion_adapter, load_weights)
        finally:
            told.removeFilter(_is_news)
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
        model = cls.from_unet2d(base, MotionAdapter.from_pretrained(adapter, **dtype))
        model.boxes.load_state_dict(load_file(adapter / BOXES))
        model.eval()
        return model

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *args: Any,
        boxes: tuple[Tensor, Tensor] | None = None,
        **more: Any,
    ) -> Any:
        """What UNetMotionModel's gives, of latents (B, C, F, h, w) and the text of every frame (B F, L, D).

        Arguments:
            boxes: where the thing should be, as `Boxes` gives them; read off the text if left out.
        """
        text = encoder_hidden_states[:: sample.shape[2]]
        hint = self.boxes.drawn(*(self.boxes(text) if boxes is None else boxes), *sample.shape[-2:])
        sample = torch.cat([sample, hint.to(sample)], dim=1)
        return super().forward(sample, timestep, encoder_hidden_states, self.add_embedding(text), *args, **more)
