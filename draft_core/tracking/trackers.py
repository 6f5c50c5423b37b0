"""A run's numbers and images for TensorBoard, Weights & Biases and Trackio, through accelerate's trackers.

What a tracker raises while the run goes on is said once, and the run goes on without it.
"""

from __future__ import annotations

import importlib.util
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import tracking
from PIL.Image import Image

from draft_core.errors import DraftError, RecipeError, first_line
from draft_core.evaluation.collapse import EvalRecord
from draft_core.recipe.trackers import TensorBoardConfig, TrackersConfig, WandbConfig
from draft_core.reporting.curves import IMAGE_MEASURES
from draft_core.reporting.image_grid import draw_grid
from draft_core.reporting.images import ROWS
from draft_core.reporting.run_record import load_images
from draft_core.training.step_report import StepReport

TRACKERS = "trackers.json"  # in a run's folder: under which id the trackers know the run
GRID = "evaluation/before_after"
COLUMNS = 2  # images of each prompt that are shown
INSTALL = "pip install 'draft-core[trackers]'"
CLASSES = {"tensorboard": "TensorBoardTracker", "wandb": "WandBTracker", "trackio": "TrackioTracker"}


def require_trackers(config: TrackersConfig) -> None:
    """That the trackers of a recipe can be started here; asked before a model is loaded.

    Raises:
        RecipeError: if a package is missing or too old, or Weights & Biases is online and nobody is logged in.
    """
    for name, settings in config.named().items():
        where = f"trackers.{name}"
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"{name} is not installed", where=where, next=INSTALL)
        if not hasattr(getattr(tracking, CLASSES[name], None), "start"):
            raise RecipeError("the accelerate that is installed cannot start it", where=where, next=INSTALL)
        if isinstance(settings, WandbConfig):
            _require_login(settings, where)


def _require_login(settings: WandbConfig, where: str) -> None:
    import wandb

    if (settings.mode or wandb.setup().settings.mode) != "online":
        return
    try:
        problem = None if wandb.login(prompt=False) else "nobody is logged in"
    except Exception as error:  # of the service: no network, a key that it does not know
        problem = first_line(error)
    if problem:
        raise RecipeError(
            f"Weights & Biases cannot be used online ({problem})",
            where=where,
            next="give `wandb login`, or set trackers.wandb.mode to offline",
        )


