"""The network of a surrogate: from latents or small images, and a prompt's features, to one number."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SMALLEST = 4  # pixels of the shorter side at which halving ends
MOST_WIDTH = 4  # times the first layer's channels


class ScoreNetwork(nn.Module):
    """A convolutional network of any image size; without normalisation, so that contrast is not lost.

    Arguments:
        channels: of its input, C.
        side: shorter side of the input, which decides how often it is halved.
        features: of a prompt, D; 0 where it sees none.
        width: channels of the first layer.

    Attributes:
        mean, std: of each channel, (1, C, 1, 1), by which inputs are standardised.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int, side: int, features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        halvings = max(0, (side // SMALLEST).bit_length() - 1)
        widths = [width * min(2**level, MOST_WIDTH) for level in range(halvings + 1)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.residuals = nn.ModuleList(_Residual(own) for own in widths)
        self.halvings = nn.ModuleList(
            nn.Conv2d(own, deeper, 3, stride=2, padding=1) for own, deeper in zip(widths, widths[1:], strict=False)
        )
        self.text = nn.Linear(features, widths[-1]) if features else None
        self.head = nn.Sequential(nn.Linear(sum(widths), widths[-1]), nn.SiLU())
        self.last = nn.Linear(widths[-1], 1)

    def standardise_like(self, inputs: torch.Tensor) -> None:
        """Takes mean and deviation of each channel from these inputs, (N, C, h, w)."""
        std, mean = torch.std_mean(inputs, dim=(0, 2, 3), keepdim=True, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-6))

    def forward(self, inputs: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """One number for each input, (N,), in no unit.

        Arguments:
            inputs: (N, C, h, w), float32.
            features: of the prompts, (N, D), if the network was made for them.
        """
        x = self.first((inputs - self.mean) / self.std)
        pooled = []
        for level, residual in enumerate(self.residuals):
            x = residual(x if level == 0 else self.halvings[level - 1](x))
            pooled.append(x.mean(dim=(2, 3)))  # what is fine is pooled where it is still to be seen
        hidden = self.head(torch.cat(pooled, dim=1))
        if self.text is not None and features is not None:
            hidden = hidden + functional.silu(self.text(features)) * hidden.tanh()
        number: torch.Tensor = self.last(hidden).squeeze(1)
        return number


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.as_tensor(self.other(functional.silu(self.one(functional.silu(x)))))
