"""The embeddings of people: vectors with names in a file, mixed by weights, and made of a few preference pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.preferences import TIE, Preference
from draft_core.rewards.images import read_image

ENCODER = "encoder"  # key of a file's metadata
EXAMPLE = "write them such as alice:0.7,bob:0.3"
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
LEAST = 1e-3  # length of all differences together, in that of each by itself: below, answers contradict each other


@dataclass(frozen=True)
class UserEmbeddings:
    """Embeddings of one length with the names of their users.

    Arguments:
        vectors: name -> (D,) float32, finite.
        encoder: what made them, in words; empty if that is not known.

    Raises:
        DraftError: if there are none, a name has a colon or a comma, or a vector is of another length or not finite.
    """

    vectors: Mapping[str, torch.Tensor]
    encoder: str = ""

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
            text: `alice`, `alice:0.7,bob:0.3`, or blank. A weight lies in [-1, 1]: a negative one leads away from
                what the person likes, and more than one of anybody is more than the model was trained to be shown.

        Raises:
            RecipeError: if there is no such user, one is named twice, or a weight is no such number.
        """
        mixed, seen = torch.zeros(self.size), set[str]()
        for part in text.split(",") if text.strip() else ():
            name, colon, weight = (word.strip() for word in part.partition(":"))
            if name not in self.vectors:
                raise RecipeError(
                    f"there is no user {name!r}",
                    where=where,
                    next=f"there are {len(self.vectors)}, such as {', '.join(self.names[:3])}",
                )
            if name in seen:
                raise RecipeError(f"user {name!r} is named twice", where=where, next=EXAMPLE)
            seen.add(name)
            mixed += (_weight(weight, where) if colon else 1.0) * self.vectors[name]
        return mixed

    def of_row(self, prompt: str, column: str, *, where: str) -> torch.Tensor:
        """The embedding of a prompt's user, (D,); zeros where its row has no such column.

        Raises:
            RecipeError: as `of`.
        """
        return self.of(getattr(prompt, "columns", {}).get(column) or "", where=f"{where}: column {column!r}")

    def check(self, lists: Mapping[str, Sequence[str]], column: str) -> None:
        """Refuses prompts whose users are not known.

        Arguments:
            lists: where a list of prompts stands -> the prompts.

        Raises:
            RecipeError: as `of`, for the first.
        """
        for where, prompts in lists.items():
            for prompt in prompts:
                self.of_row(prompt, column, where=where)

    def save(self, path: Path) -> None:
        """Writes a .safetensors file, name -> vector, whole or not at all: an earlier one holds all other users."""
        vectors = {name: vector.contiguous() for name, vector in self.vectors.items()}
        aside = path.with_name(path.name + ".partial")
        save_file(vectors, aside, {"format": "pt", ENCODER: self.encoder})
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> UserEmbeddings:
        """The embeddings of a .safetensors file: name -> vector.

        Raises:
            CheckpointError: if it is no such file.
            DraftError: as the class.
        """
        try:
            with safe_open(path, framework="pt") as file:
                encoder = (file.metadata() or {}).get(ENCODER, "")
                vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"it is not a safetensors file of users ({error})", where=str(path), next="make one with `draft user`"
            ) from error
        return cls({name: vector.float() for name, vector in vectors.items()}, encoder)


def _weight(text: str, where: str) -> float:
    if not NUMBER.fullmatch(text) or abs(float(text)) > 1:
        raise RecipeError(f"{text!r} is no weight of a user, which lies in -1..1", where=where, next=EXAMPLE)
    return float(text)


def embed_pairs(pairs: Sequence[Preference], encoder: Any) -> torch.Tensor:
    """The embedding of who preferred the first images of these pairs, (D,) of length 1.

    The mean over pairs of the difference between the features of winner and loser, by a frozen encoder.

    Arguments:
        pairs: about four; a pair counts by how clear it is, a tie for nothing.
        encoder: a reward with `image_features(images) -> (B, D)`, as those have that are made of a CLIP.

    Raises:
        RecipeError: if the encoder has no such features.
        DraftError: if an image cannot be read, or the pairs say nothing: all are ties, or they contradict each other.
    """
    if not hasattr(encoder, "image_features"):
        raise RecipeError(
            "this reward gives no features of images", where="--reward", next="take one that is made of a CLIP"
        )
    embedding, said = torch.zeros(()), torch.zeros(())  # the sum, and the sum of lengths
    with torch.no_grad():
        for pair in pairs:
            winner, loser = (encoder.image_features(read_image(file))[0].float() for file in (pair.winner, pair.loser))
            difference = 2 * (pair.grade - TIE) * (winner - loser).cpu()
            embedding, said = embedding + difference, said + torch.linalg.vector_norm(difference)
    length = torch.linalg.vector_norm(embedding)
    if not LEAST * float(said) < float(length) < float("inf"):
        raise DraftError(
            "the pairs say nothing of who chose", where="pairs", next="give pairs with a clear winner, which agree"
        )
    unit: torch.Tensor = embedding / length
    return unit
