"""What a run leaves in its folder, and how it is read again: read it for the format of a file there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from draft_core.errors import CheckpointError, one_line
from draft_core.evaluation.collapse import CollapseRule, EvalRecord
from draft_core.json_text import json_text, made_of
from draft_core.reporting.image_grid import save_gif
from draft_core.rewards.images import read_image, to_pil
from draft_core.training.step_report import StepReport

Row = TypeVar("Row", StepReport, EvalRecord)

METRICS = "metrics.jsonl"  # one StepReport a line
EVALUATIONS = "evaluations.jsonl"  # one EvalRecord a line
FACTS = "run.json"  # written when the run is over
RECIPE = "recipe.yaml"
ERROR = "error.txt"  # by which error the run ended last, with its traceback; gone once it goes on
PROMPTS = "prompts.json"  # what the recipe's prompt lists held
# A folder for each evaluation, UPDATE/IMAGE.png, for each scale, scale-SCALE/IMAGE.png, and for each argument with an
# image of every prompt, input-ARGUMENT/PROMPT.png.
IMAGES = "images"
INPUT = "input-"


@dataclass(frozen=True)
class Licence:
    """The licences of one thing a run used; `weights` is None where it has none."""

    thing: str
    code: str
    weights: str | None


@dataclass(frozen=True)
class Facts:
    """What a finished run says of itself.

    Arguments:
        model: as in the recipe.
        location: what `DiffusionPipeline.from_pretrained` takes for the model.
        method: its kind.
        rewards: name -> weight of what was trained on, or with `trained_on` of what judges; other scores are held out.
        prompts: of the evaluations, P.
        seeds: of the evaluations, S for each prompt.
        prompts_are_unseen: whether these prompts were kept out of training.
        tolerance: of `CollapseRule`.
        call: the pipeline's arguments that the images were made with; an image is {"file": path}, a tuple
            {"tuple": items}.
        drawn_otherwise: which of these training has otherwise, a sentence without its point; empty if none.
        images_per_update: samples in one update.
        versions: distribution -> version.
        licences: of everything used.
        device: where it ran.
        peak_memory_bytes: of the GPU where there was one, of the process otherwise.
        seconds: wall time of updates and evaluations, over all resumptions.
        collapse: why the run counted as collapsing at its last evaluation; empty if it did not.
        scales: of the LoRA, beside 0 and 1, at which some of the images were drawn in the end.
        dtype: of the frozen weights, by torch's name.
        output: what the pipeline's call returns: "images" or "frames".
        caps: name -> score above which a trained reward counts no more.
        source: how the model was loaded beside its location: "pipeline", "config", "variant" and "quantization", where
            they were said, and the "revision" that an alias names.
        scheduler: "name" and "settings" of the scheduler, where it was not the pipeline's own.
        columns: argument of the call with a value for every prompt -> that of the first prompt, an image as in `call`.
        trained_on: name of the file that was trained on in the place of rewards, which then judge alone; empty if none.
    """

    model: str
    location: str
    method: str
    rewards: Mapping[str, float]
    prompts: Sequence[str]
    seeds: Sequence[int]
    prompts_are_unseen: bool
    tolerance: float
    call: Mapping[str, Any]
    images_per_update: int
    versions: Mapping[str, str]
    licences: Sequence[Licence]
    device: str
    peak_memory_bytes: int
    seconds: float
    collapse: Sequence[str] = field(default_factory=tuple)
    scales: Sequence[float] = field(default_factory=tuple)
    dtype: str = "float32"
    output: str = "images"
    caps: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    drawn_otherwise: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    trained_on: str = ""

    @property
    def role(self) -> str:
        """Of the rewards: "trained", or "judging" where nothing was trained on them."""
        return "judging" if self.trained_on else "trained"


@dataclass(frozen=True)
class RunRecord:
    """All that is known of one run, as its folder tells it."""

    folder: Path
    facts: Facts
    recipe_yaml: str
    reports: Sequence[StepReport]
    evaluations: Sequence[EvalRecord]

    @property
    def before(self) -> EvalRecord:
        """The base model's evaluation."""
        return self.evaluations[0]

    @property
    def last(self) -> EvalRecord:
        """The evaluation after the last update."""
        return self.evaluations[-1]

    @property
    def best(self) -> EvalRecord:
        """The highest trained reward without a loss elsewhere; the base model's evaluation where there is none such."""
        return self.rule.best(self.evaluations)

    @property
    def reward_queries(self) -> int:
        """How many images the rewards scored in training; 0 of a record that does not say."""
        return sum(report.reward_queries for report in self.reports)

    @property
    def rule(self) -> CollapseRule:
        """By which the run's evaluations are judged."""
        return CollapseRule(self.facts.rewards, self.facts.tolerance, caps=self.facts.caps)


