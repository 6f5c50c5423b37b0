"""The images that a pipeline makes of finished latents, with a gradient in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from draft_core.errors import SamplerError
from draft_core.learners.latents.ending import Ending
from draft_core.sampling.chain import DryRun
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler


@dataclass(frozen=True)
class Decoded:
    """What was made of latents.

    Arguments:
        images: (B, 3, H, W) in [0, 1], (B, F, 3, H, W) for video.
        latents: what the decoder was given, unpacked and in its units; None where `vae.decode` was not called once.
    """

    images: torch.Tensor
    latents: torch.Tensor | None


def decode(sampler: DifferentiableSampler, rollout: Rollout, x0: torch.Tensor) -> Decoded:
    """The images of finished latents, through all that follows the last step of the pipeline's call.

    Autograd records it if the caller records.

    Arguments:
        rollout: of `outline_of`, for the prompts of these latents.
        x0: (B, ...), in the shape that the scheduler sees.

    Raises:
        SamplerError: if the images carry no gradient of the latents where these have one.
    """
    origin = rollout.origin
    assert origin is not None
    run = DryRun(sampler, origin.prompts, origin.blanks)
    run.replay_encoders(origin.encoded)
    images = run.call.run(Ending(run, sampler.steps, lambda _: x0))
    if torch.is_grad_enabled() and x0.requires_grad and not images.requires_grad and sampler.decode != "unrecorded":
        raise SamplerError(
            "its images carry no gradient of its finished latents",
            where=type(sampler.pipe).__name__,
            next="use a method of the DRaFT family, whose gradient flows through the chain itself",
        )
    return Decoded(images, run.call.seen()["decoded"])
