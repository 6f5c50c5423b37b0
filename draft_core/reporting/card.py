"""The model card beside a LoRA, and the code that a reader pastes to use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version

from draft_core.adapters.files import loading_lines, users_folder
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
        if row.role not in ("images", "component")
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
    source, scheduler = facts.source, facts.scheduler
    call = "".join(f", {name}={_written(value)}" for name, value in {**facts.call, **facts.columns}.items())
    if users_folder(record.folder):
        call += ", ip_adapter_image_embeds=users"
    yield "import torch"
    if base is None or "quantization" in source:
        more = "".join(f", {name}={value!r}" for name, value in source.items() if name != "revision")
        yield "from draft_core import load_pipeline"
        load = f"load_pipeline({facts.model!r}, dtype={facts.dtype!r}{more})  # a plain diffusers pipeline"
    else:
        keyword = "dtype" if Version(facts.versions["diffusers"]) >= Version("0.40") else "torch_dtype"
        cls = source.get("pipeline", "DiffusionPipeline")
        how = "from_single_file" if base.endswith(".safetensors") else "from_pretrained"
        more = "".join(f", {name}={value!r}" for name, value in source.items() if name != "pipeline")
        yield f"from diffusers import {cls}"
        load = f"{cls}.{how}({base!r}{more}, {keyword}=torch.{facts.dtype})"
    if scheduler:
        yield f"from diffusers import {scheduler['name']}"
    if "load_image(" in call:
        yield "from diffusers.utils import load_image"
    yield ""
    yield f"pipe = {load}"
    if scheduler:
        settings = "".join(f", {name}={value!r}" for name, value in scheduler["settings"].items())
        yield f"pipe.scheduler = {scheduler['name']}.from_config(pipe.scheduler.config{settings})"
    yield from loading_lines(record.folder / "lora", lora)
    if facts.device.startswith("cuda"):
        yield 'pipe = pipe.to("cuda")'
    yield f'generator = torch.Generator("cpu").manual_seed({facts.seeds[0]})'
    yield f"image = pipe({facts.prompts[0]!r}, generator=generator{call}).{facts.output}[0]"


def _written(value: Any) -> str:
    """An argument of `Facts.call` as Python."""
    if isinstance(value, dict) and value.keys() == {"file"}:
        return f"load_image({value['file']!r})"
    if isinstance(value, dict) and value.keys() == {"tuple"}:
        return repr(tuple(value["tuple"]))
    return f"[{', '.join(map(_written, value))}]" if isinstance(value, list) else repr(value)
