"""Small pipelines whose call draws noise beside the initial latents: what `test_replay.py` drives.

An encoded image is a draw from the encoder's posterior, an upscaler adds noise to its input: a replay must draw that
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from tests.support.families import PROMPTS, SIZE, flux, image, ltx, sd, sd3, sdxl, unet


@dataclass(frozen=True)
class Drawing:
    """One of them and how it is called.

    Arguments:
        make: a fresh pipeline.
        arguments: of the call, made anew for each use.
        conditions: whether every denoiser call sees what was drawn, so that another draw changes the last step.
    """

    name: str
    make: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    prompts: tuple[str, ...] = PROMPTS
    steps: int = 4
    conditions: bool = False

    def pipe(self) -> Any:
        """Seeded, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = self.make()
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        return pipe

    def call(self) -> dict[str, Any]:
        """Keywords of the call."""
        return self.arguments()


def mask(batch: int = 2) -> torch.Tensor:
    """Half of an image, (batch, 1, 16, 16)."""
    half = torch.zeros(batch, 1, 16, 16)
    half[..., 8:] = 1
    return half


def as_class(name: str, pipe: Any, **more: Any) -> Any:
    """The pipeline's components in another pipeline class."""
    return getattr(diffusers, name)(**{**pipe.components, **more})


def sdxl_as(name: str) -> Any:
    return as_class(name, sdxl(), add_watermarker=False)


def upscaler() -> Any:
    return diffusers.StableDiffusionUpscalePipeline(
        **{
            name: part
            for name, part in sd().components.items()
            if name not in ("image_encoder", "unet", "requires_safety_checker")
        },
        unet=unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=diffusers.DDPMScheduler(),
    )


FROM_IMAGE = {"strength": 0.6, "guidance_scale": 4.0}

DRAWING = (
    Drawing(
        "StableDiffusionImg2ImgPipeline",
        lambda: sd("StableDiffusionImg2ImgPipeline"),
        lambda: {"image": image(2), **FROM_IMAGE},
    ),
    Drawing(
        "StableDiffusionInpaintPipeline",
        lambda: sd("StableDiffusionInpaintPipeline"),
        lambda: {"image": image(2), "mask_image": mask(), **FROM_IMAGE, **SIZE},
    ),
    Drawing(
        "StableDiffusionInpaintPipeline, a UNet that sees the masked image",
        lambda: sd("StableDiffusionInpaintPipeline", unet=unet(in_channels=9)),
        lambda: {"image": image(2), "mask_image": mask(), **FROM_IMAGE, **SIZE},
        conditions=True,
    ),
    Drawing(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: sdxl_as("StableDiffusionXLImg2ImgPipeline"),
        lambda: {"image": image(2), **FROM_IMAGE},
    ),
    Drawing(
        "StableDiffusionXLInpaintPipeline",
        lambda: sdxl_as("StableDiffusionXLInpaintPipeline"),
        lambda: {"image": image(2), "mask_image": mask(), **FROM_IMAGE, **SIZE},
    ),
    Drawing(
        "StableDiffusion3Img2ImgPipeline",
        lambda: as_class("StableDiffusion3Img2ImgPipeline", sd3()),
        lambda: {"image": image(2), **FROM_IMAGE, **SIZE},
    ),
    Drawing(
        "FluxImg2ImgPipeline",
        lambda: as_class("FluxImg2ImgPipeline", flux()),
        lambda: {"image": image(2), "strength": 0.6, **SIZE},
    ),
    Drawing(
        "StableDiffusionUpscalePipeline",
        upscaler,
        lambda: {"image": image(2, 8), "guidance_scale": 4.0, "noise_level": 20},
        conditions=True,
    ),
    Drawing(
        "LTXImageToVideoPipeline",
        lambda: as_class("LTXImageToVideoPipeline", ltx()),
        lambda: {"image": image(1, 32), "height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0},
        prompts=("a cat",),
        conditions=True,
    ),
)
