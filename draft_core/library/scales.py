"""At which scale a finished run's LoRA is best, by the run's own held-out evaluation: `draft mix RUN --scales ...`.

Between the base model (0) and what was trained (1) the reward rises, and what it is bought with is lost, smoothly; the
LoRA of a run that went too far is often good at half its scale (Wortsman et al. 2022, arXiv 2109.01903, on weights
between those of two models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draft_core.errors import DraftError, require_finite
from draft_core.evaluation.collapse import CollapseRule, EvalRecord, Verdict, eval_record
from draft_core.evaluation.evaluate import Evaluation, evaluate
from draft_core.recipe.load import load_recipe
from draft_core.recipe.resolve import resolve_evaluation
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.reporting.run_record import RECIPE, read_run
from draft_core.runs.build import build_objective
from draft_core.runs.progress import Progress, image_stage, silent
from draft_core.runs.sample import drawing


@dataclass(frozen=True)
class JudgedScales:
    """What was seen at each scale.

    Arguments:
        rule: of the run.
        records: scale -> its evaluation; 0, the base model, first.
    """

    rule: CollapseRule
    records: dict[float, EvalRecord]

    def verdict(self, scale: float) -> Verdict:
        """What changed from the base model to that scale."""
        return self.rule.verdict(self.records[0.0], self.records[scale])

    @property
    def whole(self) -> list[float]:
        """The scales beside 0 at which nothing fell beyond chance."""
        return [scale for scale in self.records if scale and not self.verdict(scale).fell]

    @property
    def best(self) -> float:
        """The scale with the highest trained reward at which nothing fell beyond chance; 0 where none is above it.

        Where something falls at every scale, of those at which nothing is lost, which is more than to fall.
        """
        scales = {id(record): scale for scale, record in self.records.items()}
        base, *others = self.records.values()
        whole = [self.records[scale] for scale in self.whole]
        return scales[id(self.rule.best([base, *(whole or others)]))]


def judge_scales(
    run: Path, scales: Sequence[float], *, catalog: Catalog | None = None, progress: Progress = silent
) -> JudgedScales:
    """Draws and scores the held-out images of a finished run at each scale of its LoRA.

    Arguments:
        run: its folder.
        scales: finite; the base model is drawn beside them.

    Raises:
        CheckpointError: if it is no finished run.
        RecipeError, PluginError: if its recipe no longer holds.
        DraftError: if there are no scales, or the recipe now evaluates other prompts than the run did.
    """
    catalog = catalog if catalog is not None else load_catalog()
    wanted = list(dict.fromkeys([0.0, *(float(scale) for scale in scales)]))
    for scale in wanted:
        require_finite(scale, where="scales")
    if len(wanted) < 2:
        raise DraftError("there are none beside 0", where="scales", next="give some, such as 0.25,0.5,0.75,1")
    record = read_run(run)
    recipe = load_recipe(run / RECIPE, ["model.decoder="], catalog=catalog)  # of the training alone
    _, prompts = resolve_evaluation(recipe, catalog)
    if [str(prompt) for prompt in prompts] != list(record.facts.prompts):
        raise DraftError(
            "its recipe names other held-out prompts than it was evaluated on",
            where=str(run),
            next="put the list back as it was, or train again",
        )
    rewards = build_objective([*recipe.rewards, *recipe.metrics], catalog)
    divisors = next((row.divisors for row in record.evaluations if row.divisors), {})
    found: dict[float, EvalRecord] = {}
    base: Evaluation | None = None
    with drawing(
        recipe.model.pretrained, prompts, lora=run / "lora", scales=wanted, catalog=catalog, progress=progress
    ) as drawn:
        rewards.to(drawn.sampler.pipe.device)
        for scale in wanted:
            with drawn.scaled(scale):
                seen = evaluate(
                    drawn.sampler,
                    rewards,
                    prompts,
                    record.facts.seeds,
                    batch_size=recipe.train.batch_size,
                    autocast=drawn.autocast,
                    progress=image_stage(f"scale {scale:g}", progress),
                )
            base = base or seen
            found[scale] = eval_record(seen, base, 0, divisors=divisors if scale else {})
    return JudgedScales(record.rule, found)
