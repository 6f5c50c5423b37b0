"""A small network that decodes in training what the pipeline's own decoder would: diffusers' `AutoencoderTiny`.

No family's scaling is known here. A pipeline divides its latents by its decoder's `scaling_factor` and may add its
`shift_factor`; a run without networks shows what it does, and a tiny decoder is given the latents before that.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError

from draft_core.errors import DraftError, SamplerError, first_line
from draft_core.rewards.hub import hub_or_cache
from draft_core.sampling import seams
from draft_core.sampling.decoders.reached import DecoderReachedError, leave

REPLACEABLE = (AutoencoderKL, AutoencoderTiny)  # whose latents tiny decoders are made for
FIELD = "model.decoder"
ALONE = "an AutoencoderTiny takes the place of an AutoencoderKL alone"
NEAR = 0.01  # relative; bfloat16 tells no less apart, and published shifts are a tenth of the scale


class TinyDecoder:
    """Decodes what a pipeline gives its own decoder, shift + scale * latents, by an `AutoencoderTiny`.

    Copies of a sampler share it, so that shift and scale are found once.

    Arguments:
        vae: takes the latents as the scheduler leaves them, but for factors of its own (those published have 1 and 0).

    Attributes:
        shift, scale: of the pipeline.
    """

    def __init__(self, vae: AutoencoderTiny) -> None:
        self.vae = vae
        self.shift = self.scale = math.nan

    def fit(self, sampler: Any) -> None:
        """Finds what the sampler's pipeline does with its latents before it decodes, the first time.

        Raises:
            SamplerError: if it is anything but a scale and a shift that its decoder's config says.
        """
        if math.isnan(self.scale):
            self.shift, self.scale = _shift_and_scale(sampler)

    def assume(self, *, shift: float, scale: float) -> None:
        """Takes them as they are said to be: where tensors have no numbers, they cannot be found."""
        self.shift, self.scale = shift, scale

    def decode(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As `vae.decode`: images in [-1, 1] of what the pipeline's own decoder is given, (B, C, h, w)."""
        config = self.vae.config
        finished = (latents - self.shift) / self.scale
        own = finished / config.scaling_factor + config.shift_factor
        return self.vae.decode(own.to(next(self.vae.parameters()).dtype), *args, **kwargs)


def load_tiny_decoder(location: str, *, dtype: torch.dtype, of: str | None = None) -> AutoencoderTiny:
    """The frozen `AutoencoderTiny` of a folder or a hub name; its config is looked at before its weights are loaded.

    Arguments:
        of: folder or hub name of the model that it decodes for, whose files may say already that it does not fit.

    Raises:
        DraftError: if it is of another class, cannot be loaded, or does not fit.
    """
    try:
        with hub_or_cache(location):
            config = AutoencoderTiny.load_config(location)
            name = config.get("_class_name", "of no class that its config names")
            if name != AutoencoderTiny.__name__:
                raise _refusal(f"{location} is {name}", "give an AutoencoderTiny, such as madebyollin/taesd")
            if of is not None:
                _check_against_files(of, config)
            vae, found = AutoencoderTiny.from_pretrained(
                location, use_safetensors=True, torch_dtype=dtype, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError) as error:
        raise DraftError(
            f"{location} cannot be loaded ({first_line(error)})",
            where=FIELD,
            next="give a folder or a hub name of an AutoencoderTiny in diffusers' format, with safetensors weights",
        ) from error
    if lacking := found["missing_keys"]:
        raise _refusal(f"the weights of {location} lack {len(lacking)} tensors, first {lacking[0]}", "copy it again")
    if not all(weight.isfinite().all() for weight in vae.parameters()):
        raise _refusal(f"the weights of {location} are not finite in {dtype}", "copy it again, or use float32")
    frozen: AutoencoderTiny = vae.requires_grad_(False).eval()
    return frozen


