"""A worker: the process that holds one reward, started again when it was killed, and what is asked of it.

A frozen reward has no state, so that a question can be put again to a new process: the answer is the same in every bit.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from draft_core.errors import RewardError
from draft_core.workers.memory import LESS_MEMORY, SharedMemory
from draft_core.workers.precision import settings_of
from draft_core.workers.process import WorkerDiedError, WorkerProcess
from draft_core.workers.tensors import put, take

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

STARTS = 2  # of a process for one question: the second is after the first was killed


@dataclass(frozen=True)
class Scored:
    """What a reward answered.

    Arguments:
        scores: float32 (N,).
        parts: name -> (N,), of a reward that tells its components.
        has_gradient: whether its scores depend on the images as far as autograd can see.
    """

    scores: torch.Tensor
    parts: Mapping[str, torch.Tensor]
    has_gradient: bool


class Worker:
    """A reward in a process of another Python.

    Arguments:
        python: the interpreter's path.
        config: of the reward, as JSON says it; its kind is one that this environment has.
        timeout: seconds for each answer; loading counts as one.
        where: begins the sentence of every error.

    Attributes:
        takes: what the reward says that it takes.
        starts: how often a process was started.

    Raises:
        DraftError: if the process cannot be started, or the reward not be made.
    """

    def __init__(self, python: Path, config: Mapping[str, Any], *, timeout: float, where: str) -> None:
        self.python, self.config, self.timeout, self.where = python, config, timeout, where
        self.starts = 0
        self._asking = threading.RLock()  # autograd asks for the gradients of a GPU's images in a thread of its own
        self._calls = itertools.count()
        self._forgotten: list[int] = []
        self._died = ""  # how the last process ended, until the next is there
        self._process: WorkerProcess | None = None
        self._memory: SharedMemory | None = None
        self.takes = "image"
        self._exact(lambda: None)

    @property
    def pid(self) -> int | None:
        """The number of its process; None while it has none."""
        return self._process.process.pid if self._process else None

    def new_call(self) -> int:
        """A number for a call whose gradient may be asked for."""
        return next(self._calls)

    def forget(self, call: int) -> None:
        """Says with the next question that nobody will ask for the gradient of this call."""
        self._forgotten.append(call)

    def score(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None,
        *,
        call: int | None = None,
        components: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Scored:
        """What the reward gives images (N, 3, H, W), or videos, and N prompts, on the device of the images.

        Arguments:
            columns: name -> a text, a number or an image (3, H, W) for each prompt; None if it reads none.
            call: under which number the process keeps what the gradient needs; None if none will be asked for.
            components: whether the parts of the scores are asked for too.
            settings: `settings_of` this process where the call is made; as they are now if left out.

        Raises:
            DraftError: as the reward in this process would raise, or that says what became of the process.
        """
        settings = settings or settings_of(images.device)

        def ask() -> Scored:
            beside, pixels = _split(columns)
            told = put(self._shared(), [images, *pixels])
            answer = self._ask(
                {
                    "do": "score",
                    "call": call,
                    "components": components,
                    "device": str(images.device),
                    "images": told[0],
                    "prompts": [str(prompt) for prompt in prompts],
                    "columns": beside,
                    "column_images": told[1:],
                    "settings": settings,
                }
            )
            scores, *values = [take(self._shared(), told, images.device) for told in answer["tensors"]]
            return Scored(scores, dict(zip(answer["parts"], values, strict=True)), answer["has_gradient"])

        return self._exact(ask)

    def gradient(
        self, call: int, grad_scores: torch.Tensor, again: Callable[[], Scored], device: torch.device
    ) -> torch.Tensor | None:
        """The gradient in the images of a call, shaped like them, for that in its scores, (N,).

        Arguments:
            again: makes the call once more, where the process no longer has what its gradient needs: it was killed, or
                has given the gradient of that call already.
            device: of the images.

        Raises:
            DraftError: as `score`.
        """

        def ask() -> torch.Tensor | None:
            for _ in range(STARTS + 1):  # it may die once more between the call and this question
                told = put(self._shared(), [grad_scores])
                answer = self._ask({"do": "gradient", "call": call, "of": told[0], "settings": settings_of(device)})
                if answer["known"]:
                    gradient = answer["gradient"]
                    return None if gradient is None else take(self._shared(), gradient, device)
                again()
            raise WorkerDiedError("it was killed after each time that the call was made again")

        return self._exact(ask)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.close()
        self._drop()

    def _exact(self, ask: Callable[[], Answer]) -> Answer:
        """What a question gives, put once more to a new process if this one dies over it."""
        with self._asking:
            for _ in range(STARTS):
                try:
                    self._start()
                    return ask()
                except WorkerDiedError as error:
                    self._died = str(error)
                    self._drop()
                except BaseException:
                    if self._process is not None and self._process.process.poll() is not None:
                        self._drop()  # killed after its time was over, or by Ctrl-C
                    raise
            raise RewardError(
                f"its process died twice over the same question: {self._died}", where=self.where, next=LESS_MEMORY
            )

    def _start(self) -> None:
        """Starts the process and has it make the reward, if there is none."""
        if self._process is not None:
            return
        self.starts += 1
        try:
            process = WorkerProcess(self.python, where=self.where)
        except RewardError as error:
            if self.starts == 1:
                raise
            raise WorkerDiedError(error.what) from None  # it could start before
        memory = SharedMemory()
        try:
            question = {"do": "build", "config": self.config, "memory": memory.path, "where": self.where}
            self.takes = process.ask(question, timeout=self.timeout)["takes"]
        except BaseException:
            process.close()
            memory.close()
            raise
        self._process, self._memory = process, memory
        if self._died:
            log.warning(f"{self.where}: its process was started again, since {self._died}; no result changes")
            self._died = ""

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        forgotten, self._forgotten = self._forgotten, []
        return self._process.ask({**question, "forget": forgotten}, timeout=self.timeout)

    def _shared(self) -> SharedMemory:
        assert self._memory is not None
        return self._memory

    def _drop(self) -> None:
        if self._memory is not None:
            self._memory.close()
        self._process = self._memory = None


def _split(columns: Mapping[str, Sequence[Any]] | None) -> tuple[dict[str, list[Any]] | None, list[torch.Tensor]]:
    """Columns as JSON can say them, and the images among them: each is the number of its tensor in a list."""
    if columns is None:
        return None, []
    pixels: list[torch.Tensor] = []
    beside: dict[str, list[Any]] = {}
    for name, values in columns.items():
        beside[name] = []
        for value in values:
            if isinstance(value, torch.Tensor):
                beside[name].append([len(pixels)])
                pixels.append(value)
            else:
                beside[name].append(value)
    return beside, pixels
