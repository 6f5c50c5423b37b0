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
    """Means over the image of many small filters and a few deeper layers, and a prompt, by a linear and a hidden layer.

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
        seen_mean, seen_std: of the means over the image and the prompt's features, (1, F), likewise.
    """

    mean: torch.Tensor
    std: torch.Tensor
    seen_mean: torch.Tensor
    seen_std: torch.Tensor

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
        self.seen = TEXTURES * width + sum(widths) + features
        for name, size in (("mean", (1, channels, 1, 1)), ("seen_mean", (1, self.seen))):
            self.register_buffer(name, torch.zeros(size))
            self.register_buffer(name.replace("mean", "std"), torch.ones(size))
        self.hidden = nn.Linear(self.seen, width)
        self.linear = nn.Linear(self.seen, 1)
        self.last = nn.Linear(width, 1)

    @torch.no_grad()
    def standardise_like(self, inputs: torch.Tensor, features: torch.Tensor | None) -> None:
        """Takes means and deviations from these inputs, (N, C, h, w), and their prompts' features, (N, D)."""
        std, mean = torch.std_mean(inputs, dim=(0, 2, 3), keepdim=True, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=LEAST))
        std, mean = torch.std_mean(self._summary(inputs, features), dim=0, keepdim=True, correction=0)
        self.seen_mean.copy_(mean)
        self.seen_std.copy_(std.clamp(min=LEAST))

    def forward(self, inputs: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """One number for each input, (N,), in no unit.

        Arguments:
            inputs: (N, C, h, w), float32.
            features: of the prompts, (N, D); None if the network was made for none.
        """
        seen = (self._summary(inputs, features) - self.seen_mean) / self.seen_std
        number: torch.Tensor = self.linear(seen) + self.last(functional.silu(self.hidden(seen)))
        return number.squeeze(1)

    def _summary(self, inputs: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Means over the image, and the prompt's features, (N, F)."""
        x = (inputs - self.mean) / self.std
        parts = [functional.relu(self.textures(x)).mean(dim=(2, 3))]
        for halve in self.halvings:
            x = functional.silu(halve(x))
            parts.append(x.mean(dim=(2, 3)))
        return torch.cat([*parts, *([] if features is None else [features])], dim=1)
