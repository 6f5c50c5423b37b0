"""A learner outside the DRaFT family: a trained part of its own, no gradient through the reward, exact resume."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, Objective, Trainer
from draft_core.adapters.lora import adapters_off, lora_state, trainable
from draft_core.errors import CheckpointError, DraftError, RewardError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.learner import Batch, Loss, Score
from draft_core.plan import StepPlan
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.tiny import Brightness, ClockConfig, Redness, RednessConfig, byte_tokenizer, tiny_pipe, with_lora


class Imitation:
    """Draws the images of a batch towards the best of them, by how much it beats a learnt baseline."""

    needs_gradient = False
    yields_divergence = False

    def __init__(self, *, rounds: int = 1) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.baseline = torch.nn.Linear(3, 1)
        self.rounds = rounds
        self.best = -1.0

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        plan = StepPlan(sampler.steps, frozenset({sampler.steps - 1}))
        for _ in range(self.rounds):
            images = sampler(batch.prompts, plan=plan, generator=list(batch.generators)).images
            total = score(images.detach(), batch.prompts).total
            self.best = max(self.best, float(total.max()))
            colours = images.detach().mean(dim=(2, 3))
            error = (self.baseline(colours).squeeze(1) - total).square().mean()
            yield Loss(error, of="baseline", step=True, images=len(images))
            advantage = float(total.max()) - float(self.baseline(colours).mean().detach())
            target = images[int(total.argmax())].detach()
            value = advantage * (images - target).square().mean()
            yield Loss(value, step=True, images=len(images), report={"best": self.best})

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"baseline": self.baseline}

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best = float(state["best"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(tokenizer: Any, learner: Any, reward: Any = None, kl: float = 0.0, **settings: Any) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer))
    return Trainer(
        DifferentiableSampler(
            pipe, num_inference_steps=2, guidance_scale=3.0, base_model=partial(adapters_off, pipe) if kl else None
        ),
        Objective({"brightness": reward or Brightness(ClockConfig())}),
        learner,
        ["a", "b", "c"],
        TrainSettings(**{"steps": 4, "batch_size": 2, "learning_rate": 3e-2, **settings}),
        regularizers=RegularizerSettings(kl=kl),
        device="cpu",
    )


def flat(state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def everything(one: Trainer) -> list[torch.Tensor]:
    """The weights of all parts and the moments of their optimisers."""
    moments = [
        torch.as_tensor(value, dtype=torch.float32).flatten()
        for part in one.parts.values()
        for state in part.optimizer.state_dict()["state"].values()
        for value in state.values()
    ]
    return [flat(lora_state(one.sampler.pipe)), flat(one.learner.modules()["baseline"].state_dict()), *moments]


def test_both_parts_are_trained_on_a_reward_without_gradient(tokenizer: Any) -> None:
    one = trainer(tokenizer, Imitation())
    before = everything(one)[:2]
    reports = list(one)
    assert not any(torch.equal(now, then) for now, then in zip(everything(one)[:2], before, strict=True))
    assert [report.optimizer_steps for report in reports] == [1] * 4
    assert all(report.grad_norm > 0 for report in reports)
    assert reports[-1].learner["best"] >= reports[0].learner["best"] >= reports[0].reward
    assert reports[0].scores == {"brightness": reports[0].reward}
    assert one.reward_gradients() == ({}, {})


def test_a_resumed_learner_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer, Imitation())
    reports = list(whole)
    first = trainer(tokenizer, Imitation())
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002", note="kept")
    second = trainer(tokenizer, Imitation())
    assert load_checkpoint(second, tmp_path / "000002")["note"] == "kept"
    assert second.learner.best == first.learner.best
    resumed = list(second)
    assert [report.learner for report in resumed] == [report.learner for report in reports[2:]]
    for now, then in zip(everything(second), everything(whole), strict=True):
        assert torch.equal(now, then)


class Reaching(Imitation):
    """A loss of the baseline whose gradient would reach the adapter as well."""

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        weights = trainable(sampler.pipe)
        yield Loss(torch.stack([weight.sum() for weight in (*weights, self.baseline.weight)]).sum(), of="baseline")


def test_a_loss_gives_no_gradient_to_other_parts(tokenizer: Any) -> None:
    one = trainer(tokenizer, Reaching())
    before = everything(one)
    report = one.train_step()
    after = everything(one)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    assert report.optimizer_steps == 0, "of the adapter"
    assert all(parameter.grad is None for parameter in one.parameters)


class Uneven(DirectLearner):
    """Every second batch has one loss fewer."""

    count = 0

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        Uneven.count += 1
        rounds = 2 + Uneven.count % 2
        for _ in range(rounds):
            images = sampler(
                batch.prompts, plan=self.method.plan(2, batch.rng), generator=list(batch.generators)
            ).images
            yield Loss(-score(images, batch.prompts).total.mean(), step=True, images=len(images))


def test_batches_that_are_over_first_end_the_update(tokenizer: Any) -> None:
    Uneven.count = 0
    one = trainer(tokenizer, Uneven(DraftK(k=1)), Redness(RednessConfig()), steps=1, gradient_accumulation_steps=2)
    report = one.train_step()
    assert report.optimizer_steps == 2
    assert all(parameter.grad is None for parameter in one.parameters), "the third loss of one batch is forgotten"


class Leaving(Imitation):
    """The baseline is left for the end of the update, and every second batch has one round fewer."""

    count = 0

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        self.count += 1
        for factor in (self.factor, 1.0)[: 1 + self.count % 2]:
            yield Loss(total(self.baseline.parameters()) * factor, of="baseline")
            yield Loss(total(trainable(sampler.pipe)), step=True)


def test_a_round_that_is_thrown_away_takes_nothing_from_earlier_ones(tokenizer: Any) -> None:
    one = trainer(tokenizer, Leaving(), gradient_accumulation_steps=2, max_grad_norm=1e9)
    taken: list[torch.Tensor] = []
    optimizer = one.parts["baseline"].optimizer
    optimizer.register_step_pre_hook(lambda *_: taken.append(one.learner.baseline.weight.grad.clone()))
    before = one.learner.baseline.weight.detach().clone()
    report = one.train_step()
    assert report.optimizer_steps == 1
    assert len(taken) == 1
    torch.testing.assert_close(taken[0], 2 * before, rtol=1e-6, atol=0)  # the gradient of the sum of squares


def test_a_round_that_is_thrown_away_hides_no_problem_of_earlier_ones(tokenizer: Any) -> None:
    one = trainer(tokenizer, Leaving(float("nan")), gradient_accumulation_steps=2)
    before = one.learner.baseline.weight.detach().clone()
    assert one.train_step().skipped == ("the loss of 'baseline' became nan",)
    assert torch.equal(one.learner.baseline.weight, before)


class Wrong(Imitation):
    """Yields what it is told to."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        yield self.loss


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (Loss(torch.ones(()), of="value"), "loss: it trains 'value', which is none of adapter, baseline"),
        (Loss(torch.ones(())), "loss of 'adapter': it carries no gradient; tell the method's author"),
    ],
)
def test_a_wrong_loss_is_refused_in_one_sentence(loss: Loss, sentence: str, tokenizer: Any) -> None:
    with pytest.raises(DraftError, match=sentence):
        trainer(tokenizer, Wrong(loss)).train_step()


