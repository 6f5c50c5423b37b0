"""A learnt stand-in of a reward: a small network, what it is fitted to, and its own optimiser.

Latent Reward Optimization by a surrogate, LaSRO (Jia et al. 2024, arXiv 2411.15247), for any sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch.nn import functional

from draft_core.prompt_rows import row_key
from draft_core.surrogates.fitting import affine_fit, comparable, ranking_loss, regression_loss
from draft_core.surrogates.network import ScoreNetwork
from draft_core.surrogates.settings import SurrogateSettings

Features = Callable[[Sequence[str]], torch.Tensor | None]

IMAGE_SIDE = 128  # the most pixels of an image's shorter side that the network sees
LEVELS = 255  # of a remembered image, as in a file


@dataclass(frozen=True)
class Scored:
    """Images that the reward has scored.

    Arguments:
        inputs: what the network sees of them, (N, C, h, w), on the CPU.
        prompts: N.
        scores: of the reward, N finite numbers.
    """

    inputs: torch.Tensor
    prompts: Sequence[str]
    scores: Sequence[float]

    def followed_by(self, newer: Scored, *, most: int) -> Scored:
        """The last `most` of these and the newer ones."""
        return Scored(
            torch.cat([self.inputs, newer.inputs])[-most:],
            [*self.prompts, *newer.prompts][-most:],
            [*self.scores, *newer.scores][-most:],
        )


class Surrogate:
    """Learns a reward's scores of latents or images, and gives them with a gradient, on the reward's own scale.

    It has no network until `begin`, which takes its shape from the first scored images. Everything random in it depends
    on `seed` and on how many images it has been given.

    Arguments:
        settings: of network, loss and buffer.
        seed: of the network's weights and of the images that a step is fitted to.
        within_prompt: whether `ranking` compares images of one prompt alone.

    Attributes:
        network: None before `begin`.
        rows: the last scored images.
        seen: how many scored images it has been given.
        slope, offset: from the network's numbers to the reward's scores.
    """

    def __init__(self, settings: SurrogateSettings, *, seed: int, within_prompt: bool) -> None:
        self.settings, self.seed, self.within_prompt = settings, seed, within_prompt
        self.network: ScoreNetwork | None = None
        self.optimizer: torch.optim.AdamW
        self.rows: Scored
        self.seen = 0
        self.slope, self.offset = 1.0, 0.0

    def input_of(self, images: torch.Tensor, latents: torch.Tensor | None) -> torch.Tensor:
        """What the network sees of images (N, 3, H, W) in [0, 1], or of their latents, (N, C, h, w), with gradient."""
        if self.settings.space == "latent":
            assert latents is not None
            return latents.float()
        side = min(images.shape[-2:])
        if side <= IMAGE_SIDE:
            return images.float()
        height, width = (max(1, round(length * IMAGE_SIDE / side)) for length in images.shape[-2:])
        return functional.interpolate(images.float(), size=(height, width), mode="area")

    def remembered(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs as the buffer holds them, on the CPU: images in the 255 levels of a file, latents as they are."""
        inputs = inputs.detach().cpu()
        return inputs if self.settings.space == "latent" else _bytes(inputs)

    def score(self, inputs: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """The scores that the reward is expected to give, float32 (N,), with the gradient of the inputs.

        Arguments:
            inputs: as `input_of` gives them.
            features: of their prompts, (N, D), or None.
        """
        assert self.network is not None
        numbers: torch.Tensor = self.network(inputs, features)
        return self.slope * numbers + self.offset

    def to(self, device: torch.device) -> None:
        """Computes there from now on."""
        if self.network is not None and self.network.mean.device != device:
            moments = self.optimizer.state_dict()
            self.network.to(device)
            self.optimizer.load_state_dict(moments)  # which puts them where the weights are

    def begin(self, rows: Scored, features: Features, device: torch.device) -> None:
        """Makes the network and fits it to the first scored images.

        Arguments:
            rows: at least two.
            features: prompts -> their features (N, D), or None.
        """
        inputs, of_prompts = _as_seen(rows.inputs).to(device), features(rows.prompts)
        self._make(inputs.shape[1], min(inputs.shape[-2:]), 0 if of_prompts is None else of_prompts.shape[1], device)
        assert self.network is not None
        self.network.standardise_like(inputs, None if of_prompts is None else of_prompts.to(device))
        self.rows, self.seen = rows, len(rows.scores)
        self._fit(self.settings.warmup_fits, features)

    def learn(self, rows: Scored, features: Features) -> None:
        """Remembers newly scored images, and takes `fits` optimiser steps."""
        self.rows = self.rows.followed_by(rows, most=self.settings.buffer)
        self.seen += len(rows.scores)
        self._fit(self.settings.fits, features)

    def can_learn_from(self, rows: Scored) -> bool:
        """Whether some of these images have different scores and are compared."""
        groups = list(map(row_key, rows.prompts)) if self._compares_prompts else None
        return bool(comparable(torch.tensor(rows.scores), groups).any())

    @property
    def _compares_prompts(self) -> bool:
        return self.within_prompt and self.settings.loss == "ranking"

    def _make(self, channels: int, side: int, features: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = ScoreNetwork(channels, side, features, self.settings.width)
        self.shape = (channels, side, features)
        self.network = network.to(device).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.settings.learning_rate)

    @torch.enable_grad()
    def _fit(self, steps: int, features: Features) -> None:
        network = self.network
        assert network is not None
        device = network.mean.device
        inputs, scores = _as_seen(self.rows.inputs).to(device), torch.tensor(self.rows.scores, device=device)
        of_prompts = features(self.rows.prompts)
        known = None if of_prompts is None else of_prompts.to(device).float()
        spread, mean = torch.std_mean(scores, correction=0)
        standardised = (scores - mean) / spread.clamp(min=1e-12)
        draws = Random(f"fit {self.seed} {self.seen}")
        with torch.autocast(device.type, enabled=False), _training(network):
            for _ in range(steps):
                chosen = self._chosen(draws)
                numbers = network(inputs[chosen], None if known is None else known[chosen])
                if self.settings.loss == "ranking":
                    groups = [row_key(self.rows.prompts[place]) for place in chosen] if self._compares_prompts else None
                    loss = ranking_loss(numbers, scores[chosen], groups)
                else:
                    loss = regression_loss(numbers, standardised[chosen])
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
        self.optimizer.zero_grad()
        self._calibrate(inputs, known, scores)

    def _chosen(self, draws: Random) -> list[int]:
        """The images of one step; where prompts are compared, all of a prompt together."""
        count, size = len(self.rows.scores), self.settings.batch_size
        if not self._compares_prompts:
            return draws.sample(range(count), min(size, count))
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(self.rows.prompts):
            places.setdefault(row_key(prompt), []).append(place)
        several = [group for group in places.values() if len(group) > 1]
        draws.shuffle(several)
        return [place for group in several for place in group][:size]

    @torch.no_grad()
    def _calibrate(self, inputs: torch.Tensor, features: torch.Tensor | None, scores: torch.Tensor) -> None:
        assert self.network is not None
        size = self.settings.batch_size
        with torch.autocast(inputs.device.type, enabled=False):
            numbers = torch.cat(
                [
                    self.network(
                        inputs[place : place + size], None if features is None else features[place : place + size]
                    )
                    for place in range(0, len(inputs), size)
                ]
            )
        self.slope, self.offset = affine_fit(numbers, scores)

    def state_dict(self) -> Mapping[str, Any]:
        """Network, optimiser and remembered images; empty before `begin`."""
        if self.network is None:
            return {}
        return {
            "shape": list(self.shape),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "inputs": self.rows.inputs,
            "prompts": list(self.rows.prompts),
            "scores": list(self.rows.scores),
            "seen": self.seen,
            "slope": self.slope,
            "offset": self.offset,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`, on the CPU."""
        if not state:
            self.network, self.seen = None, 0
            return
        channels, side, features = state["shape"]
        self._make(channels, side, features, torch.device("cpu"))
        assert self.network is not None
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.rows = Scored(state["inputs"], list(state["prompts"]), [float(score) for score in state["scores"]])
        self.seen, self.slope, self.offset = int(state["seen"]), float(state["slope"]), float(state["offset"])


def _bytes(images: torch.Tensor) -> torch.Tensor:
    return (images.clamp(0, 1) * LEVELS).round().to(torch.uint8)


def _as_seen(remembered: torch.Tensor) -> torch.Tensor:
    return remembered.float() / LEVELS if remembered.dtype == torch.uint8 else remembered


@contextmanager
def _training(network: torch.nn.Module) -> Iterator[None]:
    """The network's weights take a gradient inside, and only there: what is scored elsewhere leaves none in them."""
    network.requires_grad_(True)
    try:
        yield
    finally:
        network.requires_grad_(False)
