"""The network of a surrogate: from latents or small images, and a prompt's features, to one number."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SMALLEST = 4  # pixels of the shorter side at which halving ends
MOST_WIDTH = 4  # times the width, of the deeper layers
TEXTURES = 8  # times the width: filters of the layer that sees the whole resolution
LEAST = 1e-6  # deviation that something is divided by


class ScoreNetwork(nn.Module):
    """Means over the image of many small filters, and of a few deeper layers, through a linear and a hidden layer.

    Of any image size. Many filters of three pixels, half of which see no mean, tell textures and edges apart from the
    beginning (random convolutional features); the deeper layers see shapes. Nothing is normalised by image, so that
    contrast is not lost.

    Arguments:
        channels: of its input, C.
        side: shorter side of the input, which decides how often it is halved.
        features: of a prompt, D; 0 where it sees none.
        width: channels of the first deeper layer.

    Attributes:
        mean, std: of each channel, (1, C, 1, 1), by which inputs are standardised.
        pooled_mean, pooled_std: of the means over the image, (1, F), by which they are standardised.
    """

    mean: torch.Tensor
    std: torch.Tensor
    pooled_mean: torch.Tensor
    pooled_std: torch.Tensor

    def __init__(self, channels: int, side: int, features: int, width: int) -> None:
        super().__init__()
        halvings = max(1, (side // SMALLEST).bit_length() - 1)
        widths = [width * min(2**level, MOST_WIDTH) for level in range(halvings)]
        self.textures = nn.Conv2d(channels, TEXTURES * width, 3, padding=1)
        with torch.no_grad():
            seen = self.textures.weight[::2]
            seen -= seen.mean(dim=(2, 3), keepdim=True)
        self.halvings = nn.ModuleList(
            nn.Conv2d(coarse, fine, 3, stride=2, padding=1)
            for coarse, fine in zip([channels, *widths], widths, strict=False)
        )
        pooled = TEXTURES * width + sum(widths)
        for name, size in (("mean", (1, channels, 1, 1)), ("pooled_mean", (1, pooled))):
            self.register_buffer(name, torch.zeros(size))
            self.register_buffer(name.replace("mean", "std"), torch.ones(size))
        self.text = nn.Linear(features, width) if features else None
        self.hidden = nn.Linear(pooled, width)
        self.linear = nn.Linear(pooled, 1)
        self.last = nn.Linear(width, 1)

    @torch.no_grad()
    def standardise_like(self, inputs: torch.Tensor) -> None:
        """Takes means and deviations from these inputs, (N, C, h, w)."""
        std, mean = torch.std_mean(inputs, dim=(0, 2, 3), keepdim=True, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=LEAST))
        std, mean = torch.std_mean(self._pooled(inputs), dim=0, keepdim=True, correction=0)
        self.pooled_mean.copy_(mean)
        self.pooled_std.copy_(std.clamp(min=LEAST))

    def forward(self, inputs: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """One number for each input, (N,), in no unit.

        Arguments:
            inputs: (N, C, h, w), float32.
            features: of the prompts, (N, D), if the network was made for them.
        """
        pooled = (self._pooled(inputs) - self.pooled_mean) / self.pooled_std
        hidden = self.hidden(pooled)
        if self.text is not None and features is not None:
            hidden = hidden + self.text(features)
        number: torch.Tensor = self.linear(pooled) + self.last(functional.silu(hidden))
        return number.squeeze(1)

    def _pooled(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, F)."""
        x = (inputs - self.mean) / self.std
        means = [functional.relu(self.textures(x)).mean(dim=(2, 3))]
        for halve in self.halvings:
            x = functional.silu(halve(x))
            means.append(x.mean(dim=(2, 3)))
        return torch.cat(means, dim=1)
