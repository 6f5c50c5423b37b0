"""What came of a run, computed once and then rendered: verdict, table, marks and images of every page and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.evaluation.collapse import Change, EvalRecord, change, over_prompts, percent
from draft_core.reporting.curves import BEST, COLLAPSE, IMAGE_MEASURES, Mark
from draft_core.reporting.run_record import RunRecord, load_images, scale_name
from draft_core.reporting.verdict import RunVerdict, collapsed_at, judged

METHODS = {"draft": "DRaFT", "draft-k": "DRaFT-K", "draft-lv": "DRaFT-LV"}


@dataclass(frozen=True)
class Row:
    """One line of the table: means over prompts with their standard errors, and the paired change.

    Arguments:
        role: "trained" or "judging", "held out", "component" of a score, or "images" for what is measured of them
            without a reward.
        change: from before to the last evaluation.
    """

    name: str
    role: str
    before: Change
    best: Change
    last: Change
    change: Change

    @property
    def percent(self) -> float | None:
        """The change in percent of the magnitude before, None where that says nothing."""
        return percent(self.before, self.change)


@dataclass(frozen=True)
class RunSummary:
    """All that pages and cards say and show of one run.

    Arguments:
        record: what the summary was computed from.
        best: the best evaluation; the base model's where all others lost something.
        rows: the table's lines: trained scores, held-out scores, components of scores, and what is measured of the
            images.
        marks: the best evaluation and the collapse, if they are anywhere but at an end of the run.
        shown: heading -> evaluation whose images are shown: before, best where it is neither end, and last.
        loras: each folder of a LoRA in the run's -> the evaluation at its update.
        images: update -> images (P S, 3, H, W) in [0, 1] of each shown evaluation, those of one prompt side by side;
            empty for a run without its images.
        scaled: scale of the LoRA, 0 and 1 included -> images (N, 3, H, W) of the first N prompts from the first seed;
            empty if none were drawn.
    """

    record: RunRecord
    best: EvalRecord
    verdict: RunVerdict
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...]
    shown: Mapping[str, EvalRecord]
    loras: Mapping[str, EvalRecord]
    images: Mapping[int, torch.Tensor]
    scaled: Mapping[float, torch.Tensor]

    def images_of(self, evaluation: EvalRecord, prompt: int) -> torch.Tensor:
        """The images (S, 3, H, W) of one prompt, by its number."""
        seeds = len(self.record.facts.seeds)
        return self.images[evaluation.update][prompt * seeds : (prompt + 1) * seeds]

    @property
    def phrases(self) -> dict[str, Any]:
        """What the page and the card say alike."""
        facts = self.record.facts
        weights = facts.rewards.items()
        rewards = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in weights)
        return {
            "method": METHODS.get(facts.method, facts.method),
            "aim": f"on {facts.trained_on}, judged by {rewards}" if facts.trained_on else f"to raise {rewards}",
            "items": "rows" if facts.trained_on else "samples",
            "image_count": len(facts.prompts) * len(facts.seeds),
            "which_prompts": "prompts kept out of training" if facts.prompts_are_unseen else "training prompts",
        }


def summarize(record: RunRecord, *, has_images: bool = True) -> RunSummary:
    """The summary of a run; each image file that it needs is read once.

    Arguments:
        has_images: whether the folder holds the images; the summary has none otherwise.

    Raises:
        CheckpointError: if images of the run are gone.
    """
    best = record.best
    collapse = collapsed_at(record.rule, record.evaluations)
    shown = _shown(record, best)
    count = len(record.facts.prompts) * len(record.facts.seeds)
    images = {
        evaluation.update: load_images(record.folder, evaluation.update, count)
        for evaluation in shown.values()
        if has_images
    }
    loras = {"lora": record.last, "lora-best": best}
    return RunSummary(
        record=record,
        best=best,
        verdict=judged(record.rule, record.evaluations, role=record.facts.role),
        rows=_rows(record, best),
        marks=_marks(record, best, collapse),
        shown=shown,
        loras={name: evaluation for name, evaluation in loras.items() if (record.folder / name).is_dir()},
        images=images,
        scaled=_scaled(record, images) if has_images else {},
    )


def _marks(record: RunRecord, best: EvalRecord, collapse: int | None) -> tuple[Mark, ...]:
    found = [] if best is record.before else [Mark(best.update, "best evaluation", BEST)]
    return (*found, *([] if collapse is None else [Mark(collapse, "collapse", COLLAPSE)]))


def _rows(record: RunRecord, best: EvalRecord) -> tuple[Row, ...]:
    trained = list(record.facts.rewards)
    named = [*trained, *(name for name in record.before.scores if name not in trained)]
    three = (record.before, best, record.last)
    series = [
        (name, record.facts.role if name in trained else "held out", [seen.scores[name] for seen in three])
        for name in named
    ]
    series += [(name, "component", [seen.components[name] for seen in three]) for name in record.before.components]
    for name, values in IMAGE_MEASURES.items():
        before, at_best, last = (values(seen) for seen in three)
        if name == "drift":  # of the base model from itself: what rounding to a file's levels left of it
            before = [0.0] * len(before)
        if before:
            series.append((name, "images", [before, at_best, last]))
    return tuple(_row(name, role, values, record.last.prompts) for name, role, values in series)


def _row(name: str, role: str, values: Sequence[Sequence[float]], prompts: int) -> Row:
    before, best, last = (over_prompts(part, prompts) for part in values)
    return Row(name, role, before, best, last, change(values[0], values[2], prompts))


def _shown(record: RunRecord, best: EvalRecord) -> dict[str, EvalRecord]:
    if record.last is record.before:
        return {"before": record.before}
    middle = {} if best in (record.before, record.last) else {f"best, update {best.update}": best}
    return {"before": record.before, **middle, f"last, update {record.last.update}": record.last}


def _scaled(record: RunRecord, images: Mapping[int, torch.Tensor]) -> dict[float, torch.Tensor]:
    between = {scale: load_images(record.folder, scale_name(scale)) for scale in record.facts.scales}
    if not between:
        return {}
    count, seeds = len(next(iter(between.values()))), len(record.facts.seeds)
    first = slice(0, count * seeds, seeds)
    ends = {0.0: images[record.before.update][first], 1.0: images[record.last.update][first]}
    return dict(sorted({**between, **ends}.items()))
