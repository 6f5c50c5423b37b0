"""From images to the latents that a pipeline would decode to them: what learners of given images start from.

No family's packing or scaling is known here. What the decoder gets of the latents after the last step is found by runs
without networks, and undone: latents are numbered to see where each goes, and the rest is a scale and a shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.errors import SamplerError, one_line
from draft_core.learners.latents.ending import Ending
from draft_core.sampling import pipelines
from draft_core.sampling.chain import PROBE_PROMPT, DryRun
from draft_core.sampling.decoders.reached import DecoderReachedError, leave
from draft_core.sampling.sampler import DifferentiableSampler

DIGITS = 16  # of a number that tells latents apart: so few that bfloat16 tells them apart after a scale and a shift
SIDE = 256  # of an image by which the encoder's factor is found


@dataclass(frozen=True)
class DecoderInput:
    """What a pipeline's decoder gets of its finished latents: shift + scale * latents, rearranged.

    Arguments:
        shape: of the latents of one image, (1, ...), as the scheduler sees them.
        shift, scale: shaped like what the decoder gets, (1, C, h, w) or (1, C, 1, h, w).
        places: number of the latent that each of these values is made of, flat.
    """

    shape: torch.Size
    shift: torch.Tensor
    scale: torch.Tensor
    places: torch.Tensor

    def undone(self, values: torch.Tensor) -> torch.Tensor:
        """The latents, (1, ...), of which the decoder would get these values."""
        latents = values.new_empty(values.numel())
        latents[self.places] = ((values - self.shift) / self.scale).flatten()
        return latents.view(self.shape)


class ImageEncoder:
    """The latents of images, by the pipeline's own encoder, taken at the mode of its distribution.

    Arguments:
        sampler: whose call says the size of the images.

    Attributes:
        size: height and width of the images that the pipeline makes, in pixels.

    Raises:
        SamplerError: if the pipeline has no encoder for images, makes videos, or its decoder gets something else than
            its latents scaled, shifted and rearranged.
    """

    def __init__(self, sampler: DifferentiableSampler) -> None:
        self.pipe = sampler.pipe
        self.vae: Any = getattr(self.pipe, "vae", None)
        if not hasattr(self.vae, "encode"):
            raise self._refusal("its images cannot be encoded: it has no `vae` with an encoder")
        self.input = self._decoder_input(sampler)
        self.has_frames = self.input.shift.ndim == 5
        if self.has_frames and self.input.shift.shape[2] > 1:
            raise self._refusal("it makes videos, and pairs are of images")
        probe = self._encoded(torch.zeros(1, 3, SIDE, SIDE))
        factors = {SIDE / side for side in probe.shape[-2:]}
        self.size = (0, 0)
        if len(factors) == 1 and probe.ndim == self.input.shift.ndim and probe.shape[1] == self.input.shift.shape[1]:
            height, width = (int(side * factor) for side in self.input.shift.shape[-2:] for factor in factors)
            self.size = height, width
        if 0 in self.size:
            raise self._refusal(
                f"its encoder gives {tuple(probe.shape)} of an image of {SIDE} pixels, its decoder takes "
                f"{tuple(self.input.shift.shape)}"
            )

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The finished latents of an image, (1, ...), as the scheduler sees them.

        Arguments:
            image: (1, 3, H, W) in [0, 1], of the size that the pipeline makes.
        """
        return self.input.undone(self._encoded(image).to(self.input.shift))

    def _encoded(self, image: torch.Tensor) -> torch.Tensor:
        """What the encoder gives, in the shape that the decoder takes."""
        processor = getattr(self.pipe, "image_processor", None) or getattr(self.pipe, "video_processor", None)
        if getattr(getattr(processor, "config", None), "do_normalize", True):
            image = 2 * image - 1
        if self.has_frames:
            image = image[:, :, None]
        with torch.no_grad(), _precise(self.vae) as weight:
            try:
                output = self.vae.encode(image.to(weight))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise self._refusal(f"its encoder takes no such image ({one_line(error)})") from error
        distribution = getattr(output, "latent_dist", None)
        if distribution is not None:
            mode: torch.Tensor = distribution.mode()
            return mode
        name = next((name for name in ("latents", "latent") if hasattr(output, name)), None)
        if name is None:
            raise self._refusal(f"its encoder returns {type(output).__name__}, in which no latents are known")
        latents: torch.Tensor = getattr(output, name)
        return latents

    def _decoder_input(self, sampler: DifferentiableSampler) -> DecoderInput:
        probes = _Probes(sampler)
        with pipelines.without_traces(self.pipe):
            shift = probes.decoder_input(torch.zeros_like)
            scale = probes.decoder_input(torch.ones_like) - shift
            shape = probes.shape
            count = math.prod(shape)
            numbers = torch.arange(count, device=shift.device)
            places, unit = torch.zeros_like(numbers), 1
            if shift.numel() != count or not bool((scale != 0).all()):
                raise self._rearranged()
            while unit < count:
                digits = (numbers // unit % DIGITS).view(shape)
                seen = probes.decoder_input(digits.to)
                places += unit * ((seen - shift) / scale).round().long().flatten()
                unit *= DIGITS
            found = DecoderInput(shape, shift, scale, places)
            if not torch.equal(places.sort().values, numbers):
                raise self._rearranged()
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(shift)
            if not torch.allclose(found.undone(probes.decoder_input(noise.to)), noise, atol=0.05):
                raise self._rearranged()
        return found

    def _rearranged(self) -> SamplerError:
        return self._refusal("what its decoder gets is not its latents scaled, shifted and rearranged")

    def _refusal(self, what: str) -> SamplerError:
        return SamplerError(
            what,
            where=type(self.pipe).__name__,
            next="leave out method.pairs, and own samples are ranked; or use another pipeline",
        )


class _Probes:
    """Runs of one image without networks, each of which ends with latents that are given.

    Attributes:
        shape: of these latents, once there was one.
    """

    def __init__(self, sampler: DifferentiableSampler) -> None:
        self.sampler = sampler
        self.blanks: dict[Any, Any] = {}
        self.encoded: Sequence[Any] | None = None
        self.shape = torch.Size()

    def decoder_input(self, end: Any) -> torch.Tensor:
        """What the decoder gets of the latents that `end` makes of the last step's, in float32.

        Raises:
            SamplerError: if the call does not decode, by `vae.decode`.
        """
        run = DryRun(self.sampler, [self.sampler.columns.example or PROBE_PROMPT], self.blanks)
        if self.encoded is not None:
            run.replay_encoders(self.encoded)
        probe = Ending(run, self.sampler.steps, end, decode=leave)
        try:
            run.call.run(probe)
        except DecoderReachedError as reached:
            self.encoded, self.shape = run.encoded, probe.shape
            return reached.latents.detach().float()
        raise SamplerError(
            "its call does not decode its latents by `vae.decode`",
            where=type(self.sampler.pipe).__name__,
            next="leave out method.pairs, and own samples are ranked; or use another pipeline",
        )


@contextmanager
def _precise(vae: Any) -> Iterator[torch.Tensor]:
    """One of its weights; inside they are in float32 where they overflow in float16."""
    weight = next(iter(vae.parameters()))
    if weight.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
        yield weight
        return
    vae.to(torch.float32)
    try:
        yield next(iter(vae.parameters()))
    finally:
        vae.to(torch.float16)
