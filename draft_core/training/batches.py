"""What each update draws: prompts and noise, from the run's seed and the update alone.

A resumed run therefore draws what an uninterrupted one would, and a process draws its own part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import torch

from draft_core.frames import FrameChoice
from draft_core.learners.learner import Batch, Ranks
from draft_core.training.settings import FrameSettings


@dataclass(frozen=True)
class Batches:
    """The batches of a training.

    Arguments:
        prompts: taken in an order shuffled anew each time all have been used.
        seed: of prompts, noise and plans.
        batch_size: items in one batch of one process: `repeats` for each of its prompts.
        accumulation: batches in one update.
        images_per_prompt: how many images the pipeline's call makes of each item.
        ranks: the processes that share an update.
        columns: what the prompt list says beside each prompt, name -> as many values as there are prompts.
        repeats: how many items in a row have one prompt; divides `batch_size`.
    """

    prompts: Sequence[str]
    seed: int
    batch_size: int
    accumulation: int
    images_per_prompt: int
    ranks: Ranks
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    repeats: int = 1

    def draw(self, update: int) -> Iterator[Batch]:
        """This process' part of each batch of the update that follows `update` earlier ones."""
        images = self.repeats * self.images_per_prompt  # of each prompt
        for micro_batch in range(self.accumulation):
            batch = (update * self.accumulation + micro_batch) * self.ranks.world_size + self.ranks.rank
            prompts = self.batch_size // self.repeats
            indices = range(batch * prompts, (batch + 1) * prompts)
            chosen = [self._prompt_index(index) for index in indices for _ in range(self.repeats)]
            yield Batch(
                prompts=[self.prompts[index] for index in chosen],
                generators=[self._noise(index, copy) for index in indices for copy in range(images)],
                columns={name: [column[index] for index in chosen] for name, column in self.columns.items()},
                update=update,
                rng=self.choices(update),
                ranks=self.ranks,
            )

    def choices(self, update: int) -> Random:
        """For choices that all batches and processes of the update after `update` earlier ones share."""
        return Random(f"plan {self.seed} {update}")

    def frames(self, settings: FrameSettings | None, update: int) -> FrameChoice | None:
        """The frames that all batches and processes of the update after `update` earlier ones share; None for all."""
        return None if settings is None else FrameChoice(settings.count, settings.choice, f"{self.seed} {update}")

    def _noise(self, index: int, copy: int) -> torch.Generator:
        """Drawn on the CPU, so that a seed means the same images on every device."""
        return torch.Generator("cpu").manual_seed(Random(f"noise {self.seed} {index} {copy}").getrandbits(62))

    def _prompt_index(self, index: int) -> int:
        epoch, position = divmod(index, len(self.prompts))
        return _order(len(self.prompts), self.seed, epoch)[position]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """In which the prompts of an epoch come; kept, since every image of a batch asks for it."""
    order = list(range(count))
    Random(f"prompts {seed} {epoch}").shuffle(order)
    return tuple(order)
