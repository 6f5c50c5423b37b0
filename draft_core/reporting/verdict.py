"""What came of a run, in few sentences: what rose, what fell, and which update to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from draft_core.evaluation.collapse import FEW_PROMPTS, CollapseRule, EvalRecord, extent, too_few
from draft_core.reporting.rendering import plus_minus

Kind = Literal["collapsed", "lost", "costly", "idle", "fine"]


@dataclass(frozen=True)
class RunVerdict:
    """What a person should know first.

    Arguments:
        kind: "collapsed": rewards rose at the cost of what is not trained on; "lost": something fell, the reward did
            not rise; "costly": the reward rose, and something fell beyond chance, though not too far; "idle": no change
            beyond chance, or none that can be told; "fine": all is well.
        headline: a few words.
        rose, fell: every score and every measure of the images that did so beyond chance, trained or not, with numbers
            and percentage; a trained score of negative weight is among those of the other name.
        reason: one sentence with numbers.
        best: which update to use, one sentence.
        extent: how far what rose and fell went: "beyond chance", unless the prompts are too few to say so.
    """

    kind: Kind
    headline: str
    rose: tuple[str, ...]
    fell: tuple[str, ...]
    reason: str
    best: str
    extent: str = "beyond chance"

    @property
    def moves(self) -> str:
        """What rose and what fell, a sentence."""
        found = "; ".join([*self.rose, *self.fell])
        return f"{_sentence(self.extent)}: {found}." if found else f"Nothing rose or fell {self.extent}."


def judged(rule: CollapseRule, evaluations: Sequence[EvalRecord], *, role: str = "trained") -> RunVerdict:
    """The verdict of a run.

    Arguments:
        rule: by which its evaluations are judged.
        evaluations: the base model's first.
        role: of the reward that the rule goes by, "trained" or "judging".
    """
    first, last = evaluations[0], evaluations[-1]
    if last is first:
        return RunVerdict("idle", "No update is evaluated yet", (), (), "These are the base model's images.", "")
    judgement = rule.verdict(first, last)
    before, gain = rule.gain(first, last)
    moved = f"the {role} reward went from {before:.4g} to {before + gain.mean:.4g}"
    unjudged = "".join(f" {_sentence(why)}." for why in judgement.unjudged)
    advice = _advice(rule.best(evaluations), first, last)

    far = extent(last.prompts)
    is_few = 1 < last.prompts < FEW_PROMPTS
    unjudged += f" {_sentence(too_few(last.prompts))}." if is_few else ""

    def verdict(kind: Kind, headline: str, reason: str) -> RunVerdict:
        text = f"{_sentence(reason)}.{unjudged}"
        return RunVerdict(kind, headline, judgement.rose, judgement.fell, text, advice, far)

    if judgement.lost:
        what = f"{', '.join(lost.split(' ')[0] for lost in judgement.lost)} fell too far, while {moved}"
        if judgement.collapsed:
            return verdict("collapsed", f"Collapsed at update {collapsed_at(rule, evaluations)}", what)
        return verdict("lost", "Something was lost", what)
    if math.isnan(gain.error):
        return verdict("idle", "One prompt tells little", f"{moved}; no error can be given")
    if not gain.believed or gain.mean < 0:
        beyond = "fell" if gain.believed else f"did not change {far}"
        return verdict("idle", f"The {role} reward {beyond}", f"{moved} ({plus_minus(gain)})")
    if is_few:
        return verdict("idle", f"{last.prompts} prompts tell little", moved)
    if judgement.fell:
        return verdict("costly", f"The {role} reward rose, at a cost", f"{moved}, while other things fell")
    kept = "no score and no measure of the images fell beyond chance"
    if not set(first.scores) - set(rule.trained):
        kept += "; no held-out score was there to tell more"
    if unjudged:
        return verdict("idle", "Not all could be judged", f"{moved}, and {kept}")
    return verdict("fine", "Fine", f"{moved}, and {kept}")


def collapsed_at(rule: CollapseRule, evaluations: Sequence[EvalRecord]) -> int | None:
    """The first update whose evaluation counted as a collapse, None if there is none."""
    verdicts = ((seen.update, rule.verdict(evaluations[0], seen)) for seen in evaluations)
    return next((update for update, verdict in verdicts if verdict.collapsed), None)


def _advice(best: EvalRecord, first: EvalRecord, last: EvalRecord) -> str:
    if best is last:
        return f"The best evaluation is the last one, after update {best.update}: lora/."
    if best is first:
        return "No evaluation beats the base model's without a loss elsewhere."
    return f"The best evaluation is the one after update {best.update}: lora-best/."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
