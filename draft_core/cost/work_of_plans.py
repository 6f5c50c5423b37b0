"""Forecast of the methods whose gradient flows through the sampler: their plans say what is called."""

from __future__ import annotations

from draft_core.cost.probe import Probe, Times
from draft_core.cost.work import Calls, Seconds
from draft_core.learners.direct import images_per_noise
from draft_core.plan import Method, Renoising, StepPlan
from draft_core.setting import IN_PARTS, RECOMPUTING
from draft_core.training.trainer import Trainer


class PlannedWork:
    """What an update of a method of the DRaFT family asks, by the plan of the first one."""

    may_be_halved = True

    def __init__(self, trainer: Trainer, method: Method) -> None:
        self.trainer = trainer
        self.plan = method.plan(trainer.sampler.steps, trainer.batches.choices(0))
        self.renoising = method.renoising()
        self.probe = Probe(trainer)

    def times(self) -> Times:
        """Of an update of one image, backward passes included."""
        self.probe.update(1, 1)  # the first one sets up caches
        return self.probe.timed_update()

    def calls(self, calls_a_step: float) -> Calls:
        """Exact where each step calls the denoiser equally often."""
        return count_calls(self.trainer, self.plan, self.renoising, calls_a_step)

    def seconds(self, times: Times) -> Seconds:
        """Calls times seconds times images."""
        trainer, calls = self.trainer, self.calls(times.calls_a_step)
        batch = trainer.batch_size * trainer.batches.images_per_prompt
        return Seconds(
            plain=calls.plain * times.plain * batch,
            with_grad=calls.with_grad * times.with_grad * batch,
            decoding_and_rewards=calls.decoded * times.decoding_and_rewards,
            encoding=trainer.batches.accumulation * trainer.batch_size * times.encoding,
        )

    def activations(self, batch: int) -> int:
        """Linear in the batch and in the grad steps."""
        return _activations(batch, self.plan, self.renoising, self.probe)

    def images_at_once(self) -> int:
        """Activations grow at most in proportion to images and to grad steps."""
        copies = self.renoising.copies if self.renoising.batched else 1
        return max(len(self.plan.grad_steps), copies, 1) * self.trainer.batch_size


def count_calls(trainer: Trainer, plan: StepPlan, renoising: Renoising, calls_a_step: float) -> Calls:
    """The calls of an update of `plan`."""
    batch = trainer.batch_size * trainer.batches.images_per_prompt
    renoisings = min(1, renoising.copies) if renoising.batched else renoising.copies
    chain = len(plan.grad_steps) if plan.prefix is None else 0
    recorded = round(calls_a_step * (chain + renoisings))
    plain = round(calls_a_step * (plan.last + 1 - len(plan.grad_steps) if plan.prefix is None else plan.prefix))
    plain += recorded if trainer.regularizers.asks_base_model else 0  # the base model, at each recorded call
    images = trainer.batches.accumulation * batch * images_per_noise(plan, renoising)
    return Calls(
        plain=trainer.batches.accumulation * plain,
        with_grad=trainer.batches.accumulation * recorded,
        recomputed=trainer.batches.accumulation * recorded
        if trainer.sampler.gradient_checkpointing in RECOMPUTING
        else 0,
        decoded=images,
        scored=images,
    )


def _activations(batch: int, plan: StepPlan, renoising: Renoising, probe: Probe) -> int:
    """Peak of an update without the LoRA's gradient, linear in the batch and in the grad steps."""
    recorded = len(plan.grad_steps)

    def at(batch: int, recorded: int) -> float:
        """Bilinear through the four smallest updates; sums over images are kept from two on, where they go in turn."""
        least = 2 if probe.sampler.gradient_checkpointing in IN_PARTS and batch > 1 else 1
        small = measured(least, recorded)
        return small + (batch - least) * (measured(least + 1, recorded) - small) if batch > least else small

    def measured(batch: int, recorded: int) -> float:
        first = peaks(batch, 1)
        return first + (recorded - 1) * (peaks(batch, 2) - first) if recorded > 1 else first

    known: dict[tuple[int, int], int] = {}

    def peaks(batch: int, recorded: int) -> int:
        if (batch, recorded) not in known:
            known[batch, recorded] = probe.peak(batch, recorded)
        return known[batch, recorded]

    renoised = at(batch * renoising.copies, 1) if renoising.batched and renoising.copies else 0.0
    return round(max(at(batch, max(recorded, 1)), renoised))
