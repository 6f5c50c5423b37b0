"""One run from recipe to report: images before, updates, looks on the way, images after, and all of it kept.

A run can be killed at any moment: what is on disk is whole, and the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from accelerate.tracking import TensorBoardTracker
from safetensors import SafetensorError

from draft_core.adapters.files import save_lora
from draft_core.adapters.lora import adapters_off, adapters_scaled, lora_state, set_lora_state
from draft_core.errors import CheckpointError, DraftError, Interrupted, RecipeError, first_line
from draft_core.evaluation.collapse import Look, Verdict, best_look, judge, look_at
from draft_core.evaluation.evaluate import Evaluation, evaluate
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.load import dump_recipe
from draft_core.recipe.resolve import locate_pretrained, resolve_prompts
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.reporting.page import write_report
from draft_core.reporting.run_record import (
    FACTS,
    LOOKS,
    METRICS,
    RECIPE,
    Facts,
    RunRecord,
    append_row,
    load_images,
    read_rows,
    rewrite_rows,
    save_images,
    scale_name,
    write_facts,
    write_whole,
)
from draft_core.rewards.objective import Objective
from draft_core.runs.build import build, build_objective
from draft_core.runs.folder import Identity, are_readable, folder_locked, identity_of, images_per_update, is_continued
from draft_core.runs.interrupts import Stop, stop_signals
from draft_core.runs.provenance import licences, peak_memory, versions
from draft_core.training.checkpoints import checkpoints, prune, read_checkpoint
from draft_core.training.distributed import Processes, another_is_gone, forget_settings, is_loss_of_another
from draft_core.training.step_report import StepReport
from draft_core.training.trainer import Trainer

# Without an evaluation in the recipe, so many of the training prompts are looked at, and the report says so.
IMAGED_PROMPTS = 8
SCALED_PROMPTS = 4  # are drawn at each of `evaluation.scales`, from the first seed

T = TypeVar("T")
Progress = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much, and a note; stage "note" is a message alone."""


