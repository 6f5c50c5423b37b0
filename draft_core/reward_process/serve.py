"""Answers questions, one after the other, until the input ends."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from draft_core.errors import DraftError, RewardError, as_fields, raised
from draft_core.reward_process.describing import check_prompts, describe

Question = Mapping[str, Any]


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Says that it is there, then answers each line of `questions` by a line in `answers`.

    It ends with its input at once, also in the midst of an answer: whoever asked is gone.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions, lines), daemon=True).start()
    if importlib.util.find_spec("torch") is None:
        _tell(answers, {"missing": {"what": "No module named 'torch'", "missing": "torch"}})
        return
    _tell(answers, {})
    does: dict[str, Callable[[Question], dict[str, Any]]] = {"describe": describe, "check_prompts": check_prompts}
    answer: dict[str, Any]
    while True:
        question = json.loads(lines.get())
        try:
            if question["do"] == "build":
                from draft_core.reward_process.scoring import Scorer  # and with it torch

                scorer = Scorer(question)
                does.update(score=scorer.score, gradient=scorer.gradient)
                answer = {"takes": scorer.takes}
            else:
                answer = does[question["do"]](question)
        except DraftError as error:
            answer = {"error": as_fields(error)}
        except Exception as error:  # a plugin may raise anything
            answer = {"error": as_fields(RewardError(f"it raised {raised(error)}"))}
        _tell(answers, answer)


def _read(questions: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    for line in questions:
        lines.put(line)
    os._exit(0)


def _tell(answers: IO[bytes], answer: Mapping[str, Any]) -> None:
    rest = memoryview(json.dumps(answer).encode() + b"\n")
    while rest:
        rest = rest[answers.write(rest) or 0 :]