def read_run(folder: Path) -> RunRecord:
    """The record of a finished run.

    Raises:
        CheckpointError: if the folder holds no finished run, or what it holds cannot be read.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        facts["licences"] = [made_of(Licence, licence) for licence in facts["licences"]]
        record = RunRecord(
            folder=folder,
            facts=made_of(Facts, facts),
            recipe_yaml=(folder / RECIPE).read_text(encoding="utf-8"),
            reports=read_rows(folder / METRICS, StepReport),
            evaluations=read_rows(folder / EVALUATIONS, EvalRecord),
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"it holds no finished run, {Path(error.filename).name} is missing",
            where=str(folder),
            next="name the output folder of a run, or finish it with --resume",
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"its record cannot be read ({one_line(error)})", where=str(folder), next="train it again"
        ) from error
    if not record.reports or len(record.evaluations) < 2:
        raise CheckpointError(f"{METRICS} or {EVALUATIONS} is empty", where=str(folder), next="train it again")
    prompts, count = len(record.facts.prompts), len(record.facts.prompts) * len(record.facts.seeds)
    for row in record.evaluations:
        of_images = [*row.scores.values(), *row.components.values(), row.drift, row.colour, row.detail]
        if row.prompts != prompts or any(len(values) != count for values in of_images):
            raise CheckpointError(
                f"the evaluation after update {row.update} is not of the {count} images that {FACTS} speaks of",
                where=str(folder / EVALUATIONS),
                next="copy the run again, or train it again",
            )
    return record


def write_facts(folder: Path, facts: Facts) -> None:
    """Marks the run in `folder` as finished."""
    write_whole(folder / FACTS, json.dumps(asdict(facts), indent=1))


# Lines


def append_row(path: Path, row: StepReport | EvalRecord) -> None:
    """Adds one line to a file, and has it written before it returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows in a file, without a torn line at its end; none if there is no such file.

    Raises:
        CheckpointError: if another line is no row.
    """
    rows = []
    # a torn line may end in the midst of a letter
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(made_of(kind, _with_nan(json.loads(line))))
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, ValueError) and number == len(lines):
                break
            raise CheckpointError(
                f"line {number} cannot be read ({one_line(error)})",
                where=str(path),
                next="copy the run again, or train it again",
            ) from error
    return rows


def rewrite_rows(path: Path, rows: Iterable[StepReport | EvalRecord]) -> None:
    """Replaces what a file held by these rows."""
    write_whole(path, "".join(_line(row) for row in rows))


def _line(row: StepReport | EvalRecord) -> str:
    return json_text(asdict(row)) + "\n"


def _with_nan(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return [_with_nan(item) for item in value] if isinstance(value, list) else value


def write_whole(path: Path, text: str) -> None:
    """A file that is never seen half written; what the system refuses it says of `path`."""
    aside = path.with_name(path.name + ".partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else a power failure could leave the new name with nothing in it
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise


# Images


def save_images(folder: Path, of: int | str, images: torch.Tensor | Sequence[torch.Tensor]) -> None:
    """Images (N, 3, H, W) in [0, 1], or N images (3, H, W) of any sizes, as 8-bit PNG.

    Arguments:
        of: the update they were evaluated after, `scale_name`, or `input_name`.
    """
    images_folder = _folder_of(folder, of)
    for made in (images_folder.parent, images_folder):  # but not the folder of the run, if that is gone
        made.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        to_pil(image).save(images_folder / f"{number:03d}.png")


def save_videos(folder: Path, of: int | str, videos: torch.Tensor) -> None:
    """Videos (N, T, 3, H, W) in [0, 1] as GIF, beside the images of theirs that `save_images` saved."""
    for number, video in enumerate(videos):
        save_gif([to_pil(frame) for frame in video], _folder_of(folder, of) / f"{number:03d}.gif")


def video_files(folder: Path, of: int | str, numbers: Iterable[int]) -> list[Path]:
    """The files of these videos that `save_videos` saved; empty if one of them is not there, as of images."""
    files = [_folder_of(folder, of) / f"{number:03d}.gif" for number in numbers]
    return files if all(file.is_file() for file in files) else []


def image_files(folder: Path, of: int | str, count: int) -> list[Path]:
    """The files of images that `save_images` saved, in their order.

    Raises:
        CheckpointError: if one of them is gone.
    """
    files = [_folder_of(folder, of) / f"{number:03d}.png" for number in range(count)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise CheckpointError("there is no such file", where=str(missing), next="copy the run again, or train it again")
    return files


def load_images(folder: Path, of: int | str, count: int | None = None) -> torch.Tensor:
    """What `save_images` saved, in 8-bit levels.

    Arguments:
        count: how many images there were; if left out, that many as there are files.

    Raises:
        DraftError: if an image is missing or no image, or of another size than the first.
    """
    images_folder = _folder_of(folder, of)
    found = len(list(images_folder.glob("*.png")))
    if not found:
        raise CheckpointError("there are no images in it", where=str(images_folder), next="train the run again")
    files = image_files(folder, of, found if count is None else count)
    images = [read_image(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise CheckpointError(
                f"it is {_size(image)} pixels, the first is {_size(images[0])}",
                where=str(file),
                next="copy the run again, or train it again",
            )
    return torch.cat(images)


def _size(image: torch.Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"


def scale_name(scale: float) -> str:
    """Under which name the images at a scale of the LoRA are kept."""
    return f"scale-{scale:g}"


def input_name(argument: str) -> str:
    """Under which name the images are kept that the call was given for the evaluated prompts."""
    return f"{INPUT}{argument}"


def load_inputs(folder: Path) -> dict[str, list[torch.Tensor]]:
    """Argument of the call -> the images (3, H, W) that it was given for the first prompts; empty if for none.

    Raises:
        DraftError: if a file is no image.
    """
    found = sorted((folder / IMAGES).glob(f"{INPUT}*"))
    return {it.name.removeprefix(INPUT): [read_image(file)[0] for file in sorted(it.glob("*.png"))] for it in found}


def _folder_of(folder: Path, of: int | str) -> Path:
    return folder / IMAGES / (of if isinstance(of, str) else f"{of:06d}")