def _silent(stage: str, done: int, total: int, note: str) -> None:
    pass


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its things, and what it saw before, at its best and in the end.

    Arguments:
        verdict: of the last look: what was lost, and whether the run collapsed.
    """

    folder: Path
    report: Path
    before: Look
    best: Look
    after: Look
    verdict: Verdict


def run_recipe(
    recipe: RecipeBase,
    catalog: Catalog,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress = _silent,
) -> RunResult:
    """Trains as the recipe says and fills `recipe.output`; see `docs/recipes.md` for what lies there afterwards.

    An unfinished run of the same recipe in the output folder is continued.

    Arguments:
        resume: continue also a finished run, for more updates.
        overwrite: delete an earlier run in the output folder first.
        force: continue although recipe or versions have changed.

    Raises:
        DraftError: if the folder holds another run, the recipe cannot be built, or nothing can be written.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
    """
    try:
        with stop_signals() as stop:
            return _Run(recipe, catalog, progress, stop).run(resume=resume, overwrite=overwrite, force=force)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"it cannot be written ({getattr(error, 'strerror', None) or error})",
            where=str(getattr(error, "filename", None) or recipe.output),
            next="make room or mend the folder, then give the same command again; what was saved is whole",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if is_loss_of_another(error):
            raise another_is_gone(int(os.environ.get("RANK", "0"))) from error
        if not _is_want_of_memory(error):
            raise
        raise DraftError(
            f"it does not fit into memory ({first_line(error)})",
            where=f"output {recipe.output}",
            next="halve train.batch_size and double train.gradient_accumulation_steps, or see what `draft cost` says; "
            "what was saved is whole, and goes on with that",
        ) from error


class _Run:
    """One process' part of a run."""

    trainer: Trainer
    judges: Objective
    identity: Identity  # of the folder, in the main process

    def __init__(self, recipe: RecipeBase, catalog: Catalog, progress: Progress, stop: Stop) -> None:
        forget_settings()
        self.processes = Processes(cpu=recipe.device == "cpu")
        started = {"versions": versions(catalog), "processes": self.processes.count}
        self.recipe = recipe.model_copy(update=started)
        self.catalog = catalog
        self.progress = progress if self.processes.place == 0 else _silent
        self.stop = stop
        self.folder = recipe.output
        config = recipe.evaluation
        self.evaluation = config or EvaluationSettings(prompts=recipe.prompts, count=IMAGED_PROMPTS)
        prompts = resolve_prompts(self.evaluation.prompts, catalog, where="evaluation.prompts")
        self.prompts = prompts[: self.evaluation.count]
        self.seeds = range(self.evaluation.seed, self.evaluation.seed + self.evaluation.images_per_prompt)
        self.looks: list[Look] = []
        self.started = time.perf_counter()
        self.earlier_seconds = 0.0  # of the parts before an interruption
        self.saved = -1  # the update whose checkpoint was written last

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.started

    def run(self, *, resume: bool, overwrite: bool, force: bool) -> RunResult:
        continued = self.processes.on_main(
            lambda: is_continued(self.recipe, self.folder, resume=resume, overwrite=overwrite, force=force)
        )
        self.progress("load", 0, 1, self.recipe.model.pretrained)
        self.trainer = build(self.recipe, catalog=self.catalog)
        device = self.trainer.accelerator.device
        self.require_call(device)
        self.judges = build_objective(self.recipe.metrics, self.catalog, beside=self.trainer.objective).to(device)
        self.processes.gather(None)  # only now, when the new run is sure to start in every process
        with ExitStack() as stack:
            self.processes.on_main(lambda: stack.enter_context(self.locked()))
            self.processes.on_main(lambda: self.make_folder(anew=not continued))
            self.progress("load", 1, 1, self.recipe.model.pretrained)
            self.restore()
            verdict = self.train()
            best = self.write(self.save_loras)
            self.draw_scales()
            report = self.write(lambda: self.finish(verdict))
            self.processes.leave_at_exit()
        return RunResult(self.folder, report, self.looks[0], best, self.looks[-1], verdict)

    def require_call(self, device: torch.device) -> None:
        """That the pipeline can be called as the recipe says, found before anything is drawn or deleted."""
        if self.recipe.train.mixed_precision == "fp16" and device.type == "cpu":
            raise RecipeError("fp16 needs a GPU", where="train.mixed_precision", next="use bf16, or no")
        pipe = type(self.trainer.sampler.pipe).__name__
        try:
            self.recipe.method.plan(self.trainer.sampler.steps, Random(0))
        except DraftError:
            raise
        except Exception as error:  # whatever a pipeline raises at arguments that it does not like
            if _is_want_of_memory(error):
                raise
            raise RecipeError(
                f"{pipe} cannot be called so ({type(error).__name__}: {first_line(error)})",
                where="model.call",
                next=f"give what the call of {pipe} takes",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is this run's alone inside, and `write` knows it again."""
        with folder_locked(self.folder) as self.identity:
            yield

    def write(self, work: Callable[[], T]) -> T:
        """What `work`, which writes into the folder, returns in the main process; every process gets it.

        Raises:
            CheckpointError: if the folder is no longer the one that was locked; nothing is then written elsewhere.
        """

        def write_there() -> T:
            if identity_of(self.folder) != self.identity or not (self.folder / RECIPE).is_file():
                raise CheckpointError(
                    "the folder of the run was deleted, moved or emptied while it ran",
                    where=str(self.folder),
                    next="put it back to go on, or delete what is left of it, and give the same command again",
                )
            return work()

        return self.processes.on_main(write_there)

    def make_folder(self, *, anew: bool) -> None:
        """The folder with its recipe; a killed deletion leaves the old recipe, by which the folder is still known."""
        for item in self.folder.iterdir() if anew else []:
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item.name != RECIPE:
                item.unlink()
        write_whole(self.folder / RECIPE, dump_recipe(self.recipe))

    def finish(self, verdict: Verdict) -> Path:
        """Writes the report, and last of all the facts, which mark the run as finished."""
        facts = self.facts(verdict)
        recipe = (self.folder / RECIPE).read_text(encoding="utf-8")
        reports = read_rows(self.folder / METRICS, StepReport)
        report = write_report(RunRecord(self.folder, facts, recipe, reports, self.looks))
        write_facts(self.folder, facts)
        return report

    # Where it stands

    def restore(self) -> None:
        """Puts the run where its newest usable checkpoint left it, or at its beginning."""
        used, self.earlier_seconds, self.looks = self.write(self.restore_main)
        if used is not None and self.processes.place > 0:
            self.trainer.load_checkpoint(used)

    def restore_main(self) -> tuple[Path | None, float, list[Look]]:
        """The checkpoint that was found and loaded, the seconds that the run took until then, and its looks."""
        used, seconds = None, 0.0
        for folder in reversed(checkpoints(self.folder / "checkpoints")):
            try:
                read_checkpoint(folder)
            except CheckpointError as error:
                self.progress("note", 0, 0, f"{error} It is left aside, and the one before it taken.")
                aside = folder.with_name(folder.name + ".unusable")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                continue
            state = self.trainer.load_checkpoint(folder)  # one of another run is an error, and stays where it is
            used, seconds = folder, float(state.get("seconds", 0.0))
            before, now = state.get("processes", 1), self.processes.count
            change = "" if before == now else f", with {now} process(es) instead of {before}: equal but for rounding"
            self.progress("note", 0, 0, f"going on after update {self.trainer.done}{change}")
            break
        else:
            if any((self.folder / "checkpoints").glob("*.unusable")):
                raise CheckpointError(
                    "none of its checkpoints can be used",
                    where=str(self.folder),
                    next="start anew with --overwrite",
                )
        done = self.trainer.done
        (self.folder / FACTS).unlink(missing_ok=True)
        rewrite_rows(self.folder / METRICS, self.rows_until(METRICS, StepReport, done))
        looks = self.rows_until(LOOKS, Look, done) if are_readable(self.folder, 0) else []
        rewrite_rows(self.folder / LOOKS, looks)
        return used, seconds, looks

    def rows_until(self, name: str, kind: Any, update: int) -> list[Any]:
        return [row for row in read_rows(self.folder / name, kind) if row.update <= update]

    # Training

    def train(self) -> Verdict:
        """All updates that are left, or as many as the rule against collapse allows."""
        if not self.looks:
            with adapters_off(self.trainer.sampler.pipe):
                self.look("before", of_base=True)
        verdict = self.verdict()
        if self.ends_with(verdict):
            return verdict
        with _tracker(self.recipe, is_main=self.processes.place == 0) as track:
            for report in self.trainer:
                self.write(partial(append_row, self.folder / METRICS, report))
                track(report)
                self.note_of(report)
                if self.is_due(report.update):
                    verdict = self.look(f"look {report.update}")
                self.save_if_due(report.update)
                if self.ends_with(verdict):
                    self.save()
                    break
                if number := max(self.processes.gather(self.stop.signal)):
                    raise Interrupted(
                        f"interrupted after update {report.update}",
                        where=str(self.save()),
                        next="continue with the same command, or with --resume",
                        exit_code=128 + number,
                    )
        if self.looks[-1].update != self.trainer.done:  # no update was left to make, and the look at the last is gone
            verdict = self.look("after")
        return verdict

    def note_of(self, report: StepReport) -> None:
        self.progress("train", report.update, self.trainer.steps, f"reward {report.reward:.4g}")
        for problem in report.skipped:
            self.progress("note", 0, 0, f"update {report.update}: skipped, {problem}")

    def is_due(self, update: int) -> bool:
        return update % self.evaluation.every == 0 or update == self.trainer.steps

    def look(self, stage: str, *, of_base: bool = False) -> Verdict:
        """Draws and scores the held-out images, writes down what is seen, and judges it."""
        seen = self.evaluate(stage)
        update = 0 if of_base else self.trainer.done
        gradients, cosines = self.trainer.reward_gradients() if update and len(self.weights) > 1 else ({}, {})
        self.looks.append(self.write(lambda: self.write_look(update, seen, gradients, cosines)))
        verdict = self.verdict()
        if verdict.lost:
            what = "collapsing" if verdict.collapsed else "losing"
            self.progress("note", 0, 0, f"update {update}: {what}, {'; '.join(verdict.lost)}")
        return verdict

    def write_look(
        self, update: int, seen: Evaluation, gradients: Mapping[str, float], cosines: Mapping[str, float]
    ) -> Look:
        save_images(self.folder, update, seen.images)
        images = load_images(self.folder, 0)  # in the levels of the files, also in an uninterrupted run
        look = look_at(seen, replace(seen, images=images), update, gradients=gradients, cosines=cosines)
        append_row(self.folder / LOOKS, look)
        return look

    def evaluate(self, stage: str) -> Evaluation:
        return self.draw(stage, self.judges, self.prompts, self.seeds)

    def draw(self, stage: str, rewards: Objective, prompts: Sequence[str], seeds: Sequence[int]) -> Evaluation:
        return evaluate(
            self.trainer.sampler,
            rewards,
            prompts,
            seeds,
            batch_size=self.trainer.batch_size,
            autocast=self.trainer.accelerator.autocast,
            progress=lambda done, total: self.progress(stage, done, total, "images"),
            share=(self.processes.place, self.processes.count),
            gather=self.processes.gather,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight of what is trained on."""
        return self.trainer.objective.weights

    def verdict(self) -> Verdict:
        return judge(self.looks[0], self.looks[-1], self.weights, tolerance=self.evaluation.tolerance)

    def ends_with(self, verdict: Verdict) -> bool:
        return verdict.collapsed and self.evaluation.on_collapse == "stop"

    def best(self) -> Look:
        return best_look(self.looks, self.weights, tolerance=self.evaluation.tolerance)

    # Saving

    def save_if_due(self, update: int) -> None:
        is_best = self.looks[-1].update == update and self.best().update == update
        if is_best or update % self.recipe.checkpoint.every == 0 or update == self.trainer.steps:
            self.save()

    def save(self) -> Path:
        return self.write(self.write_checkpoint)

    def write_checkpoint(self) -> Path:
        folder = self.folder / "checkpoints"
        if self.saved == self.trainer.done:  # writing it again would first delete what is there
            return folder / f"{self.trainer.done:06d}"
        saved = self.trainer.save_checkpoint(
            folder / f"{self.trainer.done:06d}",
            recipe=dump_recipe(self.recipe),
            versions=self.recipe.versions,
            seconds=self.seconds,
            processes=self.processes.count,
        )
        prune(folder, keep=self.recipe.checkpoint.keep, spare=[self.best().update])
        self.saved = self.trainer.done
        return saved

    def save_loras(self) -> Look:
        """Writes the last LoRA, and the best one where that is another; returns the best look."""
        pipe, best = self.trainer.sampler.pipe, self.best()
        save_lora(pipe, self.folder / "lora")
        shutil.rmtree(self.folder / "lora-best", ignore_errors=True)
        if best.update in (0, self.trainer.done):
            return best
        last = lora_state(pipe)
        try:
            best_state = read_checkpoint(self.folder / "checkpoints" / f"{best.update:06d}")
            set_lora_state(pipe, dict(best_state.adapter))
            save_lora(pipe, self.folder / "lora-best")
        finally:
            set_lora_state(pipe, last)
        return best

    @property
    def scales(self) -> list[float]:
        """At which the report shows the LoRA, beside 0 and 1, which are looked at anyway."""
        return sorted({*self.evaluation.scales} - {0.0, 1.0})

    def draw_scales(self) -> None:
        """A few images at each scale of the last LoRA."""
        for scale in self.scales:
            with adapters_scaled(self.trainer.sampler.pipe, scale):
                drawn = self.draw(f"scale {scale:g}", Objective({}), self.prompts[:SCALED_PROMPTS], self.seeds[:1])
            self.write(partial(save_images, self.folder, scale_name(scale), drawn.images))

    def facts(self, verdict: Verdict) -> Facts:
        sampler = self.trainer.sampler
        return Facts(
            model=self.recipe.model.pretrained,
            location=locate_pretrained(self.recipe.model.pretrained, self.catalog),
            method=self.recipe.method.kind,
            rewards=self.weights,
            prompts=self.prompts,
            seeds=list(self.seeds),
            prompts_are_unseen=self.recipe.evaluation is not None,
            tolerance=self.evaluation.tolerance,
            call={"num_inference_steps": sampler.num_inference_steps, **sampler.call_kwargs},
            images_per_update=images_per_update(self.recipe.model_dump()),
            versions=self.recipe.versions or {},
            licences=licences(self.recipe, self.catalog),
            device=str(self.trainer.accelerator.device),
            peak_memory_bytes=peak_memory(self.trainer.accelerator.device),
            seconds=self.seconds,
            collapse=verdict.lost if verdict.collapsed else (),
            scales=self.scales,
            dtype=self.recipe.model.dtype,
            output="frames" if hasattr(sampler.pipe, "video_processor") else "images",
        )


@contextmanager
def _tracker(recipe: RecipeBase, *, is_main: bool) -> Iterator[Callable[[StepReport], None]]:
    if not (recipe.tensorboard and is_main):
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


# What can go wrong with any computation


def _is_want_of_memory(error: Exception) -> bool:
    """Torch has a class for GPUs alone, and words for the rest."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error) for word in words)
