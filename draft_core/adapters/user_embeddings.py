"""The embeddings of people: vectors with names in a file, mixed by weights, and made of a few preference pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.preferences import TIE, Preference
from draft_core.rewards.images import read_image


@dataclass(frozen=True)
class UserEmbeddings:
    """Embeddings of one length with the names of their users.

    Arguments:
        vectors: name -> (D,) float32, finite.

    Raises:
        DraftError: if there are none, a name has a colon or a comma, or a vector is of another length or not finite.
    """

    vectors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        """Checks them."""
        if not self.vectors:
            raise DraftError("there are no users", where="users", next="make one with `draft user`")
        for name, vector in self.vectors.items():
            if not name.strip() or set(name) & set(":,"):
                raise DraftError(
                    f"{name!r} is no name of a user", where="users", next="give one without colons and commas"
                )
            if vector.ndim != 1 or len(vector) != self.size or not vector.isfinite().all():
                raise DraftError(
                    f"the embedding of {name!r} is no vector of {self.size} finite numbers",
                    where="users",
                    next="make all of them with one encoder",
                )

    @property
    def names(self) -> list[str]:
        """Of the users."""
        return list(self.vectors)

    @property
    def size(self) -> int:
        """D, numbers in each embedding."""
        return next(iter(self.vectors.values())).numel()

    def of(self, text: str, *, where: str) -> torch.Tensor:
        """The embedding that a text names, (D,) float32: of one user, a weighted sum, or zeros for a blank.

        Arguments:
            text: `alice`, `alice:0.7,bob:0.3`, or blank.

        Raises:
            RecipeError: if there is no such user, or a weight is no finite number.
        """
        mixed = torch.zeros(self.size)
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, weight = part.partition(":")
            if name.strip() not in self.vectors:
                raise RecipeError(
                    f"there is no user {name.strip()!r}",
                    where=where,
                    next=f"there are {len(self.vectors)}, such as {', '.join(self.names[:3])}",
                )
            mixed += _weight(weight or "1", where) * self.vectors[name.strip()]
        return mixed

    def of_row(self, prompt: str, column: str, *, where: str) -> torch.Tensor:
        """The embedding of a prompt's user, (D,); zeros where its row has no such column.

        Raises:
            RecipeError: as `of`.
        """
        return self.of(getattr(prompt, "columns", {}).get(column) or "", where=f"{where}: column {column!r}")

    def check(self, prompts: Sequence[str], column: str, *, where: str) -> None:
        """Refuses prompts whose users are not known.

        Raises:
            RecipeError: as `of`, for the first.
        """
        for prompt in prompts:
            self.of_row(prompt, column, where=where)

    def save(self, path: Path) -> None:
        """Writes a .safetensors file: name -> vector."""
        save_file({name: vector.contiguous() for name, vector in self.vectors.items()}, path)

    @classmethod
    def read(cls, path: Path) -> UserEmbeddings:
        """The embeddings of a .safetensors file: name -> vector.

        Raises:
            CheckpointError: if it is no such file.
            DraftError: as the class.
        """
        try:
            vectors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"it is not a safetensors file of users ({error})", where=str(path), next="make one with `draft user`"
            ) from error
        return cls({name: vector.float() for name, vector in vectors.items()})


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = float("nan")
    if weight != weight or abs(weight) == float("inf"):
        raise RecipeError(f"{text!r} is no weight of a user", where=where, next="write one such as alice:0.7,bob:0.3")
    return weight


def embed_pairs(pairs: Sequence[Preference], encoder: Any) -> torch.Tensor:
    """The embedding of who preferred the first images of these pairs, (D,) of length 1.

    The mean over pairs of the difference between the features of winner and loser, by a frozen encoder.

    Arguments:
        pairs: about four; a pair counts by how clear it is, a tie for nothing.
        encoder: a reward with `image_features(images) -> (B, D)`, as those have that are made of a CLIP.

    Raises:
        RecipeError: if the encoder has no such features.
        DraftError: if an image cannot be read, or the pairs say nothing.
    """
    if not hasattr(encoder, "image_features"):
        raise RecipeError(
            "this reward gives no features of images", where="--reward", next="take one that is made of a CLIP"
        )
    embedding = torch.zeros(())
    with torch.no_grad():
        for pair in pairs:
            winner, loser = (encoder.image_features(read_image(file))[0].float() for file in (pair.winner, pair.loser))
            embedding = embedding + 2 * (pair.grade - TIE) * (winner - loser).cpu()
    length = torch.linalg.vector_norm(embedding)
    if not 0 < float(length) < float("inf"):
        raise DraftError("the pairs say nothing of who chose", where="pairs", next="give pairs with a clear winner")
    unit: torch.Tensor = embedding / length
    return unit
