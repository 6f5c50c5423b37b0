"""How far a recorded prediction is from the base model's, and what holds it near."""

from __future__ import annotations

from typing import Any

import torch

from draft_core.sampling import seams

TINY = torch.finfo(torch.float32).tiny  # below every norm but that of zeros


def means_between(output: Any, expected: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared difference of two outputs of a denoiser, (), and that of each row, (R,).

    Where the denoiser gives a list, a tensor for each image, rows are not told apart: both are then their mean, (). The
    squares themselves, as large as the prediction, are not kept.
    """
    both = zip(_predictions(output), _predictions(expected), strict=True)
    squares = [(tuned - base).float().square() for tuned, base in both]
    if len(squares) == 1:
        return squares[0].mean(), squares[0].flatten(1).mean(1)
    mean = torch.stack([square.mean() for square in squares]).mean()
    return mean, mean


def hold_back(output: Any, expected: Any, share: float) -> None:
    """Takes from a loss's gradient g, at each row of a prediction, `share` of what leads away from the base model.

    With d the row less the base model's, g becomes g + share max(0, -g.d) d / |d|^2. That is the gradient of a penalty
    k |d|^2 / 2, of `means_between`, whose factor k each row has of its own: it has the unit of g, whatever that is.

    Arguments:
        output: of a recorded call of a denoiser, with gradient.
        expected: what the base model gives in its place.
        share: in 0..1; 0 takes nothing, and with 1 rows turn around the base model and go no further.
    """
    both = list(zip(_predictions(output), _predictions(expected), strict=True)) if share else []
    for tuned, base in both:
        if not tuned.requires_grad:  # of a second denoiser that is not trained
            continue
        rows = len(tuned) if len(both) == 1 else 1  # in a list each image has a tensor
        away = torch.nn.functional.normalize((tuned.detach() - base).float().reshape(rows, -1), eps=TINY)

        def held(gradient: torch.Tensor, away: torch.Tensor = away) -> torch.Tensor:
            whole = gradient.float().reshape(away.shape)
            outward = (-whole * away).sum(1, keepdim=True).clamp_min(0)  # a loss falls against its gradient
            return (whole + share * outward * away).view_as(gradient).to(gradient)

        tuned.register_hook(held)  # type: ignore[no-untyped-call]


def _predictions(output: Any) -> list[torch.Tensor]:
    """What a call of a denoiser predicts: a tensor, or in a list one for each image."""
    return seams.tensors_in(output[0] if isinstance(output, tuple) else getattr(output, "sample", output))