def test_a_loss_that_is_not_finite_skips_its_step(tokenizer: Any) -> None:
    loss = Loss(torch.full((), float("nan"), requires_grad=True))
    report = trainer(tokenizer, Wrong(loss)).train_step()
    assert report.skipped == ("the loss of 'adapter' became nan",)
    with pytest.raises(RewardError, match="the loss of 'adapter' became nan"):
        trainer(tokenizer, Wrong(loss), max_skipped=0).train_step()


def test_what_cannot_be_read_again_is_not_written(tokenizer: Any, tmp_path: Path) -> None:
    learner = Imitation()
    learner.best = Path("somewhere")  # type: ignore[assignment]
    sentence = r"the method remembers what cannot be saved and read again \(it holds pathlib.*Path\); tell the method's"
    with pytest.raises(CheckpointError, match=sentence):
        save_checkpoint(trainer(tokenizer, learner), tmp_path / "000000")


class Forgetful(DirectLearner):
    """Says that it yields a divergence, and does not."""

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        for loss in super().losses(batch, sampler, score):
            yield replace(loss, divergence=None)


def test_a_weight_on_a_divergence_that_no_loss_carries_is_refused(tokenizer: Any) -> None:
    for learner, sentence in (
        (Imitation(), "kl: the method yields no divergence to weigh; leave it out, or use lora_norm"),
        (Forgetful(DraftK(k=1)), "regularizers.kl: no loss carries a divergence, though the method says"),
    ):
        with pytest.raises(DraftError, match=re.escape(sentence)):
            trainer(tokenizer, learner, Redness(RednessConfig()), kl=0.1).train_step()


