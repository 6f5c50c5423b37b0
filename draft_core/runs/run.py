"""One run from recipe to report, `run_recipe`: read it for the order in which a run does things.

A run can be killed at any moment: what is on disk is whole, and the same command goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from torch import Tensor

from draft_core.cost.room import require_room
from draft_core.display import PngImage, image, paragraph, table
from draft_core.errors import DraftError, Interrupted, RecipeError, first_line
from draft_core.evaluation.collapse import CollapseRule, EvalRecord, Verdict, extent
from draft_core.evaluation.evaluate import evaluation_sampler
from draft_core.recipe.resolve import ResolvedRecipe, require_recipe, resolve_recipe
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import DirectConfig
from draft_core.reporting.live import LivePage
from draft_core.reporting.page import write_report
from draft_core.reporting.run_record import Facts, load_images
from draft_core.reporting.verdict import RunVerdict, judged
from draft_core.runs.build import build, build_objective
from draft_core.runs.continuation import computing, continuation
from draft_core.runs.cut_prompts import cut_prompts
from draft_core.runs.evaluator import Evaluator
from draft_core.runs.folder import RunFolder, is_ours, record_of
from draft_core.runs.interrupts import Stop, in_sentences, require_callable, stop_signals, telling
from draft_core.runs.progress import Progress, both, silent
from draft_core.runs.provenance import drawn_otherwise, facts_of, versions
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.tracking.trackers import Trackers
from draft_core.training.checkpoints import require_savable
from draft_core.training.distributed import Processes
from draft_core.training.learner_contract import is_want_of_memory, remembered, require_suitable
from draft_core.training.step_report import StepReport
from draft_core.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """Where a finished run left its files, and its evaluations before, at its best and in the end.

    Arguments:
        verdict: of the last evaluation: what was lost, and whether the run collapsed.
        outcome: what came of the run, in sentences.
    """

    folder: Path
    report: Path
    before: EvalRecord
    best: EvalRecord
    after: EvalRecord
    verdict: Verdict
    outcome: RunVerdict

    @property
    def images(self) -> dict[str, Tensor]:
        """What was drawn "before", at the "best" evaluation and "after": name -> (P S, 3, H, W) in [0, 1].

        Ordered by prompt; of a video its middle frame. They are read from the run's folder.
        """
        records = {"before": self.before, "best": self.best, "after": self.after}
        return {name: load_images(self.folder, record.update) for name, record in records.items()}

    def plot(self) -> PngImage:
        """The curves of the run, curve.png of its folder, as an image that a notebook shows."""
        return PngImage((self.folder / "curve.png").read_bytes())

    def _repr_html_(self) -> str:
        before, best, after = self.before.means(), self.best.means(), self.after.means()
        headings = ["", "before", f"best, update {self.best.update}", f"after, update {self.after.update}"]
        shown = PngImage((self.folder / "before_after.png").read_bytes())
        rows = [(name, before[name], best[name], after[name]) for name in before]
        return paragraph(self.outcome.headline) + table(headings, rows) + image(shown, "before and after")


def run_recipe(
    recipe: RecipeBase,
    catalog: Catalog | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress = silent,
    on_update: Callable[[StepReport], object] | None = None,
    on_evaluation: Callable[[EvalRecord], object] | None = None,
) -> RunResult:
    """Trains as the recipe says and fills `recipe.output`; `docs/reference/run-folder.md` says what lies there.

    An unfinished run of the same recipe in the output folder is continued. Under several processes each calls this.

    Arguments:
        recipe: what `load_recipe` gives.
        catalog: what is installed; loaded if left out.
        resume: continue also a finished run, for more updates.
        overwrite: replace an earlier run in the output folder, which comes back unless the new one evaluates and
            trains.
        force: continue although recipe or versions have changed.
        progress: called in the main process with a stage, how much of it is done, of how much, and a note.
        on_update: called in the main process with the report of every update, once it is written down.
        on_evaluation: called in the main process with the numbers of every evaluation, the base model's first; its
            images are written down by then. What either raises ends the run in one sentence.

    Raises:
        DraftError: if the folder holds another run, the recipe cannot be built, or nothing can be written.
        Interrupted: after Ctrl-C or SIGTERM, with everything saved.
    """
    require_recipe(recipe, where="run_recipe")
    require_callable(on_update=on_update, on_evaluation=on_evaluation)
    catalog = catalog if catalog is not None else load_catalog()
    with (
        stop_signals() as stop,
        in_sentences(recipe.output),
        cut_prompts() as cut,
        computing(recipe, anew=overwrite) as (recipe, threads),
    ):
        started = time.perf_counter()
        processes = Processes(cpu=recipe.device == "cpu")
        is_main = processes.rank == 0
        progress = progress if is_main else silent
        installed = versions(catalog, recipe.model.quantization)
        resolved = resolve_recipe(recipe, catalog, versions=installed, processes=processes.world_size)
        recipe = resolved.recipe
        cut.prompts, cut.progress = (*resolved.prompts.prompts, *resolved.evaluation_prompts), progress
        decide = partial(continuation, resolved, resume=resume, overwrite=overwrite, force=force)
        processes.on_main(decide)  # refuses before a model is loaded
        progress("load", 0, 1, recipe.model.pretrained)
        trainer = build(recipe, catalog=catalog, prompts=resolved.prompts)
        sampler = evaluation_sampler(trainer.sampler, resolved.evaluation)
        _require_call(recipe, trainer, sampler)
        require_savable(remembered(trainer.learner))
        watch, objective, gate = resolved.evaluation, trainer.objective, trainer.scoring.gate
        rewards = build_objective(recipe.metrics, catalog, beside=objective, gate=gate).to(trainer.device)
        tightness = require_room(trainer)
        trained = {name: weight for name, weight in objective.weights.items() if weight}  # 0 trains on nothing
        rule = CollapseRule(trained or objective.weights, watch.tolerance, watch.on_collapse, objective.caps)
        processes.gather(None)  # only now, when every process has come so far
        folder = RunFolder(recipe, processes)
        with folder.locked():
            # Another run may have come and gone while this one loaded its model.
            how = processes.on_main(partial(decide, is_locked=True))
            folder.begin(resolved, anew=not how.goes_on, redraws=how.redraws)
            progress("load", 1, 1, recipe.model.pretrained)
            restored = folder.restore(trainer)
            blind = rule.blindness(
                prompts=len(resolved.evaluation_prompts), images_per_prompt=len(resolved.seeds), scores=rewards.weights
            )
            drawn = drawn_otherwise(recipe, trainer.sampler, sampler)
            notes = (*trainer.adapter.notes(), *resolved.notes, *how.notes, *restored.notes)
            for note in [*notes, *filter(None, (blind, tightness, drawn, threads))]:
                progress("note", 0, 0, note)
            page = LivePage(
                folder.path,
                trainer.steps,
                write=write_report,
                say=lambda sentence: progress("note", 0, 0, sentence),
                may_write=lambda: processes.rank == 0 and is_ours(folder),
            )
            progress("note", 0, 0, f"page: {page.path.absolute().as_uri()} (from the first evaluation on)")
            told = both(progress, page.tick)
            evaluator = Evaluator(trainer, sampler, folder, rewards, resolved.evaluation_prompts, resolved.seeds, told)
            records, earlier = restored.evaluations, restored.seconds
            with closing(Trackers(partial(progress, "note", 0, 0))) as trackers, page.open():
                _start_trackers(trackers, recipe, trainer)
                run = _Run(
                    resolved,
                    catalog,
                    trainer,
                    folder,
                    evaluator,
                    rule,
                    page,
                    records,
                    lambda: earlier + time.perf_counter() - started,
                    trackers,
                    telling(on_update if is_main else None, "on_update"),
                    telling(on_evaluation if is_main else None, "on_evaluation"),
                )
                verdict = _train(run, told, stop)
                best = rule.best(records)
                folder.save_adapter(trainer.adapter, last=trainer.done, best=best.update)
                evaluator.draw_scales(run.scales)
                facts = run.facts(verdict, run.scales)
                report = folder.finish(facts, records, page.finish)
            processes.leave_at_exit()
    outcome = judged(rule, records, role=facts.role)
    return RunResult(recipe.output, report, records[0], best, records[-1], verdict, outcome)


@dataclass(frozen=True)
class _Run:
    """The parts of one process' run.

    Arguments:
        records: the evaluations so far, to which each further one is added.
        seconds: gives the time that the run took until now, over all resumptions.
        trackers: are told of every update and evaluation, and so are `on_update` and `on_evaluation`.
    """

    resolved: ResolvedRecipe
    catalog: Catalog
    trainer: Trainer
    folder: RunFolder
    evaluator: Evaluator
    rule: CollapseRule
    page: LivePage
    records: list[EvalRecord]
    seconds: Callable[[], float]
    trackers: Trackers
    on_update: Callable[[StepReport], None]
    on_evaluation: Callable[[EvalRecord], None]

    @property
    def scales(self) -> list[float]:
        """At which the report shows the LoRA, beside 0 and 1, which are evaluated anyway."""
        return sorted({*self.resolved.evaluation.scales} - {0.0, 1.0})

    def facts(self, verdict: Verdict, scales: Sequence[float] = ()) -> Facts:
        """What is known of the run now; `scales` of the LoRA have been drawn."""
        return facts_of(
            self.resolved,
            self.trainer,
            self.evaluator.sampler,
            self.rule,
            verdict,
            self.catalog,
            seconds=self.seconds(),
            scales=scales,
        )

    def add(self, record: EvalRecord) -> None:
        """Keeps an evaluation, and tells the trackers of it."""
        self.records.append(record)
        self.trackers.evaluation(record, self.folder.path, self.resolved.evaluation_prompts)
        self.on_evaluation(record)

    def judge(self) -> Verdict:
        """The verdict of the last evaluation, with which the page is written anew."""
        verdict = self.rule.verdict(self.records[0], self.records[-1])
        self.page.renew(lambda: record_of(self.folder, self.facts(verdict), self.records), self.trainer.done)
        return verdict


def _train(run: _Run, progress: Progress, stop: Stop) -> Verdict:
    """All updates that are left, or as many as the rule against collapse allows."""
    trainer, folder, rule, records = run.trainer, run.folder, run.rule, run.records
    if not records:
        run.add(run.evaluator.evaluate_base())
    verdict = run.judge()
    if rule.ends(verdict):
        return verdict
    for report in trainer:
        folder.append(report)
        if report.update == 1:
            folder.let_go()
        run.trackers.update(report)
        run.on_update(report)
        _tell(report, trainer.steps, progress)
        if report.update % run.resolved.evaluation.every == 0 or report.update == trainer.steps:
            verdict = _evaluate(run, progress)
        if _is_to_be_saved(run, report.update):
            _save(run)
        if rule.ends(verdict):
            _save(run)
            break
        if number := max(trainer.processes.gather(stop.signal)):
            raise Interrupted(
                f"interrupted after update {report.update}",
                where=str(_save(run)),
                next="continue with the same command, or with --resume",
                exit_code=128 + number,
            )
    if records[-1].update != trainer.done:  # no update was left to make, and the evaluation of the last is gone
        verdict = _evaluate(run, progress, "after")
    return verdict


def _tell(report: StepReport, steps: int, progress: Progress) -> None:
    progress("train", report.update, steps, report.headline)
    for note in [*(f"skipped, {problem}" for problem in report.skipped), *report.notes]:
        progress("note", 0, 0, f"update {report.update}: {note}")


def _evaluate(run: _Run, progress: Progress, stage: str = "") -> Verdict:
    """Draws and scores the held-out images, writes their record down, and judges it."""
    run.add(run.evaluator.evaluate(stage))
    verdict = run.judge()
    notes = list(verdict.unjudged)
    if verdict.fell:
        what = "collapsing" if verdict.collapsed else "losing" if verdict.lost else extent(run.records[-1].prompts)
        notes.insert(0, f"{what}, {'; '.join(verdict.fell)}")
    for note in notes:
        progress("note", 0, 0, f"update {run.trainer.done}: {note}")
    return verdict


def _is_to_be_saved(run: _Run, update: int) -> bool:
    is_best = run.records[-1].update == update and run.rule.best(run.records).update == update
    return is_best or update % run.resolved.recipe.checkpoint.every == 0 or update == run.trainer.steps


def _save(run: _Run) -> Path:
    return run.folder.checkpoint(run.trainer, seconds=run.seconds(), spare=run.rule.best(run.records).update)


def _require_call(recipe: RecipeBase, trainer: Trainer, evaluated: DifferentiableSampler) -> None:
    """That the pipeline can be called as the recipe says, found before anything is drawn or deleted.

    Arguments:
        evaluated: what draws the evaluations.
    """
    pipe = type(trainer.sampler.pipe).__name__
    samplers = {"model.call": trainer.sampler}
    if evaluated is not trainer.sampler:
        samplers["evaluation"] = evaluated
    for where, sampler in samplers.items():
        try:
            steps = sampler.steps
            if sampler is trainer.sampler:
                if isinstance(recipe.method, DirectConfig):
                    recipe.method.plan(steps, Random(0))
                require_suitable(trainer.learner, sampler)
        except DraftError as error:
            if sampler is trainer.sampler:
                raise
            raise RecipeError(error.what, where=where, next=error.next) from error
        except Exception as error:  # whatever a pipeline raises at arguments that it does not like
            if is_want_of_memory(error):
                raise
            raise RecipeError(
                f"{pipe} cannot be called so ({type(error).__name__}: {first_line(error)})",
                where=where,
                next=f"give what the call of {pipe} takes",
            ) from error


def _start_trackers(trackers: Trackers, recipe: RecipeBase, trainer: Trainer) -> None:
    """In the main process; those of the others are told nothing."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    start = partial(trackers.start, recipe.trackers, recipe.output, settings, done=trainer.done)
    trainer.processes.on_main(start)
