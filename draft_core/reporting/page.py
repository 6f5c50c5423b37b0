"""The page of a finished run, its model card and its images: what a person reads when a run is over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import jinja2
import torch
from packaging.version import Version
from PIL import Image

from draft_core.adapters.files import loading_lines, lora_folder
from draft_core.evaluation.collapse import Change, EvalRecord, change, over_prompts
from draft_core.evaluation.evaluate import Evaluation
from draft_core.reporting.curves import (
    BEST,
    COLLAPSE,
    IMAGE_MEASURES,
    Mark,
    Panel,
    gradient_panels,
    evaluation_panels,
    save_png,
    svg,
    training_panels,
)
from draft_core.reporting.image_grid import LOSSLESS, data_uri, sheet, strips
from draft_core.reporting.run_record import RunRecord

ROWS = 16  # prompts of which images are shown
COLUMNS = 4  # images of each prompt on the page
BUDGET = 2_000_000  # bytes of images on a page

METHODS = {"draft": "DRaFT", "draft-k": "DRaFT-K", "draft-lv": "DRaFT-LV"}


def write_report(record: RunRecord) -> Path:
    """Fills the run's folder with its pages, and returns the one to open.

    It writes before_after.png, curve.png, report.html, and a model card with a image into each folder of a LoRA.

    Raises:
        CheckpointError: if images or LoRA of the run are gone.
    """
    lora_folder(record.folder)  # refuses a run whose LoRA is gone
    folder, found = record.folder, marks(record)
    before_after(shown_evaluations(record), record).save(folder / "before_after.png")
    panels = [*training_panels(record, found), *evaluation_panels(record, found), *gradient_panels(record, found)]
    save_png(panels, folder / "curve.png")
    for name, evaluation in loras(record).items():
        write_card(record, folder / name, evaluation)
    page = folder / "report.html"
    page.write_text(page_of(record), encoding="utf-8")
    return page


def loras(record: RunRecord) -> dict[str, EvalRecord]:
    """Each folder of a LoRA in the run's -> the evaluation at its update."""
    found = {"lora": record.last, "lora-best": record.best}
    return {name: evaluation for name, evaluation in found.items() if (record.folder / name).is_dir()}


def page_of(record: RunRecord) -> str:
    """The run as one HTML page that needs nothing beside itself."""
    found = marks(record)
    images, scaled = _images(record)
    return render(
        "report.html.j2",
        run=record,
        facts=record.facts,
        verdict=verdict_of(record),
        rows=rows(record),
        evaluations=shown_evaluations(record),
        small=is_small(record),
        shown_seeds=record.facts.seeds[:COLUMNS],
        images=images,
        scaled=scaled,
        training=drawn(training_panels(record, found)),
        evaluated=drawn(evaluation_panels(record, found)),
        gradients=drawn(gradient_panels(record, found)),
        skipped=[(report.update, reason) for report in record.reports for reason in report.skipped],
        seconds_per_update=fmean(report.seconds for report in record.reports),
        usage=usage(record, record.folder / list(loras(record))[-1], base=record.facts.location),
        **_words(record),
    )


def _words(record: RunRecord) -> dict[str, Any]:
    """What the page and the card say alike."""
    weights = record.facts.rewards
    return {
        "method": METHODS.get(record.facts.method, record.facts.method),
        "aim": " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in weights.items()),
        "image_count": len(record.facts.prompts) * len(record.facts.seeds),
        "which_prompts": "prompts kept out of training" if record.facts.prompts_are_unseen else "training prompts",
    }


# What came of it


@dataclass(frozen=True)
class RunVerdict:
    """What a person should know first.

    Arguments:
        kind: "collapsed": rewards rose at the cost of what is not trained on; "lost": something fell, the reward did
            not rise; "idle": no change beyond chance, or none that can be told; "fine": all is well.
        headline: a few words.
        reason: one sentence with numbers.
        best: which update to use, one sentence.
    """

    kind: Literal["collapsed", "lost", "idle", "fine"]
    headline: str
    reason: str
    best: str


