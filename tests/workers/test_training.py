"""Whole runs on rewards of two environments that pin different versions of one package."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from draft_core.cli.app import app
from draft_core.errors import PluginError, RewardError
from draft_core.library.rewards import load_reward
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.runs import build
from draft_core.workers.worker import Worker
from tests.support.environments import in_one_process, make_environment
from tests.support.runs import FOUR_UPDATES
from tests.support.thorough import THOROUGH, in_full

KILLS = 10 if THOROUGH else 2  # one of each worker
REWARDS = [{"kind": "old-tint", "strength": 1.5}, {"kind": "new-tint", "weight": 0.5}]


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> the Python of its environment."""
    folder = tmp_path_factory.mktemp("environments")
    old, new = make_environment(folder / "old", "old"), make_environment(folder / "new", "new")
    return {"old-tint": old, "odd": old, "flat": old, "new-tint": new}


def recipe_of(catalog: Catalog, output: Path, pythons: dict[str, Path], **more: Any) -> Any:
    def entry(fields: dict[str, Any]) -> dict[str, Any]:
        python = pythons.get(fields["kind"])
        return {**fields, "environment": {"python": str(python)}} if python else fields

    data = {
        **FOUR_UPDATES,
        "method": {"kind": "draft-lv", "resamples": 2},
        "train": {**FOUR_UPDATES["train"], "steps": 6, "normalize": "gradient"},
        "rewards": [entry(fields) for fields in REWARDS],
        "output": str(output),
        **more,
    }
    return load_recipe(data, catalog=catalog)


class Killer(threading.Thread):
    """Kills processes of workers at random moments until there were enough, and none twice over one question."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.workers: list[Worker] = []
        self.pids: list[int] = []
        self.answered: set[int | None] = set()
        self.killed = 0
        self.over = False

    def worker(self, *given: Any, **more: Any) -> Worker:
        worker = Worker(*given, **more)
        exact, depth = worker._exact, [0]

        def outermost(ask: Any) -> Any:
            depth[0] += 1  # the question for a gradient may ask for the scores again
            answer = exact(ask)
            depth[0] -= 1
            if not depth[0]:
                self.answered.add(worker.pid)
            return answer

        worker._exact = outermost  # type: ignore[method-assign]
        self.workers.append(worker)
        return worker

    def run(self) -> None:
        draw = Random(3)
        while self.killed < KILLS and not self.over:
            time.sleep(draw.uniform(0, 0.2))
            fewest = min((worker.starts for worker in self.workers), default=0)
            alike = [worker for worker in self.workers if worker.starts == fewest]  # so that each is killed
            pids = [pid for worker in alike if (pid := worker.pid) is not None]
            ready = [pid for pid in pids if pid in self.answered and pid not in self.pids]
            if ready:
                self.pids.append(draw.choice(ready))
                self.killed += 1
                os.kill(self.pids[-1], signal.SIGKILL)


def trained(recipe: Any, catalog: Catalog) -> tuple[list[Any], list[torch.Tensor]]:
    """What each update reports but for its seconds, and the LoRA and its gradients after each."""
    trainer = build.build(recipe, catalog=catalog)
    reports, tensors = [], []
    for report in trainer:
        reports.append(dataclasses.replace(report, seconds=0))
        tensors += [tensor.clone() for tensor in trainer.adapter.state_dict().values()]
        gradients = trainer.reward_gradients()
    return [*reports, *gradients], tensors


def test_two_plugins_that_pin_one_package_train_together_and_kills_lose_nothing(
    catalog: Catalog, tmp_path: Path, pythons: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = in_one_process(catalog)
    reports, tensors = trained(recipe_of(together, tmp_path, {}), together)

    killer = Killer()
    monkeypatch.setattr(build, "Worker", killer.worker)
    killer.start()
    reports_there, tensors_there = trained(recipe_of(catalog, tmp_path, pythons), catalog)
    killer.over = True
    killer.join()
    assert killer.killed == KILLS
    assert reports == reports_there
    assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_there, strict=True))
    assert not torch.equal(tensors[0], tensors[-1])
    for worker in killer.workers:
        assert worker.starts > 1
        worker.close()


@in_full
def test_a_real_worker_prints_dies_and_hangs(catalog: Catalog, tmp_path: Path, pythons: dict[str, Path]) -> None:
    marker = tmp_path / "marker"
    environment = {"python": str(pythons["odd"]), "timeout": 120}
    reward: Any = load_reward("odd", catalog=catalog, environment=environment, marker=str(marker))
    images = torch.rand(2, 3, 8, 8)
    expected = images.mean(dim=(1, 2, 3))
    for word in ("fine", "print", "kill once"):
        assert torch.equal(reward(images, [word, "b"]), expected)
    assert marker.exists()
    assert reward.worker.starts == 2
    with pytest.raises(RewardError) as caught:
        reward(images, ["exit", "b"])
    assert "died twice over the same question: it ended with exit code 7; its last words: cannot go on" in str(
        caught.value
    )
    assert torch.equal(reward(images, ["fine", "b"]), expected)
    reward.worker.timeout = 2
    with pytest.raises(
        RewardError, match="it has not answered within 2 s; its last words: waiting for a licence server"
    ):
        reward(images, ["hang", "b"])
    assert reward.worker.pid is None
    with pytest.raises(PluginError, match=r"it cannot be built .ValueError: no such weights. .*tints.py"):
        load_reward("odd", catalog=catalog, environment=environment, cannot_be_made=True)


def test_commands_know_an_environment(tmp_path: Path, pythons: dict[str, Path]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    words = ["--set", f"environment.python={pythons['flat']}"]
    done = CliRunner().invoke(app, ["score", str(tmp_path / "red.png"), "--reward", "flat", "--json", *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["scores"][0]["score"] == pytest.approx(1 / 3)
