"""Gains between two judgements of the same prompts and noise, by prompt: images of one prompt are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def gains_of_prompts(before: Sequence[float], after: Sequence[float], images: int) -> list[float]:
    """The mean gain of each prompt, whose `images` images stand side by side."""
    gains = [new - old for new, old in zip(after, before, strict=True)]
    return [fmean(gains[first : first + images]) for first in range(0, len(gains), images)]


def rose(before: Sequence[float], after: Sequence[float], images: int) -> str:
    """A mean, and by how many standard errors over prompts it has risen; without these if all gained alike."""
    gains = gains_of_prompts(before, after, images)
    error = standard_error(gains)
    return f"{fmean(after):.3f} ({fmean(gains) / error:+.1f})" if error else f"{fmean(after):.3f}"


def with_error(values: Sequence[float], form: str = ".3f") -> str:
    """Their mean and its standard error."""
    return f"{fmean(values):{form}} ± {standard_error(values):{form}}"


def standard_error(gains: Sequence[float]) -> float:
    """Of their mean."""
    return float(stdev(gains) / len(gains) ** 0.5)
