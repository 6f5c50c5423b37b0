"""Whole runs on rewards of two environments that pin different versions of one package."""

from __future__ import annotations

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
from safetensors.torch import load_file
from typer.testing import CliRunner

from draft_core.cli.app import app
from draft_core.errors import Interrupted, PluginError, RewardError
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.runs import build
from draft_core.runs.run import run_recipe
from draft_core.workers.worker import Worker
from tests.support.environments import in_one_process, make_environment
from tests.support.runs import FOUR_UPDATES, SMALL_SURROGATE

KILLS = 10
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
        "train": {**FOUR_UPDATES["train"], "steps": 8, "normalize": "gradient"},
        "rewards": [entry(fields) for fields in REWARDS],
        "output": str(output),
        **more,
    }
    return load_recipe(data, catalog=catalog)


class Killer(threading.Thread):
    """Kills processes of workers at random moments after their first answer, until there were ten."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.workers: list[Worker] = []
        self.pids: list[int] = []
        self.answered: set[int | None] = set()
        self.killed = 0
        self.over = False

    def worker(self, *given: Any, **more: Any) -> Worker:
        worker = Worker(*given, **more)
        asks = worker._ask

        def ask(question: Any) -> Any:
            answer = asks(question)
            self.answered.add(worker.pid)
            return answer

        worker._ask = ask  # type: ignore[method-assign]
        self.workers.append(worker)
        return worker

    def run(self) -> None:
        draw = Random(3)
        while self.killed < KILLS and not self.over:
            time.sleep(draw.uniform(0, 0.2))
            pids = [pid for worker in self.workers if (pid := worker.pid) is not None]
            ready = [pid for pid in pids if pid in self.answered and pid not in self.pids]
            if ready:
                self.pids.append(draw.choice(ready))
                self.killed += 1
                os.kill(self.pids[-1], signal.SIGKILL)


def rows(folder: Path, name: str) -> list[Any]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def test_two_plugins_that_pin_one_package_train_together_and_ten_kills_lose_nothing(
    catalog: Catalog, tmp_path: Path, pythons: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a run that is stopped and goes on; scores, gradients of both rewards and the LoRA in every bit."""
    together = in_one_process(catalog)
    here = run_recipe(recipe_of(together, tmp_path / "here", {}), together).folder

    killer = Killer()
    monkeypatch.setattr(build, "Worker", killer.worker)
    killer.start()
    there = recipe_of(catalog, tmp_path / "there", pythons)

    def stop_after_the_third(report: Any, *_: Any) -> None:
        if report.update == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("draft_core.runs.run._tell", stop_after_the_third)
        with pytest.raises(Interrupted):
            run_recipe(there, catalog)
    for worker in killer.workers:
        worker.close()
    killer.workers.clear()
    run_recipe(there, catalog)
    killer.over = True
    killer.join()
    assert killer.killed == KILLS

    loras = [load_file(run / "lora/pytorch_lora_weights.safetensors") for run in (here, tmp_path / "there")]
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert rows(here, name) == rows(tmp_path / "there", name)
    assert "hidden" in str(rows(here, "evaluations.jsonl"))
    for worker in killer.workers:
        worker.close()


def test_a_real_worker_prints_dies_and_hangs(catalog: Catalog, tmp_path: Path, pythons: dict[str, Path]) -> None:
    marker = tmp_path / "marker"
    environment = {"python": str(pythons["odd"]), "timeout": 120}
    reward: Any = build.load_reward("odd", catalog=catalog, environment=environment, marker=str(marker))
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
        build.load_reward("odd", catalog=catalog, environment=environment, cannot_be_made=True)


def test_commands_know_an_environment(tmp_path: Path, pythons: dict[str, Path]) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    words = ["--set", f"environment.python={pythons['flat']}"]
    done = CliRunner().invoke(app, ["score", str(tmp_path / "red.png"), "--reward", "flat", "--json", *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["scores"][0]["score"] == pytest.approx(1 / 3)


def test_a_surrogate_learns_a_reward_of_another_environment(
    catalog: Catalog, tmp_path: Path, pythons: dict[str, Path]
) -> None:
    together, runs = in_one_process(catalog), []
    for name, environments, offered in (("here", {}, together), ("there", pythons, catalog)):
        entry: dict[str, Any] = {"kind": "flat", "surrogate": SMALL_SURROGATE}
        if environments:
            entry["environment"] = {"python": str(pythons["flat"])}
        train = {**FOUR_UPDATES["train"], "steps": 2}
        recipe = recipe_of(offered, tmp_path / name, environments, rewards=[entry], train=train)
        runs.append(rows(run_recipe(recipe, offered).folder, "metrics.jsonl"))
    assert runs[0] == runs[1]
