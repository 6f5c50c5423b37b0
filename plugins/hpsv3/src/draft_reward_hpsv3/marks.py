"""The model's own marks, which no prompt can hold: it counts them. It imports no torch."""

from __future__ import annotations

from draft_core.errors import RewardError

REWARD_TOKEN, IMAGE_TOKEN = "<|Reward|>", "<|image_pad|>"
MARKS = (REWARD_TOKEN, IMAGE_TOKEN, "<|video_pad|>")


def refuse_marks(prompt: str, *, where: str) -> None:
    """That a prompt holds none of them.

    Arguments:
        where: who asks; it begins an error's sentence.

    Raises:
        RewardError: naming the prompt and the mark.
    """
    if found := [mark for mark in MARKS if mark in prompt]:
        raise RewardError(f"the prompt {prompt!r} holds {found[0]}, a mark of the model", where=where, next="reword it")
