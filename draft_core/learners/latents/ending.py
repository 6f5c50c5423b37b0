"""The pipeline's call without its networks, ending with latents that are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch

from draft_core.sampling import seams
from draft_core.sampling.chain import DryRun
from draft_core.sampling.pipeline_call import Forward


@final
class Ending:
    """A run without networks whose last step gives the latents that `end` makes of it; steers one `PipelineCall`.

    Arguments:
        run: that is steered otherwise.
        steps: T of the sampler.
        end: latents after the last step -> those that are decoded, shaped like them.
        decode: takes the place of `vae.decode`, with the original before its arguments; None decodes as the call does.

    Attributes:
        shape: of these latents, once there was a last step.
    """

    def __init__(
        self,
        run: DryRun,
        steps: int,
        end: Callable[[torch.Tensor], torch.Tensor],
        decode: Callable[..., Any] | None = None,
    ) -> None:
        self.run, self.steps, self.end, self.decode = run, steps, end, decode
        self.shape = torch.Size()

    def records(self) -> bool:
        """What follows the last step."""
        return self.run.number >= self.steps

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """As the sampler gives them."""
        return arguments

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """The decoder, where something else takes its place."""
        return [] if self.decode is None else [(self.run.pipe.vae, "decode", self.decode)]

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own, but for the last."""
        output = self.run.step(call)
        if self.run.number < self.steps:
            return output
        latents = seams.first_of(output, "prev_sample")
        self.shape = latents.shape
        end = self.end(latents)  # a call may decode another field than the first
        return seams.mapped(lambda tensor: end if tensor.shape == latents.shape else tensor, output)

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Zeros."""
        return self.run.network(network, record, forward, args, kwargs)

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returns, or returned before."""
        return self.run.encode(encode)
