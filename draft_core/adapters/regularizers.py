"""What holds the tuned model near an anchor: penalties, and the moving average of the weights that may be the anchor.

Come here for what `regularizers` of a recipe add to a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from draft_core.adapters.adapter import Adapter
from draft_core.errors import CheckpointError


class MovingAverage:
    """An exponential moving average of weights, m <- d m + (1 - d) w, kept beside them; at first the weights.

    As the anchor of a KL (Rame et al. 2024, arXiv 2406.16768, WARP) it follows what is trained.

    Arguments:
        weights: w, which are trained; on their device, and equal in all processes.
        decay: d, in 0..1.
    """

    def __init__(self, weights: Sequence[torch.nn.Parameter], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.average = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def follow(self) -> None:
        """Takes the weights as they are now into the average."""
        for average, weight in zip(self.average, self.weights, strict=True):
            average.mul_(self.decay).add_(weight, alpha=1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the place of the weights inside, and the weights again afterwards.

        Graphs that were recorded before keep the weights: these are set aside, not overwritten.
        """
        trained = [weight.data for weight in self.weights]
        self._set(self.average)
        try:
            yield
        finally:
            self._set(trained)

    def _set(self, values: Sequence[torch.Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.data = value

    def state(self) -> list[torch.Tensor]:
        """The average on the CPU, in the order of the weights."""
        return [average.cpu().clone() for average in self.average]

    def restore(self, state: Sequence[torch.Tensor] | None) -> None:
        """Continues from a `state`.

        Raises:
            CheckpointError: if there is none, or not of these weights.
        """
        if state is None or [tensor.shape for tensor in state] != [average.shape for average in self.average]:
            raise CheckpointError(
                "it holds no moving average of these weights",
                next="resume with the recipe that the run was started with",
            )
        for average, tensor in zip(self.average, state, strict=True):
            average.copy_(tensor)


class Regularizers:
    """The penalties of a training.

    Arguments:
        adapter: what is trained.
        kl, lora_norm: weights; 0 leaves a penalty out.
        relative: whether the sampler weighs the divergence by itself, so that it is reported and not added.
        ema: decay of the moving average of the weights that a `kl` is taken from; None for the base model.

    Attributes:
        weights: penalty -> its weight.
        asks_base_model: whether each recorded denoiser call is made once more, without what is trained.
        anchor: that moving average.
    """

    def __init__(
        self, adapter: Adapter, *, kl: float, lora_norm: float, ema: float | None = None, relative: bool = False
    ) -> None:
        self.adapter = adapter
        self.asks_base_model = bool(kl) or relative
        self.weights = {"kl": kl, "lora_norm": lora_norm}
        self.anchor = None if ema is None else MovingAverage(adapter.parameters(), ema)

    def penalties(self, divergence: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Penalty -> its value with gradient, (), of those that are weighed here or in the sampler.

        Arguments:
            divergence: of the loss; None where it has none.
        """
        found: dict[str, torch.Tensor] = {}
        if self.asks_base_model and divergence is not None:
            found["kl"] = divergence
        if self.weights["lora_norm"]:
            found["lora_norm"] = self.adapter.penalty()
        return found

    def added(self, value: torch.Tensor, penalties: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A loss with its weighted penalties, ()."""
        for name, penalty in penalties.items():
            if self.weights[name]:
                value = value + self.weights[name] * penalty
        return value

    def follow(self) -> None:
        """After an update: a moving anchor moves."""
        if self.anchor is not None:
            self.anchor.follow()

    def state(self) -> dict[str, list[torch.Tensor]]:
        """What `restore` takes; empty without a moving anchor."""
        return {} if self.anchor is None else {"anchor": self.anchor.state()}

    def restore(self, state: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Continues from a `state`, which may hold more.

        Raises:
            CheckpointError: if it lacks the moving average, or that does not fit.
        """
        if self.anchor is not None:
            self.anchor.restore(state.get("anchor"))
