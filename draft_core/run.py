"""One run from recipe to report: pictures before, the updates, pictures after, and everything written down.

The hall: one of the few rooms that know both wings.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.tracking import TensorBoardTracker

from draft_core.builder import build, build_objective
from draft_core.catalog import Catalog
from draft_core.errors import CheckpointError, Interrupted, RecipeError
from draft_core.lora import adapters_off, save_lora
from draft_core.monitor import Evaluation, evaluate
from draft_core.objective import Objective
from draft_core.recipe import EvaluationConfig, RecipeBase, dump_recipe, locate_pretrained, resolve_prompts
from draft_core.report import Licence, RunRecord, write_report
from draft_core.trainer import StepReport, Trainer

# Without an evaluation in the recipe, so many of the training prompts are pictured, and the report says so.
PICTURED_PROMPTS = 8

Progress = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much, and a note."""


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its things, and its scores before and after."""

    folder: Path
    report: Path
    before: Evaluation
    after: Evaluation


def run_recipe(
    recipe: RecipeBase,
    catalog: Catalog,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total, note: None,
) -> RunResult:
    """Trains as the recipe says and fills `recipe.output`; see `docs/index.md` for what lies there afterwards.

    Arguments:
        resume: continue from the newest checkpoint in the output folder.
        overwrite: delete an earlier run in the output folder first.

    Raises:
        DraftError: if the folder holds a run already and neither is given, or the recipe cannot be built.
    """
    folder = recipe.output
    checkpoint = _claim_folder(folder, resume=resume, overwrite=overwrite)
    progress("load", 0, 1, recipe.model.pretrained)
    trainer = build(recipe, catalog=catalog)
    judges = build_objective(recipe.measures, catalog, beside=trainer.objective).to(trainer.accelerator.device)
    if overwrite and not resume:  # only now, when the new run is sure to start
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe.model_copy(update={"versions": _versions(catalog)})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    if checkpoint:
        trainer.load_checkpoint(checkpoint)
    progress("load", 1, 1, recipe.model.pretrained)

    start = time.perf_counter()
    with adapters_off(trainer.sampler.pipe):
        before = _evaluate(recipe, trainer, judges, catalog, "before", progress)
    reports = list(_train(recipe, trainer, progress))
    if not reports:
        raise CheckpointError(
            "the run is finished, and its metrics.jsonl is gone",
            where=str(folder),
            next="start it anew with --overwrite",
        )
    after = _evaluate(recipe, trainer, judges, catalog, "after", progress)
    save_lora(trainer.sampler.pipe, folder / "lora")

    record = RunRecord(
        folder=folder,
        model=recipe.model.pretrained,
        location=locate_pretrained(recipe.model.pretrained, catalog),
        estimator=recipe.estimator.kind,
        rewards=trainer.objective.weights,
        prompts_are_unseen=recipe.evaluation is not None,
        call={"num_inference_steps": trainer.sampler.num_inference_steps, **trainer.sampler.call_kwargs},
        recipe_yaml=dump_recipe(recipe),
        versions=recipe.versions or {},
        licences=_licences(recipe, catalog),
        reports=reports,
        before=before,
        after=after,
        seconds=time.perf_counter() - start,
        device=str(trainer.accelerator.device),
        peak_memory_bytes=_peak_memory(trainer.accelerator.device),
        images_per_update=recipe.train.batch_size * recipe.train.gradient_accumulation_steps,
    )
    return RunResult(folder, write_report(record), before, after)


def _train(recipe: RecipeBase, trainer: Trainer, progress: Progress) -> Iterator[StepReport]:
    """All reports of the run, those of before a resume included; writes metrics and checkpoints on the way."""
    metrics = recipe.output / "metrics.jsonl"
    earlier = [report for report in read_metrics(metrics) if report.update <= trainer.done]
    yield from earlier
    aside = metrics.with_suffix(".partial")
    aside.write_text("".join(map(_json_line, earlier)), encoding="utf-8")
    aside.replace(metrics)
    with _tracker(recipe) as track, metrics.open("a", encoding="utf-8") as file:
        try:
            for report in trainer:
                file.write(_json_line(report))
                file.flush()
                track(report)
                progress("train", report.update, trainer.steps, f"reward {report.reward:.4g}")
                if report.update % recipe.checkpoint.every == 0 or report.update == trainer.steps:
                    _save_checkpoint(recipe, trainer)
                yield report
        except KeyboardInterrupt:
            saved = _save_checkpoint(recipe, trainer)
            raise Interrupted(
                f"interrupted after update {trainer.done}", where=str(saved), next="continue with --resume"
            ) from None


def read_metrics(path: Path) -> list[StepReport]:
    """The reports in a metrics.jsonl, a torn last line left out; none if there is no such file."""
    reports = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            reports.append(StepReport(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return reports


def _evaluate(
    recipe: RecipeBase, trainer: Trainer, judges: Objective, catalog: Catalog, stage: str, progress: Progress
) -> Evaluation:
    config = recipe.evaluation or EvaluationConfig(prompts=tuple(trainer.prompts), count=PICTURED_PROMPTS)
    prompts = resolve_prompts(config.prompts, catalog)[: config.count]
    return evaluate(
        trainer.sampler,
        judges,
        prompts,
        range(config.seed, config.seed + config.images_per_prompt),
        batch_size=trainer.batch_size,
        autocast=trainer.accelerator.autocast,
        progress=lambda done, total: progress(stage, done, total, "pictures"),
    )


# The folder of a run


def _claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to continue from, None for a new run."""
    if folder.is_file():
        raise RecipeError("it is a file", where=f"output {folder}", next="name a folder")
    if resume:
        checkpoints = _checkpoints(folder)
        if not checkpoints:
            raise CheckpointError("there is no checkpoint to resume from", where=str(folder), next="leave out --resume")
        return checkpoints[-1]
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "recipe.yaml").is_file():
            raise RecipeError(
                "the folder is not empty and holds no run", where=f"output {folder}", next="choose another folder"
            )
        if not overwrite:
            raise RecipeError(
                "the folder holds a run already",
                where=f"output {folder}",
                next="continue it with --resume, replace it with --overwrite, or choose another with --set output=...",
            )
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (folder / "checkpoints").glob("*") if path.name.isdecimal())