def verdict_of(record: RunRecord) -> RunVerdict:
    """The run in three sentences."""
    weights, last = record.facts.rewards, record.last
    judgement = record.rule.verdict(record.before, last)
    gain = change(record.before.total(weights), last.total(weights), last.prompts)
    before = over_prompts(record.before.total(weights), last.prompts).mean
    moved = f"the trained reward went from {before:.4g} to {before + gain.mean:.4g}"
    lost = "; ".join(judgement.lost)
    if judgement.collapsed:
        return RunVerdict(
            "collapsed", f"Collapsed at update {collapsed_at(record)}", f"{lost}, while {moved}.", _best(record)
        )
    if judgement.lost:
        return RunVerdict("lost", "Something was lost", f"{lost}; {moved}.", _best(record))
    if math.isnan(gain.error):
        return RunVerdict(
            "idle", "One prompt tells little", f"{_sentence(moved)}; no error can be given.", _best(record)
        )
    if not gain.believed or gain.mean < 0:
        beyond = "fell" if gain.believed else "did not change beyond chance"
        return RunVerdict(
            "idle", f"The trained reward {beyond}", f"{_sentence(moved)} ({plus_minus(gain)}).", _best(record)
        )
    kept = "neither a held-out score nor diversity was lost"
    if not set(record.before.scores) - set(weights):
        kept = "diversity was not lost; no held-out score was there to tell more"
    return RunVerdict("fine", "Fine", f"{_sentence(moved)}, and {kept}.", _best(record))


def collapsed_at(record: RunRecord) -> int | None:
    """The first update whose evaluation counted as a collapse, None if there is none."""
    facts = record.facts
    verdicts = (
        (evaluation.update, record.rule.verdict(record.before, evaluation)) for evaluation in record.evaluations
    )
    return next((update for update, verdict in verdicts if verdict.collapsed), None)


def _best(record: RunRecord) -> str:
    best = record.best
    if best is record.last:
        return f"The best evaluation is the last one, after update {best.update}: lora/."
    if best is record.before:
        return "No evaluation beats the base model's without a loss elsewhere."
    return f"The best evaluation is the one after update {best.update}: lora-best/."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def marks(record: RunRecord) -> list[Mark]:
    """Where the best evaluation and the collapse are, if they are anywhere but at an end of the run."""
    found = []
    if record.best is not record.before:
        found.append(Mark(record.best.update, "best evaluation", BEST))
    collapse = collapsed_at(record)
    if collapse is not None:
        found.append(Mark(collapse, "collapse", COLLAPSE))
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table: means over prompts with their standard errors, and the paired change.

    Arguments:
        role: "trained", "held out", or "images" for what is measured of them without a reward.
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
        """The change in percent of the magnitude before, None where that is zero, and for what is not a score."""
        return 100 * self.change.mean / abs(self.before.mean) if self.before.mean and self.role != "images" else None


def rows(record: RunRecord) -> list[Row]:
    """Every score of the evaluations, the trained ones first, then what is measured of the images."""
    trained = list(record.facts.rewards)
    named = [*trained, *(name for name in record.before.scores if name not in trained)]
    series = [
        (name, "trained" if name in trained else "held out", [evaluation.scores[name] for evaluation in _three(record)])
        for name in named
    ]
    for name, values in IMAGE_MEASURES.items():
        before, best, last = (values(evaluation) for evaluation in _three(record))
        if name == "drift":  # of the base model from itself: what rounding to a file's levels left of it
            before = [0.0] * len(before)
        if before:
            series.append((name, "images", [before, best, last]))
    return [_row(name, role, each, record.last.prompts) for name, role, each in series]


def _row(name: str, role: str, each: Sequence[Sequence[float]], prompts: int) -> Row:
    before, best, last = each
    means = [over_prompts(values, prompts) for values in (before, best, last)]
    return Row(name, role, means[0], means[1], means[2], change(before, last, prompts))


def _three(record: RunRecord) -> tuple[EvalRecord, EvalRecord, EvalRecord]:
    return record.before, record.best, record.last


def plus_minus(value: Change, *, sign: bool = False) -> str:
    """A mean and its standard error, both to the error's second digit: "-1.66 ± 0.05"."""
    plus = "+" if sign else ""
    if not value.error > 0:  # zero, or NaN
        return f"{value.mean:{plus}.4g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(value.error))))
    return f"{value.mean:{plus}.{digits}f} ± {value.error:.{digits}f}"


# Images


def shown_evaluations(record: RunRecord) -> dict[str, EvalRecord]:
    """Heading -> evaluation: before, best where it is neither end, and last."""
    found = {"before": record.before, f"last, update {record.last.update}": record.last}
    if record.best in (record.before, record.last):
        return found
    (first, before), (last, after) = found.items()
    return {first: before, f"best, update {record.best.update}": record.best, last: after}


def before_after(evaluations: dict[str, EvalRecord], record: RunRecord) -> Image.Image:
    """One row a prompt: its images at each evaluation, from the same seeds."""
    seen = [record.evaluation(evaluation) for evaluation in evaluations.values()]
    lines = [
        (prompt, [image for one in seen for image in images_of(one, row)])
        for row, prompt in enumerate(record.facts.prompts[:ROWS])
    ]
    return sheet(lines, headings=list(evaluations), group=len(record.facts.seeds))


