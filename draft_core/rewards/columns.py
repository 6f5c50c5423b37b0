"""What stands beside prompts, as it is given to rewards and to a pipeline's call: texts, numbers and images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from draft_core.errors import DraftError, SamplerError
from draft_core.prompt_rows import Column, PromptRow, column_of_argument, row_key
from draft_core.rewards.image_files import image_size
from draft_core.rewards.images import read_image, to_pil


def for_reward(
    columns: Mapping[str, Column], prompts: Sequence[str], images: torch.Tensor, *, where: str
) -> dict[str, list[Any]]:
    """What a reward is given as its `columns`: name -> a value for each prompt.

    A text, a float, or for an image a tensor (3, H, W) in [0, 1] of its own size, on the device and of the type of
    `images`.

    Arguments:
        columns: name that the reward knows -> the column of the list.
        where: who reads them; it begins an error's sentence.

    Raises:
        DraftError: if a prompt has no such column, or what it holds is of another type.
    """
    read: dict[Path, torch.Tensor] = {}

    def value(prompt: str, column: Column) -> Any:
        found = column.of(prompt, where=where)
        if column.type != "image":
            return found
        if isinstance(found, Path):
            if found not in read:
                read[found] = read_image(found)[0].to(images)
            return read[found]
        return _levels(found).to(images)

    return {name: [value(prompt, column) for prompt in prompts] for name, column in columns.items()}


def _levels(image: Any) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


class Computed(Protocol):
    """Arguments of a call that are computed of its prompts together, such as the embeddings of their users."""

    @property
    def names(self) -> Sequence[str]:
        """Of the arguments."""
        ...

    def of(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Argument -> value, for B prompts."""
        ...

    def seams(self) -> list[tuple[Any, str, Any]]:
        """Owner, name and wrapper of methods of the pipeline that are replaced inside a call."""
        ...


class Caller(Protocol):
    """What is known of who makes a call, a sampler."""

    pipe: Any

    @property
    def takes_each(self) -> bool:
        """Whether the call takes a list with a value for each prompt; asked only for several."""
        ...