def _save_checkpoint(recipe: RecipeBase, trainer: Trainer) -> Path:
    folder = recipe.output / "checkpoints"
    saved = trainer.save_checkpoint(folder / f"{trainer.done:06d}")
    for old in _checkpoints(recipe.output)[: -recipe.checkpoint.keep]:
        shutil.rmtree(old)
    return saved


def _json_line(report: StepReport) -> str:
    return json.dumps(asdict(report)) + "\n"


@contextmanager
def _tracker(recipe: RecipeBase) -> Iterator[Callable[[StepReport], None]]:
    if not recipe.tensorboard:
        yield lambda report: None
        return
    tracker = TensorBoardTracker("tensorboard", logging_dir=recipe.output)
    tracker.start()

    def track(report: StepReport) -> None:
        values = {"loss": report.loss, "reward": report.reward, "grad_norm": report.grad_norm}
        scores = {f"scores/{name}": score for name, score in report.scores.items()}
        tracker.log({**values, **scores, "learning_rate": report.learning_rate}, step=report.update)

    try:
        yield track
    finally:
        tracker.finish()


# What the report says of the surroundings


def _versions(catalog: Catalog) -> dict[str, str]:
    libraries = ("draft-core", "torch", "diffusers", "transformers", "peft", "accelerate")
    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    return {**catalog.versions(), **{name: importlib.metadata.version(name) for name in libraries}, **python}


def _licences(recipe: RecipeBase, catalog: Catalog) -> list[Licence]:
    found = []
    if recipe.model.pretrained in catalog.pretrained:
        spec = catalog.pretrained[recipe.model.pretrained].spec
        found.append(Licence(f"model {spec.alias}", spec.license, None))
    for config in [*recipe.rewards, *recipe.measures]:
        reward = catalog.reward(config.kind).spec
        licence = Licence(f"reward {reward.kind}", reward.code_license, reward.weights_license)
        if licence not in found:
            found.append(licence)
    return found


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes, macOS bytes
