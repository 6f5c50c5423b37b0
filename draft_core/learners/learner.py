"""What a method must offer so that the trainer can train with it; read this first to write a method of your own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from draft_core.errors import DraftError
from draft_core.rewards.objective import NOTHING, Scores

if TYPE_CHECKING:  # it brings diffusers, which reading a run does without
    from draft_core.sampling.sampler import DifferentiableSampler

T = TypeVar("T")

ADAPTER = "adapter"  # the name, in `Loss.of`, of the part that every method trains


@dataclass(frozen=True)
class Loss:
    """One term of an update, which the trainer backpropagates at once.

    The gradients of all losses of a part add up until one of them says `step`; what is left at the end of the update
    is stepped then.

    Arguments:
        value: what to minimise, with gradient, (). Its graph is freed, so no later loss may share it.
        share: factor of `value` in its optimiser step; those of one step sum to 1 over the learner's losses. The
            trainer divides by the number of accumulated batches and averages over processes.
        of: which part it trains: "adapter", or a name of `Learner.modules()`. No other part gets a gradient of it.
        step: whether the trainer takes an optimiser step of this part after it.
        images: over how many images `value` is a mean: its weight in what the trainer reports; 0 where this process
            has none of them.
        divergence: mean squared distance between the predictions of the tuned and the base denoiser, with gradient,
            (); the trainer adds it with the weight `regularizers.kl`. None where the sampler has no base model. Where
            `Scores.gate` is no None it is `gated_mean`, if the learner `gates_divergence`.
        report: further numbers, name -> value, whose means over images stand in `StepReport.learner`.
        notes: what a person should know of it, one sentence each, for `StepReport.notes`.
        queries: images that this process had a reward score for it otherwise than by `score`.
    """

    value: torch.Tensor
    share: float = 1.0
    of: str = ADAPTER
    step: bool = False
    images: int = 1
    divergence: torch.Tensor | None = None
    report: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    queries: int = 0


def gate_of(scores: Any) -> torch.Tensor | None:
    """`Scores.gate`; None of scores that were made by others and have none."""
    gate: torch.Tensor | None = getattr(scores, "gate", None)
    return gate


def gated_mean(squares: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """The mean of squared differences, those of images with a gate of 0 taken for 0, ().

    Arguments:
        squares: (R, ...) of R rows, one or several batches of N images; (R,) where each row's mean is taken already.
        gate: `Scores.gate`, (N,); None lets all through.

    Raises:
        DraftError: if the rows are not those of N images.
    """
    if gate is None:
        return squares.mean()
    if not squares.ndim or len(squares) % len(gate):
        rows = f"{len(squares)} rows" if squares.ndim else "a list"
        raise DraftError(
            f"the denoiser is called with {rows} for {len(gate)} images, and which belongs to which is not known",
            where="regularizers.kl_gate",
            next="leave it out, or set train.batch_size to 1 for each process",
        )
    of_rows = squares.flatten(1).mean(1) if squares.ndim > 1 else squares
    return (of_rows.view(-1, len(gate)) * gate.to(of_rows)).mean()


class Ranks(Protocol):
    """The processes of a run, as a learner may use them; each must make the same calls in the same order.

    Attributes:
        rank: which process this is, from 0.
        world_size: how many there are.
    """

    rank: int
    world_size: int

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank: small ones, such as lists of scores."""
        ...

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over processes of tensors of one shape."""
        ...


class Alone:
    """`Ranks` of a single process, which gets its own values back."""

    rank, world_size = 0, 1

    def gather(self, value: T) -> list[T]:
        """The one value."""
        return [value]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


@dataclass(frozen=True)
class Batch:
    """What one process draws for one of the accumulated batches of an update.

    Arguments:
        prompts: B prompts; with `train.images_per_prompt` each of them so often in a row.
        generators: noise sources on the CPU, one for each image: as many in a row for every prompt as the call makes.
        columns: what a prompt list says beside the prompt, name -> B values.
        update: how many updates have been made before this one.
        rng: for choices that all batches and processes of the update share, seeded by the run's seed and `update`.
        ranks: the processes of the run.
    """

    prompts: Sequence[str]
    generators: Sequence[torch.Generator]
    columns: Mapping[str, Sequence[str]]
    update: int
    rng: Random
    ranks: Ranks


class Score(Protocol):
    """Scores images by the run's rewards, normalised and weighted; what it has scored is in the update's report."""

    def __call__(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        *,
        latents: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] = NOTHING,
    ) -> Scores:
        """The scores of images (N, 3, H, W) in [0, 1], or of videos (N, F, 3, H, W), for their N prompts.

        They carry the gradient of the images where the rewards have one.

        Arguments:
            latents: what the decoder made the images of, `Rollout.decoded`, for surrogates that look at these.
            known: reward name -> scores, (N,), that are taken in the place of that reward's own.

        Raises:
            RewardError: if a reward raises, or returns anything but one float32 score for each image.
        """
        ...


class Learner(Protocol):
    """A method at work: it samples, scores, and says what to minimise.

    A `MethodSpec` names a callable that makes one of a method's config. It may have five members more:
    `check_columns(columns)`, which a run calls before it loads a model, and which raises a `DraftError` if it cannot
    use what the prompt list says beside the prompts; `check(sampler)`, which a run calls before it draws anything, and
    which raises one if the sampler does not suit; `needs_base_model`, true if it takes `sampler.base_model` also
    without a weight of `regularizers.kl`; `gates_divergence`, true if its divergences heed `Scores.gate`, without
    which `regularizers.kl_gate` is refused; and `trains_through_sampler`, true if its losses backpropagate through
    recorded calls of the sampler that it is given, without which `regularizers.kl_relative` is.

    Attributes:
        needs_gradient: whether it backpropagates through the rewards; where not, they need not be differentiable.
        yields_divergence: whether its losses carry their `divergence` from the base model where the sampler has one;
            where not, a weight in `regularizers.kl` is refused.
    """

    needs_gradient: bool
    yields_divergence: bool

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """The losses of one batch, each made when it is asked for, inside the trainer's autocast.

        The trainer has backpropagated a loss, and taken its step, before it asks for the next one, so that no more
        than one graph is alive. With several accumulated batches it takes from each of them the losses up to and
        including a `step`, then steps; once one of them is over, the update is.
        """
        ...

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """Name -> further trained part, such as a value network; the same ones whenever it is asked.

        The trainer puts each on its device, optimises it with an AdamW of its own, and keeps both in checkpoints.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What else must be remembered from one update to the next: tensors, numbers, texts, lists and mappings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`; raises ValueError, KeyError or TypeError if it does not fit."""
        ...