def test_settings_that_do_not_fit_the_learner_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DraftError, match=r"train\.normalize: the method takes no gradient of the rewards"):
        trainer(tokenizer, Imitation(), normalize="gradient")


def test_the_draft_family_needs_a_gradient(tokenizer: Any) -> None:
    with pytest.raises(RewardError, match="reward 'brightness': its scores carry no gradient"):
        trainer(tokenizer, DirectLearner(DraftK(k=1))).train_step()


class Parts(Imitation):
    """Yields what it is given, of the weights of the adapter and of the baseline."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Any:
        return self.make(self, list(trainable(sampler.pipe)), score)


def total(weights: Any) -> torch.Tensor:
    return torch.stack([(weight * weight).sum() for weight in weights]).sum()


def test_a_number_that_is_not_finite_skips_its_own_part_and_no_other(tokenizer: Any) -> None:
    def losses(self: Parts, adapter: Any, score: Score) -> Iterator[Loss]:
        yield Loss(total(adapter))
        yield Loss(total([self.baseline.weight]), share=0.5, of="baseline")
        yield Loss(total([self.baseline.weight]) * float("nan"), share=0.5, of="baseline")

    one = trainer(tokenizer, Parts(losses))
    before = everything(one)[:2]
    report = one.train_step()
    after = everything(one)[:2]
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert report.skipped == ("the loss of 'baseline' became nan",)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda self, adapter, score: [Loss(total(adapter))], r"losses\(\) returned list, not an iterator"),
        (lambda self, adapter, score: None, r"losses\(\) returned NoneType, not an iterator"),
        (lambda self, adapter, score: iter([None]), "it yielded NoneType, not a Loss"),
        (lambda self, adapter, score: iter([total(adapter)]), "it yielded Tensor, not a Loss"),
        (lambda self, adapter, score: iter([Loss(adapter[0][0])]), r"torch.float32 of shape \(\d+,\), not one number"),
        (lambda self, adapter, score: iter([Loss(1.0)]), "the value of its loss is float, not a tensor"),  # type: ignore[arg-type]
        (lambda self, adapter, score: iter([Loss(total(adapter), report={"a": "b"})]), "'a' in the report .* is str"),
        (lambda self, adapter, score: iter([Loss(total(adapter), report={"a": total(adapter)})]), "'a' .* is Tensor"),
        (lambda self, adapter, score: iter([Loss(total(adapter), images=-1)]), "the images of its loss are -1"),
        (lambda self, adapter, score: iter([[Loss(total(adapter))]]), "it yielded list, not a Loss"),
        (lambda self, adapter, score: iter([Loss(torch.ones((), dtype=torch.int64))]), "is torch.int64 of shape"),
        (lambda self, adapter, score: iter([Loss(total(adapter), share="1")]), "the share of its loss is '1', not"),  # type: ignore[arg-type]
        (lambda self, adapter, score: iter([Loss(total(adapter), divergence=adapter[0])]), "the divergence of its"),
        (lambda self, adapter, score: iter([Loss(total(adapter), report=[1])]), "the report of its loss is list"),  # type: ignore[arg-type]
        (lambda self, adapter, score: iter([1 / 0]), r"its losses\(\) raised ZeroDivisionError"),
        (lambda self, adapter, score: (1 / 0 for _ in "a"), r"its losses\(\) raised ZeroDivisionError"),
    ],
)
def test_a_breach_of_the_contract_is_one_sentence(tokenizer: Any, make: Any, said: str) -> None:
    with pytest.raises(DraftError, match=f"method Parts: .*{said}"):
        trainer(tokenizer, Parts(make)).train_step()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Connection closed by peer")])
def test_what_the_machine_lacks_is_not_blamed_on_the_method(tokenizer: Any, error: Exception) -> None:
    def losses(self: Parts, adapter: Any, score: Score) -> Iterator[Loss]:
        yield Loss(total(adapter))
        raise error

    with pytest.raises(type(error)) as caught:
        trainer(tokenizer, Parts(losses)).train_step()
    assert caught.value is error


def test_a_score_that_is_not_finite_skips_the_part_whose_loss_comes_next(tokenizer: Any) -> None:
    def losses(self: Parts, adapter: Any, score: Score) -> Iterator[Loss]:
        yield Loss(total([self.baseline.weight]), of="baseline", step=True)
        score(torch.full((2, 3, 8, 8), float("nan")), ["a", "b"])
        yield Loss(total(adapter))

    one = trainer(tokenizer, Parts(losses))
    before = everything(one)[:2]
    assert "of the prompt 'a'" in one.train_step().skipped[0]
    after = everything(one)[:2]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_a_step_is_recorded_whatever_the_caller_or_the_learner_does_to_autograd(tokenizer: Any) -> None:
    def losses(self: Parts, adapter: Any, score: Score) -> Iterator[Loss]:
        yield Loss(total(adapter), report={"recorded": float(torch.is_grad_enabled())})
        torch.set_grad_enabled(False)

    with torch.no_grad():
        report = trainer(tokenizer, Parts(losses)).train_step()
        assert not torch.is_grad_enabled()
    assert report.learner == {"recorded": 1.0}
    assert report.grad_norm > 0
    trainer(tokenizer, Parts(losses)).train_step()
    assert torch.is_grad_enabled()
    reward = Redness(RednessConfig())
    one, other = (trainer(tokenizer, DirectLearner(DraftK(k=1)), reward) for _ in range(2))
    with torch.no_grad():
        inside = one.reward_gradients()
    assert inside == other.reward_gradients() != ({}, {})


def test_a_method_without_losses_says_that_it_learns_nothing(tokenizer: Any) -> None:
    report = trainer(tokenizer, Parts(lambda self, adapter, score: iter(()))).train_step()
    assert "the method yielded no loss, so nothing is learnt" in report.notes


def test_a_state_is_not_changed_by_later_updates(tokenizer: Any) -> None:
    one = trainer(tokenizer, Imitation())
    one.train_step()
    before, state = [tensor.clone() for tensor in everything(one)], one.state()
    for _ in range(2):
        one.train_step()
        one.restore(state)
        assert all(torch.equal(now, then) for now, then in zip(everything(one), before, strict=True))


class Recording(Imitation):
    """Remembers a list that it goes on filling."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        self.seen.append(float(batch.update))
        yield from super().losses(batch, sampler, score)

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self.best, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


