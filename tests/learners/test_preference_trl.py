"""DPO's loss against that of TRL, which takes log-probabilities of texts where this one takes errors of a denoiser."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draft_core.learners.preference import LatentPair, PreferenceLearner

BETA = 2.5
GRADES = (1.0, 0.8, 0.5, 1.0)


@pytest.fixture(scope="module")
def trainer_of_trl() -> Any:
    pytest.importorskip("datasets", reason="datasets is not installed, which TRL's DPO imports")
    module = pytest.importorskip("trl.trainer.dpo_trainer", reason="trl is not installed")
    return module.DPOTrainer


def of_trl(trainer: Any, errors: torch.Tensor, base_errors: torch.Tensor, loss: str, grade: float) -> torch.Tensor:
    """Its loss, (), where an image is a text of one word after a prompt of one: log-probability -error, beta BETA / 2.

    Arguments:
        errors, base_errors: of winners and then of losers, (2 B,).
    """
    tokens = torch.ones(len(errors), 2, dtype=torch.long)
    zeros = torch.zeros(len(errors), 1)
    drawn = {"entropy": zeros, "mean_logits": zeros, "is_top1": zeros.bool(), "log_probs": -errors[:, None]}
    chosen, rejected = (-base_errors).chunk(2)
    same = SimpleNamespace(device="cpu", gather=torch.as_tensor, gather_for_metrics=torch.as_tensor)
    settings = {"loss_types": [loss], "loss_weights": [1.0], "label_smoothing": 1 - grade, "beta": BETA / 2}
    forms = {"f_divergence_type": "reverse_kl", "ld_alpha": None, "use_weighting": False, "aux_loss_enabled": False}
    counts = {"_metrics": {"train": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1}
    one = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=same, precompute_ref_logps=True, **settings, **forms, **counts
    )
    inputs = {
        "input_ids": tokens,
        "attention_mask": tokens,
        "completion_mask": torch.tensor([[0, 1]] * len(errors)),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    value: torch.Tensor = trainer._compute_loss(one, lambda **_: SimpleNamespace(**drawn), inputs, False)
    return value


def ours(errors: torch.Tensor, base_errors: torch.Tensor, loss: str, grades: tuple[float, ...]) -> torch.Tensor:
    learner = PreferenceLearner(SimpleNamespace(pairs=None, loss=loss, beta=BETA, fits=1, levels=1))
    pairs = [LatentPair("x", torch.zeros(1), torch.zeros(1), grade, 0) for grade in grades]
    level: Any = SimpleNamespace(errors=errors, base_errors=base_errors)
    return learner._loss(pairs, [level])[0]


def drawn_errors(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    errors, base_errors = torch.rand(2, 2 * pairs, generator=source, dtype=torch.float64)
    return errors.requires_grad_(), base_errors


def agrees(trainer: Any) -> bool:
    """In value and gradient to 1e-6: clear pairs by `sigmoid` and `ipo`, one pair of each grade by TRL's smoothing."""
    errors, base_errors = drawn_errors(len(GRADES))
    cases = [("sigmoid", "sigmoid", 1.0), ("ipo", "ipo", (BETA / 2) ** 2)]
    found = [
        (
            ours(errors, base_errors, loss, (1.0,) * len(GRADES)),
            factor * of_trl(trainer, errors, base_errors, theirs, 1.0),
        )
        for loss, theirs, factor in cases
    ]
    # Of a single pair its `aot` is the sigmoid loss with label smoothing.
    for place, grade in enumerate(GRADES):
        pair = errors[place :: len(GRADES)], base_errors[place :: len(GRADES)]
        found.append((ours(*pair, "sigmoid", (grade,)), of_trl(trainer, *pair, "aot", grade)))
    found += [
        (torch.autograd.grad(mine, errors, retain_graph=True)[0], torch.autograd.grad(other, errors)[0])
        for mine, other in found
    ]
    return all(torch.allclose(mine, other, rtol=0, atol=1e-6) for mine, other in found)


def test_values_and_gradients_are_those_of_trl(trainer_of_trl: Any) -> None:
    assert agrees(trainer_of_trl)


@pytest.mark.parametrize("bug", ["of winner and loser swapped", "factor", "grade"])
def test_a_planted_bug_is_seen(bug: str, trainer_of_trl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from draft_core.learners import preference

    right = preference.preference_loss
    wrong = {
        "of winner and loser swapped": lambda z, grades, kind: right(-z, grades, kind),
        "factor": lambda z, grades, kind: right(2 * z, grades, kind),
        "grade": lambda z, grades, kind: right(z, torch.ones_like(grades), kind),
    }
    monkeypatch.setattr(preference, "preference_loss", wrong[bug])
    assert not agrees(trainer_of_trl)
