"""The model card beside a LoRA, and the code that a reader pastes to use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from draft_core.adapters.files import loading_lines
from draft_core.evaluation.collapse import EvalRecord, change, over_prompts
from draft_core.reporting.images import before_after
from draft_core.reporting.rendering import render
from draft_core.reporting.run_record import RunRecord
from draft_core.reporting.summary import RunSummary


def write_card(summary: RunSummary, folder: Path, evaluation: EvalRecord) -> None:
    """Puts README.md and its image beside a LoRA, as the Hub shows them.

    Arguments:
        folder: of the LoRA.
        evaluation: at the LoRA's update, one of `summary.shown`.
    """
    record, facts = summary.record, summary.record.facts
    headings = {"before": record.before, f"update {evaluation.update}": evaluation}
    before_after(summary, headings).save(folder / "before_after.png")
    scores = [
        (
            row,
            over_prompts(evaluation.scores[row.name], evaluation.prompts),
            change(record.before.scores[row.name], evaluation.scores[row.name], evaluation.prompts),
        )
        for row in summary.rows
        if row.role != "images"
    ]
    card = render(
        "card.md.j2",
        run=record,
        facts=facts,
        verdict=summary.verdict,
        evaluation=evaluation,
        scores=scores,
        is_best=evaluation is summary.best,
        on_hub=_is_hub_name(facts.model),
        usage=usage(
            record, Path("path/to/this/folder"), base=None if facts.model != facts.location else facts.location
        ),
        **summary.phrases,
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