def images_of(evaluation: Evaluation, prompt: int) -> torch.Tensor:
    """The images (S, 3, H, W) of one prompt, by its number."""
    seeds = len(evaluation.seeds)
    return evaluation.images[prompt * seeds : (prompt + 1) * seeds]


def _images(record: RunRecord) -> tuple[list[tuple[str, dict[str, str]]], dict[float, str]]:
    """For each prompt the URI of its strip at each evaluation; and for each scale of the LoRA the URI of a strip."""
    seen = {heading: record.evaluation(evaluation) for heading, evaluation in shown_evaluations(record).items()}
    wanted: dict[Any, Sequence[torch.Tensor]] = {
        (row, heading): list(images_of(one, row)[:COLUMNS])
        for row in range(len(record.facts.prompts[:ROWS]))
        for heading, one in seen.items()
    }
    scales = record.at_scales()
    encoded = strips({**wanted, **{scale: list(images) for scale, images in scales.items()}}, budget=BUDGET)
    of_prompts = [
        (prompt, {heading: encoded[row, heading] for heading in seen})
        for row, prompt in enumerate(record.facts.prompts[:ROWS])
    ]
    return of_prompts, {scale: encoded[scale] for scale in scales}


def is_small(record: RunRecord) -> bool:
    """Whether its images are so small that a page shows their pixels."""
    return max(record.evaluation(record.before).images.shape[-2:]) <= LOSSLESS


def drawn(panels: Sequence[Panel]) -> list[dict[str, str]]:
    """Each panel as a URI, with its text."""
    return [{"uri": data_uri(svg(panel), "image/svg+xml"), "text": panel.text} for panel in panels]


# Model card and usage


def write_card(record: RunRecord, folder: Path, evaluation: EvalRecord) -> None:
    """Puts README.md and its image beside a LoRA, as the Hub shows them."""
    heading = f"update {evaluation.update}"
    before_after({"before": record.before, heading: evaluation}, record).save(folder / "before_after.png")
    facts = record.facts
    scores = [
        (
            row,
            over_prompts(evaluation.scores[row.name], evaluation.prompts),
            change(record.before.scores[row.name], evaluation.scores[row.name], evaluation.prompts),
        )
        for row in rows(record)
        if row.role != "images"
    ]
    card = render(
        "card.md.j2",
        run=record,
        facts=facts,
        verdict=verdict_of(record),
        evaluation=evaluation,
        scores=scores,
        is_best=evaluation is record.best,
        on_hub=_is_hub_name(facts.model),
        usage=usage(
            record, Path("path/to/this/folder"), base=None if facts.model != facts.location else facts.location
        ),
        **_words(record),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _is_hub_name(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith(("/", "."))


def usage(record: RunRecord, lora: Path, *, base: str | None) -> str:
    """Python that draws the first held-out image with the LoRA.

    Arguments:
        base: what diffusers loads; None where the model is an alias, which only `draft_core` knows.
    """
    return "\n".join(_usage_lines(record, lora, base))


def _usage_lines(record: RunRecord, lora: Path, base: str | None) -> Iterator[str]:
    facts = record.facts
    yield "import torch"
    if base is None:
        yield "from draft_core import load_pipeline"
        yield ""
        yield f"pipe = load_pipeline({facts.model!r}, dtype={facts.dtype!r})  # a plain diffusers pipeline"
    else:
        keyword = "dtype" if Version(facts.versions["diffusers"]) >= Version("0.40") else "torch_dtype"
        yield "from diffusers import DiffusionPipeline"
        yield ""
        yield f"pipe = DiffusionPipeline.from_pretrained({base!r}, {keyword}=torch.{facts.dtype})"
    yield from loading_lines(record.folder / "lora", lora)
    if facts.device.startswith("cuda"):
        yield 'pipe = pipe.to("cuda")'
    yield f'generator = torch.Generator("cpu").manual_seed({facts.seeds[0]})'
    call = "".join(f", {name}={value!r}" for name, value in facts.call.items())
    yield f"image = pipe({facts.prompts[0]!r}, generator=generator{call}).{facts.output}[0]"


# Templates


def render(template: str, **values: Any) -> str:
    """A template of this package, filled in; values are escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plus_minus"] = plus_minus
    environment.filters["duration"] = _duration
    return environment.get_template(template).render(**values)


def _template(name: str) -> str:
    return (resources.files("draft_core.reporting") / "templates" / name).read_text(encoding="utf-8")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
