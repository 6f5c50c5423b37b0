"""What is measured of a pipeline class, cheaper than of a family: five checks, each a number or why there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import torch

from draft_core import Draft, StepPlan
from draft_core.adapters.files import load_lora
from draft_core.adapters.lora import trainable
from draft_core.adapters.lora_adapter import Lora
from draft_core.errors import DraftError
from tests.support.drive import (
    call_of,
    gradient,
    gradient_error,
    parameters,
    plain,
    replayed,
    same_global_noise,
    sampler_of,
    seeded,
)
from tests.support.families import Family

CHECKS = ("samples", "gradient", "replay", "batched replay", "early stop", "LoRA round trip")

REFUSED = "refused: "
BOUND = 1e-5  # of images in [0, 1], and of gradients relative to their norm


def class_row(family: Family, checks: tuple[str, ...] = CHECKS) -> dict[str, str]:
    """The checks of these names, each a verdict: "identical", a difference, or "refused"."""
    row = {}
    for name in checks:
        try:
            row[name] = MEASURED[name](family)
        except DraftError as refusal:
            row[name] = f"{REFUSED}{refusal.what}"
    return row


def class_cells(family: Family) -> dict[str, str]:
    """The row of the table: a refusal's reason goes to the notes, but for copies in one batch."""
    row = class_row(family)
    reasons = [
        row[name].removeprefix(REFUSED) for name in CHECKS if name != "batched replay" and _is_refused(row[name])
    ]
    cells = {name: "refused" if _is_refused(row[name]) else row[name] for name in CHECKS}
    notes = "; ".join(dict.fromkeys([*([family.note] if family.note else []), *reasons]))
    return {"pipeline class": f"`{family.name}`", "guidance here": family.guidance, **cells, "notes": notes}


def agrees(found: str, cell: str) -> bool:
    """Whether a cell of the page says what was found: the same refusal, or numbers within what the tests demand."""
    if _is_refused(found) or cell == "refused":
        return _is_refused(found) and cell == "refused"
    return all(_size(text) <= BOUND for text in (found, cell)) and ("own" in found) == ("own" in cell)


def _is_refused(text: str) -> bool:
    return text.startswith(REFUSED)


def _size(text: str) -> float:
    number = text.split(",")[0]
    return 0.0 if number == "identical" else float(number)


def verdict(difference: float) -> str:
    """ "identical", or the difference."""
    return "identical" if difference == 0 else f"{difference:.0e}"


def _samples(family: Family) -> str:
    """Full DRaFT, against the pipeline's own call."""
    pipe = family.pipe()
    expected = _plain(family, pipe)
    sampler = sampler_of(family, pipe)
    with same_global_noise():
        images = sampler(family.prompts, plan=Draft().plan(sampler.steps, Random(0)), generator=seeded()).images
    assert images.shape == expected.shape, (images.shape, expected.shape)
    assert gradient(images, parameters(pipe)).norm() > 0
    return verdict(float((images.detach() - expected).abs().max()))


def _gradient(family: Family) -> str:
    return verdict(gradient_error(family, family.pipe(family.precise)))


def _replay(family: Family, *, batched: bool = False) -> str:
    """The last step again from its own latents, against the samples."""
    with torch.no_grad():
        samples, again = replayed(sampler_of(family, family.pipe()), family.prompts, batched=batched)
    return verdict(float((again - torch.cat([samples, samples])).abs().max()))


def _batched_replay(family: Family) -> str:
    return _replay(family, batched=True)


def _early_stop(family: Family) -> str:
    """The x0 of the last step, to which the scheduler steps anyway, against the samples."""
    sampler = sampler_of(family, family.pipe())
    last = sampler.steps - 1
    images = []
    for stop_at in (None, last):
        with torch.no_grad(), same_global_noise():
            plan = StepPlan(sampler.steps, frozenset(), stop_at=stop_at)
            images.append(sampler(family.prompts, plan=plan, generator=seeded()).images)
    whole, stopped = images
    assert stopped.isfinite().all()
    return verdict(float((stopped - whole).abs().max()))


def _lora(family: Family) -> str:
    """A LoRA on the default targets, saved and loaded into a fresh pipeline: the images of both."""
    pipe = family.pipe()
    base = _plain(family, pipe)
    lora = Lora(pipe, rank=2)
    lora.attach()
    with torch.no_grad():
        for weight in trainable(pipe):
            weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(2)))
    tuned = _plain(family, pipe)
    assert not torch.equal(tuned, base)
    again = family.pipe()
    with tempfile.TemporaryDirectory() as folder:
        lora.save(Path(folder))
        load_lora(again, Path(folder))
    found = verdict(float((_plain(family, again) - tuned).abs().max()))
    return f"{found}, own format" if lora.notes() else found


def _plain(family: Family, pipe: Any) -> torch.Tensor:
    with same_global_noise():
        return plain(pipe, call_of(family))


MEASURED: dict[str, Any] = {
    "samples": _samples,
    "gradient": _gradient,
    "replay": _replay,
    "batched replay": _batched_replay,
    "early stop": _early_stop,
    "LoRA round trip": _lora,
}