class Trackers:
    """The trackers of a run. Before one is started, what they are told goes nowhere.

    Arguments:
        say: takes what a person should know: where a run can be seen, and which tracker failed.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.started: dict[str, Any] = {}

    def start(self, config: TrackersConfig, folder: Path, recipe: Mapping[str, Any], *, done: int) -> None:
        """Starts those that a recipe names. A run that goes on is the same run in each of them.

        Arguments:
            folder: of the run, which exists.
            recipe: what the trackers show as the run's settings.
            done: updates made so far.

        Raises:
            DraftError: if one cannot be started.
        """
        for name, settings in config.named().items():
            try:
                tracker = _made(settings, folder, recipe, done)
                tracker.start()
            except Exception as error:  # of a service that is not ours, at whatever it stumbles
                raise DraftError(
                    f"it cannot be started ({type(error).__name__}: {first_line(error)})",
                    where=f"trackers.{name}",
                    next="leave it out, or mend that and give the same command again",
                ) from error
            self.started[name] = tracker
            self.say(_where_to_see(tracker, settings, folder))

    def update(self, report: StepReport) -> None:
        """The numbers of an update."""
        values = {"loss": report.loss, "grad_norm": report.grad_norm}
        if report.scores:
            values["reward"] = report.reward
        values |= {"learning_rate": report.learning_rate, "seconds": report.seconds}
        values |= {"reward_queries": report.reward_queries}
        for group, numbers in (("scores", report.scores), ("penalties", report.penalties), ("learner", report.learner)):
            values |= {f"{group}/{name}": number for name, number in numbers.items()}
        self._log(values, report.update)

    def evaluation(self, record: EvalRecord, folder: Path, prompts: Sequence[str]) -> None:
        """The means of an evaluation, and its images beside those of the base model.

        Arguments:
            folder: of the run, where the images are.
            prompts: of the evaluation.
        """
        measures = {name: numbers for name, of in IMAGE_MEASURES.items() if (numbers := of(record))}
        values = {**record.means(), **{name: fmean(numbers) for name, numbers in measures.items()}}
        self._log({f"evaluation/{name}": value for name, value in values.items()}, record.update)
        grid = cache(partial(_grid, folder, record.update, prompts))  # drawn once, and only for those that are there
        for name in list(self.started):
            self._tell(name, partial(_show, name, grid, record.update))

    def close(self) -> None:
        """Ends all of them."""
        for name in list(self.started):
            self._tell(name, lambda tracker: tracker.finish())
        self.started.clear()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name in list(self.started):
            self._tell(name, lambda tracker: tracker.log(finite, step=step))

    def _tell(self, name: str, work: Callable[[Any], None]) -> None:
        try:
            work(self.started[name])
        except Exception as error:  # as in `start`
            del self.started[name]
            self.say(
                f"the tracker {name} failed ({type(error).__name__}: {first_line(error)}): the run goes on without it, "
                "and its own folder holds everything"
            )


def _made(settings: Any, folder: Path, recipe: Mapping[str, Any], done: int) -> Any:
    """accelerate's tracker for these settings, not started."""
    if isinstance(settings, TensorBoardConfig):
        # what an interrupted run had written beyond its checkpoint is written again, and shown once
        return tracking.TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=done + 1 if done else None)
    own = _own_id(folder)
    if isinstance(settings, WandbConfig):
        return tracking.WandBTracker(
            settings.project,
            entity=settings.entity,
            mode=settings.mode,
            dir=folder,
            id=own,
            name=folder.name,
            config=dict(recipe),
            resume="allow",
            settings={"console": "off", "silent": True},
        )
    return tracking.TrackioTracker(
        settings.project,
        name=f"{folder.name}-{own}",
        space_id=settings.space_id,
        config=dict(recipe),
        resume="allow",
        embed=False,
    )


def _own_id(folder: Path) -> str:
    """The id of the run in this folder, drawn when it is first asked for."""
    file = folder / TRACKERS
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        own = uuid.uuid4().hex[:8]
        file.write_text(json.dumps({"id": own}), encoding="utf-8")
        return own


def _where_to_see(tracker: Any, settings: Any, folder: Path) -> str:
    if isinstance(settings, TensorBoardConfig):
        return f"tensorboard: see it with `tensorboard --logdir {folder}`"
    if isinstance(settings, WandbConfig):
        if tracker.tracker.offline:
            return f"wandb: offline, send it with `wandb sync {folder}/wandb/offline-run-*`"
        return f"wandb: {tracker.tracker.url}"
    if settings.space_id:
        return f"trackio: https://huggingface.co/spaces/{settings.space_id}"
    return f"trackio: see it with `trackio show --project {settings.project}`"


def _show(name: str, draw: Callable[[], Image], step: int, tracker: Any) -> None:
    """One image, in the form that each tracker takes."""
    image = draw()
    if name == "tensorboard":
        tracker.log_images({GRID: np.asarray(image)[None]}, step=step, dataformats="NHWC")
    elif name == "wandb":
        tracker.log_images({GRID: [image]}, step=step)
    else:
        import trackio

        tracker.log({GRID: trackio.Image(image)}, step=step)


def _grid(folder: Path, update: int, prompts: Sequence[str]) -> Image:
    """One row a prompt: the base model's images, and those after some updates from the same seeds."""
    evaluations = {"before": 0, **({f"update {update}": update} if update else {})}
    images = [torch.unflatten(load_images(folder, number), 0, (len(prompts), -1)) for number in evaluations.values()]
    columns = min(COLUMNS, images[0].shape[1])
    rows = [
        (prompt, [image for of_prompt in images for image in of_prompt[number, :columns]])
        for number, prompt in enumerate(prompts[:ROWS])
    ]
    return draw_grid(rows, headings=list(evaluations), group=columns)