def test_what_a_learner_remembers_in_a_state_is_a_copy_each_time_it_is_restored(tokenizer: Any) -> None:
    one = trainer(tokenizer, Recording())
    one.train_step()
    state = one.state()
    following = one.train_step()
    for _ in range(2):
        one.restore(state)
        assert one.learner.seen == [0.0]
        again = one.train_step()
        assert (again.loss, again.grad_norm) == (following.loss, following.grad_norm)
    assert state.learner["state"]["seen"] == [0.0]


@pytest.mark.parametrize("state", [lambda self: 1 / 0, lambda self: [1]])
def test_a_learner_that_cannot_say_its_state_is_named(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    monkeypatch.setattr(Imitation, "state_dict", state)
    with pytest.raises(DraftError, match=r"method Imitation: its state_dict\(\) (raised|returned list)"):
        trainer(tokenizer, Imitation()).state()


def test_what_a_learner_raises_while_it_loads_is_a_checkpoint_error(tokenizer: Any, tmp_path: Path) -> None:
    class Picky(Imitation):
        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            raise IndexError("there is no best of 3")

    save_checkpoint(trainer(tokenizer, Picky()), tmp_path / "000000")
    with pytest.raises(CheckpointError, match=r"000000: it does not fit \(IndexError: there is no best of 3\); start"):
        load_checkpoint(trainer(tokenizer, Picky()), tmp_path / "000000")


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        (lambda self: None, r"method Imitation: its modules\(\) returned NoneType, not a mapping; tell"),
        (lambda self: {"value": 1}, r"method Imitation: 'value' of its modules\(\) is int, not a torch.nn.Module"),
        (lambda self: {"value": torch.nn.ReLU()}, r"'value' of its modules\(\) has no parameters to train; leave it"),
        (lambda self: {"adapter": torch.nn.Linear(1, 1)}, "learner: the method calls a module of its own 'adapter'"),
        (lambda self: 1 / 0, r"method Imitation: its modules\(\) raised ZeroDivisionError"),
    ],
)
def test_modules_that_cannot_be_trained_are_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, modules: Any, sentence: str
) -> None:
    monkeypatch.setattr(Imitation, "modules", modules)
    with pytest.raises(DraftError, match=sentence):
        trainer(tokenizer, Imitation())


