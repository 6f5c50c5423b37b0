"""The reward itself: makes it, scores images out of shared memory, and keeps what their gradients need."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from draft_core.errors import RewardError, first_line
from draft_core.registry.catalog import load_catalog
from draft_core.reward_process.describing import config_of
from draft_core.reward_process.making import made_reward
from draft_core.rewards.objective import checked_scores
from draft_core.rewards.protocol import takes, with_components
from draft_core.workers.memory import LESS_MEMORY, SharedMemory
from draft_core.workers.precision import adopt
from draft_core.workers.tensors import put, take


class Scorer:
    """A reward made from a question with its `config`, the path of the shared `memory`, and `where` it stands.

    Raises:
        DraftError: if it cannot be made.
    """

    def __init__(self, question: Mapping[str, Any]) -> None:
        self.memory = SharedMemory(question["memory"])
        self.memory.forget_name()
        catalog = load_catalog()
        config = config_of(question["config"], catalog, folder=".", overrides=[])
        self.name, self.where = config.kind, question["where"]
        self.stays = config.device is not None
        self.reward = made_reward(config, catalog).requires_grad_(False).eval()
        self.takes = takes(self.reward)
        self.device: str | None = None
        # Number of a call -> its images and scores.
        self.calls: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def score(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Scores, with what their gradient needs kept if the call has a number.

        Raises:
            DraftError: as the reward in the asking process would raise.
        """
        self._forget(question)
        device, call = question["device"], question["call"]
        if not self.stays and device != self.device:
            self.reward.to(device)
            self.device = device
        images = take(self.memory, question["images"], device).requires_grad_(call is not None)
        pixels = [take(self.memory, told, device) for told in question["column_images"]]
        parts: dict[str, torch.Tensor] = {}
        columns = _joined(question["columns"], pixels)
        beside = {} if columns is None else {"columns": columns}

        def ask(images: torch.Tensor, prompts: Sequence[str]) -> Any:
            if not question["components"]:
                return self.reward(images, prompts, **beside)
            scores, told = with_components(self.reward, images, prompts, **beside)
            parts.update(told)
            return scores

        with self._memory_in_a_sentence(), adopt(question["settings"]), torch.set_grad_enabled(call is not None):
            scores = checked_scores(self.name, ask, images, question["prompts"])
        if call is not None and scores.requires_grad:
            self.calls[call] = images, scores
        told = put(self.memory, [scores, *parts.values()])
        return {"tensors": told, "parts": [*parts], "has_gradient": scores.requires_grad}

    def gradient(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The gradient in the images of a call, which is forgotten then; of a call that it does not know, that."""
        self._forget(question)
        if question["call"] not in self.calls:
            return {"known": False}
        images, scores = self.calls.pop(question["call"])
        of = take(self.memory, question["of"], scores.device)
        with self._memory_in_a_sentence(), torch.enable_grad():  # for the sum below
            adopt(question["settings"])  # without its autocast: a backward pass has none
            # That of this sum is `of` times 1, the same in every bit; given `of` itself, torch would import sympy.
            (gradient,) = torch.autograd.grad((scores * of).sum(), images, allow_unused=True)
        return {"known": True, "gradient": None if gradient is None else put(self.memory, [gradient])[0]}

    def _forget(self, question: Mapping[str, Any]) -> None:
        for call in question["forget"]:
            self.calls.pop(call, None)

    @contextlib.contextmanager
    def _memory_in_a_sentence(self) -> Any:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise RewardError(
                f"it does not fit into memory ({first_line(error)})", where=self.where, next=LESS_MEMORY
            ) from error


def _joined(columns: Mapping[str, list[Any]] | None, pixels: Sequence[torch.Tensor]) -> dict[str, list[Any]] | None:
    """Columns with their images, each of which is told by the number of its tensor in a list."""
    if columns is None:
        return None
    return {
        name: [pixels[value[0]] if isinstance(value, list) else value for value in values]
        for name, values in columns.items()
    }
