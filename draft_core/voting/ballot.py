"""What is asked and what was answered: read it for how a sitting goes on after an interruption, and for undo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Literal

from draft_core.voting.pairs import Pair
from draft_core.voting.vote_file import Vote, VoteFile

Answer = Literal["left", "right", "tie"]


class Ballot:
    """Pairs of images, asked one after the other; several threads may answer.

    Arguments:
        pairs: in the order in which they are asked.
        file: where the answers go; pairs that it holds already are not asked again.
    """

    def __init__(self, pairs: Sequence[Pair], file: VoteFile) -> None:
        self.pairs, self.file = pairs, file
        self._lock = Lock()
        self._number_of = {frozenset(self._paths(pair)): number for number, pair in enumerate(pairs)}
        self._open = set(range(len(pairs))) - {self._of(vote) for vote in file.votes}

    @property
    def current(self) -> int | None:
        """The number of the pair to ask now, None if all are answered."""
        return min(self._open, default=None)

    @property
    def answered(self) -> int:
        """How many of the pairs are answered."""
        return len(self.pairs) - len(self._open)

    @property
    def can_undo(self) -> bool:
        """Whether the last answer in the file is about one of these pairs."""
        return bool(self.file.votes) and self._of(self.file.votes[-1]) is not None

    def answer(self, number: int, answer: Answer) -> None:
        """Writes down what was said of the current pair; an answer to another one, sent twice say, is left out.

        Raises:
            OSError: if it cannot be written; the pair is then asked again.
        """
        with self._lock:
            if number != self.current:
                return
            pair = self.pairs[number]
            left, right = self._paths(pair)
            winner, loser = (right, left) if answer == "right" else (left, right)
            self.file.append(Vote(pair.prompt, winner, loser, tie=answer == "tie"))
            self._open.discard(number)

    def undo(self) -> None:
        """Takes the last answer back, if it was about one of these pairs, which is then asked again.

        Raises:
            OSError: if the file cannot be written.
        """
        with self._lock:
            if self.can_undo:
                number = self._of(self.file.votes[-1])
                assert number is not None
                self.file.drop_last()
                self._open.add(number)

    def _of(self, vote: Vote) -> int | None:
        """The number of the pair that a vote is about."""
        return self._number_of.get(frozenset((vote.winner, vote.loser)))

    def _paths(self, pair: Pair) -> tuple[str, str]:
        """The files of a pair as the file of votes names them."""
        folder = self.file.path.parent.resolve()
        left, right = (Path(os.path.relpath(image.resolve(), folder)).as_posix() for image in (pair.left, pair.right))
        return left, right