def test_losses_that_share_a_graph_are_refused(tokenizer: Any) -> None:
    def losses(self: Parts, adapter: Any, score: Score) -> Iterator[Loss]:
        shared = total(adapter)
        yield Loss(shared.square())
        yield Loss(shared.square())

    with pytest.raises(DraftError, match=r"loss: it shares its graph with an earlier loss, .*; yield their sum, or"):
        trainer(tokenizer, Parts(losses)).train_step()


def test_what_cannot_be_saved_is_refused(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Imitation, "state_dict", lambda self: {"best": lambda: 0})
    with pytest.raises(CheckpointError, match="remembers what cannot be saved and read again"):
        save_checkpoint(trainer(tokenizer, Imitation()), tmp_path / "000000")


def test_a_checkpoint_of_another_method_is_refused(tokenizer: Any) -> None:
    state = trainer(tokenizer, Imitation()).state()
    with pytest.raises(CheckpointError, match=r"made by the method .*Imitation, this run's is .*Parts"):
        trainer(tokenizer, Parts(None)).restore(state)


def test_reward_gradients_are_of_the_first_scores_that_carry_one(tokenizer: Any) -> None:
    class Late(DirectLearner):
        def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
            yield Loss(total(trainable(sampler.pipe)))
            with torch.no_grad():
                score(torch.rand(2, 3, 8, 8), batch.prompts)
            yield from super().losses(batch, sampler, score)

    reward = Redness(RednessConfig())
    late, plain = (trainer(tokenizer, kind(DraftK(k=1)), reward) for kind in (Late, DirectLearner))
    assert late.reward_gradients() == plain.reward_gradients() != ({}, {})
    never = Late(DraftK(k=1))
    never.losses = lambda batch, sampler, score: iter([Loss(total(trainable(sampler.pipe)))])  # type: ignore[method-assign]
    assert trainer(tokenizer, never, reward).reward_gradients() == ({}, {})


def test_prompts_are_a_list(tokenizer: Any) -> None:
    one = trainer(tokenizer, Imitation())
    with pytest.raises(DraftError, match="Trainer: the prompts are one text, 'cat'; give a list of them"):
        Trainer(one.sampler, one.objective, Imitation(), "cat", TrainSettings(), device="cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gradient_accumulation_steps": 0},
        {"normalize": "Scale"},
        {"sharding": "Full"},
        {"betas": (0.9, 1.0)},
        {"learning_rate": float("nan")},
        {"steps": True},
        {"seed": 0.5},
    ],
)
def test_settings_keep_their_bounds_outside_recipes(wrong: dict[str, Any]) -> None:
    with pytest.raises(DraftError, match=f"TrainSettings: {next(iter(wrong))}: .* is not "):
        TrainSettings(**wrong)