@dataclass(frozen=True)
class CallColumns:
    """The arguments of a pipeline's call that have a value of their own for every prompt.

    Arguments:
        names: argument -> column of the list of prompts.
        example: a row to try the call with before anything is drawn; needed where there are names.
        computed: further arguments, which a call must have.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    example: PromptRow | None = None
    computed: Computed | None = None

    @property
    def arguments(self) -> set[str]:
        """The names of all these arguments."""
        return {*self.names, *(self.computed.names if self.computed else ())}

    def of(self, prompts: Sequence[str] | None, caller: Caller) -> dict[str, Any]:
        """Argument -> its value for one call: one alone for one prompt, a list for several.

        Without prompts it is empty.

        Arguments:
            prompts: B rows; None where the call has no prompts.
            caller: who makes the call. Where its pipeline does not take a list with a value for each prompt, all must
                have the same one, which is given alone.

        Raises:
            SamplerError: if values differ and the call takes one, or if images differ in size.
            DraftError: if a prompt has no such column, or what it holds is of another type.
        """
        if prompts is None:
            return {}
        found = {} if self.computed is None else self.computed.of(prompts)
        where = type(caller.pipe).__name__
        takes_list = bool(self.names) and len(prompts) > 1 and caller.takes_each
        for argument, name in self.names.items():
            column = column_of_argument(argument, name)
            blank = column.type == "text"  # no negative prompt, say
            given = [column.of(prompt, where=f"{where}: {argument}", may_be_blank=blank) for prompt in prompts]
            found[argument] = _for_call(argument, [*map(_read, given)], takes_list, where)
        return found

    def may_share_a_call(self, first: str, second: str, takes_each: Callable[[], bool]) -> bool:
        """Whether two prompts can be drawn in one call: they have one row, or the call takes each its own value.

        Arguments:
            first, second: rows.
            takes_each: says whether the call takes a list with a value for each prompt.

        Raises:
            DraftError: if a row lacks a column, or its image cannot be read.
        """
        if not self.names or row_key(first) == row_key(second):
            return True
        if not takes_each():
            return False
        sizes = [
            _size(column.of(prompt, where=argument))
            for argument, name in self.names.items()
            if (column := column_of_argument(argument, name)).type == "image"
            for prompt in (first, second)
        ]
        return all(size == other for size, other in zip(sizes[::2], sizes[1::2], strict=True))

    def tried(self) -> tuple[list[PromptRow], list[PromptRow], list[PromptRow]]:
        """Pairs of rows that show whether a call keeps the values of its prompts apart: (a, a), (a, b) and (b, b).

        Row b has the negative of each image of the example, and another text.
        """
        assert self.example is not None
        columns, others = dict(self.example.columns), dict(self.example.columns)
        for argument, name in self.names.items():
            column = column_of_argument(argument, name)
            value = column.of(self.example, where=argument, may_be_blank=True)
            if column.type == "image":
                image = _read(value)
                columns[name] = image
                others[name] = Image.fromarray(255 - np.asarray(image.convert("RGB")))
            else:
                others[name] = f"{value} and another"
        a, b = PromptRow(self.example, columns), PromptRow(self.example, others)
        return [a, a], [a, b], [b, b]


def check_images_of(columns: Mapping[str, Sequence[Path]], *, of_one_size: Collection[str], where: str) -> None:
    """That the files of columns are images.

    Arguments:
        columns: name -> a file for each prompt.
        of_one_size: the columns whose images must have one size, as those of a call with several prompts.
        where: the field that names the prompts; it begins an error's sentence.

    Raises:
        DraftError: naming the first file that is none, or two of different size.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    for name, files in columns.items():
        for file in files:
            if file not in sizes:
                sizes[file] = image_size(file)
            (tall, wide), (height, width) = sizes[files[0]], sizes[file]
            if name in of_one_size and (tall, wide) != (height, width):
                raise DraftError(
                    f"{files[0].name} is {wide} x {tall} pixels, {file.name} is {width} x {height}, and a call of "
                    "several prompts takes images of one size",
                    where=f"{where}: column {name!r}",
                    next="scale them, or set train.batch_size to train.images_per_prompt: one prompt in each call",
                )


def _for_call(argument: str, values: list[Any], takes_each: bool, where: str) -> Any:
    """The values of several prompts as one argument of a call."""
    first = values[0]
    if len(values) == 1 or (not takes_each and all(value is first or value == first for value in values)):
        return first
    if not takes_each:
        raise SamplerError(
            f"its call takes one {argument} for all its prompts, and these have different ones",
            where=where,
            next="set train.batch_size to train.images_per_prompt, so that a call has one prompt",
        )
    if sizes := [value.size for value in values if isinstance(value, Image.Image) and value.size != first.size]:
        (wide, tall), (width, height) = first.size, sizes[0]
        raise SamplerError(
            f"the {argument} of one prompt is {wide} x {tall} pixels, that of another {width} x {height}, and a "
            "call takes images of one size",
            where=where,
            next="give images of one size, or set train.batch_size to train.images_per_prompt",
        )
    return values


def _read(value: Any) -> Any:
    """The image in a file, for a path; else the value as it is."""
    if not isinstance(value, Path):
        return value
    try:
        state = value.stat()
    except OSError:
        return to_pil(read_image(value)[0])  # which says what is wrong with it
    return _read_once(value, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)
def _read_once(path: Path, changed: int, size: int) -> Any:
    """The image in a file as it was then: a replay asks for it at every step."""
    return to_pil(read_image(path)[0])


def _size(image: Any) -> tuple[int, int]:
    """Height and width in pixels."""
    return image_size(image) if isinstance(image, Path) else (image.height, image.width)