def check_tiny_decoder(pipe: Any, vae: Any) -> None:
    """That `vae` can decode what the pipeline's own decoder is given.

    Raises:
        SamplerError: if one of them is of another kind, or their channels or sizes differ.
    """
    own: Any = getattr(pipe, "vae", None)
    if not isinstance(vae, AutoencoderTiny):
        raise _refusal(f"it is a {type(vae).__name__}", "give an AutoencoderTiny of diffusers")
    if not isinstance(own, REPLACEABLE):
        what = f"decodes by {type(own).__name__}" if own is not None else "has no vae"
        raise _refusal(f"{type(pipe).__name__} {what}, and {ALONE}", "leave it out")
    check_configs(own.config, vae.config)


def _check_against_files(location: str, tiny: Any) -> None:
    """What the files of a model that is not loaded yet say against the config of a tiny decoder.

    Raises:
        SamplerError: as `check_tiny_decoder`.
    """
    try:
        with hub_or_cache(location):
            own = AutoencoderKL.load_config(location, subfolder="vae")
    except (OSError, ValueError):  # no such folder: of a single file, say, which is looked at when it is loaded
        return
    if own.get("_class_name") not in [cls.__name__ for cls in REPLACEABLE]:
        raise _refusal(f"{location} decodes by {own.get('_class_name')}, and {ALONE}", "leave it out")
    check_configs(own, tiny)


def check_configs(own: Any, tiny: Any) -> None:
    """That two decoders, by their configs, make images of the same size from the same latents.

    Arguments:
        own: of an AutoencoderKL or AutoencoderTiny.
        tiny: of an AutoencoderTiny.

    Raises:
        SamplerError: if they do not.
    """
    for name, usual, what in (("latent_channels", 4, "channels of latents"), ("out_channels", 3, "channels of images")):
        if own.get(name, usual) != tiny.get(name, usual):
            raise _refusal(
                f"it has {tiny.get(name, usual)} {what}, and the model's own decoder {own.get(name, usual)}",
                "give one that was made for this model",
            )
    factors = _factor(own), _factor(tiny)
    if factors[0] != factors[1]:
        raise _refusal(
            f"it enlarges {factors[1]} times, and the model's own decoder {factors[0]} times",
            "give one that was made for this model",
        )


def _shift_and_scale(sampler: Any) -> tuple[float, float]:
    """Those that the config of the pipeline's own decoder says, as far as a run without networks shows them."""
    config = sampler.pipe.vae.config
    given = _decoder_input(sampler)
    lowest, highest = float(given.min()), float(given.max())
    scale = 1 / config.scaling_factor
    is_one_of_two = torch.minimum((given - lowest).abs(), (given - highest).abs()).max() <= NEAR * scale
    for shift in {0.0, config.get("shift_factor") or 0.0}:
        if is_one_of_two and max(abs(lowest - shift), abs(highest - shift - scale)) <= NEAR * scale:
            return shift, scale
    raise _refusal(
        f"what {type(sampler.pipe).__name__} gives its decoder is not its latents divided by the scaling_factor of its "
        "config",
        "leave it out",
    )


def _decoder_input(sampler: Any) -> torch.Tensor:
    """What the pipeline makes of finished latents of zeros and ones before it decodes, in float32."""
    alone = copy.copy(sampler)
    alone.decoder = None

    def step(original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        latents = seams.first_of(output, "prev_sample")
        marks = (torch.arange(latents.numel(), device=latents.device) % 2).view(latents.shape).to(latents)
        return seams.mapped(lambda tensor: marks if tensor.shape == latents.shape else tensor, output)

    pipe = sampler.pipe
    with seams.replaced(pipe.scheduler, "step", step), seams.replaced(pipe.vae, "decode", leave):
        try:
            alone.watch()
        except DecoderReachedError as reached:
            return reached.latents.detach().float()
    raise _refusal(f"{type(pipe).__name__} does not decode its latents by `vae.decode`", "leave it out")


def _factor(config: Any) -> int:
    """How many times larger a decoder makes height and width."""
    if blocks := config.get("num_decoder_blocks"):
        return int(config.get("upsampling_scaling_factor", 2) ** (len(blocks) - 1))
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _refusal(what: str, advice: str) -> SamplerError:
    return SamplerError(what, where=FIELD, next=advice)
