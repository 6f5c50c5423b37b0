"""Several processes are one run: the same gradients and evaluations, everything written once, an end in a sentence.

On the CPU, by gloo; what part.py does in each of two processes is done here by one, with twice the batch. Two machines
are two launchers on this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import fsdp

from draft_core.cli.launch import _free_port, launch
from draft_core.errors import DraftError, RecipeError
from draft_core.recipe.yaml_text import dump_yaml
from draft_core.reporting.run_record import load_images, read_run
from draft_core.runs.run import run_recipe
from draft_core.training.checkpoints import checkpoints
from draft_core.training.distributed import Processes
from draft_core.training.sharding import shard_denoisers
from tests.support import part
from tests.support.thorough import in_full
from tests.support.tiny import tiny_catalog

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds, on a machine that is loaded; usual are 30
SOON = 60  # seconds until the processes of a run have ended after one of them was killed; usual are 3

# Of gradients; probabilities of small steps, and fits by AdamW, magnify what other batches round otherwise. A surrogate
# of the few pairs within prompts ("prompts") most: weights changed by 6e-8 moved it by .1 to .5 % in 4 runs of 16.
TOLERANCE = {"ddpo": 1e-4, "grpo": 1e-4, "surrogate": 1e-4, "prompts": 5e-3}
LENGTH = {"prompts": 0.05}  # what scales the surrogate to its reward is fitted too, and tips over most: 1.4 % once

# A plugin that offers what the tiny catalog holds, and tells which process is which.
PLUGIN = """
import os
from pathlib import Path
from typing import Literal

from draft_core.plugin import PretrainedSpec, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2
FOLDER = Path(__file__).parent
(FOLDER / ("pid-" + os.environ.get("RANK", "launcher"))).write_text(str(os.getpid()))


class RednessConfig(RewardConfig):
    kind: Literal["redness"] = "redness"
    contrast: float = 1.0


@hookimpl
def draft_register_rewards():
    words = {"summary": "how red", "unit": "level", "code_license": "Apache-2.0"}
    factory = "tests.support.tiny:Redness"
    return [RewardSpec(kind="redness", config=RednessConfig, factory=factory, **words)]


@hookimpl
def draft_register_pretrained():
    prompts = {"tiny-train": FOLDER / "catalog/train.txt", "tiny-heldout": FOLDER / "catalog/heldout.txt"}
    call = {"num_inference_steps": 3, "guidance_scale": 3.0}
    words = {"alias": "tiny", "summary": "random", "license": "Apache-2.0", "prompts": prompts, "call": call}
    return [PretrainedSpec(folder=FOLDER / "catalog/model", **words)]
"""


@contextmanager
def started(words: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher of processes, which does not outlive the test, nor do they."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    launcher = subprocess.Popen(
        [sys.executable, *words], env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield launcher
    finally:
        for _ in range(2):  # the second ends the processes at once
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGTERM)
                time.sleep(0.5)
        try:
            launcher.communicate(timeout=20)
        finally:
            launcher.kill()


def wait_until(is_so: Callable[[], bool], *launchers: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        for launcher in launchers:
            assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def updates(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


# What two processes compute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left the gradients of every case, and then a run."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_catalog(folder / "catalog")
    words = ["-m", "tests.support.ranks", "2", "tests.support.part", str(folder)]
    with started(words, PYTHONPATH=str(ROOT)) as launcher:
        said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, said
    return folder


@pytest.mark.parametrize("case", part.CASES)
def test_two_processes_are_one_with_twice_the_batch(case: str, folder: Path, tmp_path: Path) -> None:
    first, second = (torch.load(folder / f"gradients-{place}.pt", weights_only=True)[case] for place in (0, 1))
    settings = {name: value for name, value in part.settings_of(case).items() if name != "sharding"}
    alone = part.gradients(part.make_trainer(tmp_path, 1, **settings))
    assert len(first["gradients"]) == len(alone["gradients"])
    near = TOLERANCE.get(case.split()[-1], 1e-5)
    for mine, other, whole in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(mine, other)
        longer = float(mine.norm() / whole.norm())
        assert longer == pytest.approx(1, abs=LENGTH.get(case.split()[-1], near))
        assert (mine / longer - whole).norm() < near * whole.norm()
    assert first["reports"] == second["reports"]
    rough = LENGTH.get(case.split()[-1], max(near, 1e-4))
    torch.testing.assert_close(first["reports"], alone["reports"], rtol=rough, atol=1e-7)


@pytest.mark.parametrize("case", part.CASES)
def test_a_sharded_denoiser_is_held_by_halves(case: str, folder: Path) -> None:
    for place in (0, 1):
        found = torch.load(folder / f"gradients-{place}.pt", weights_only=True)[case]
        # What belongs to no block is left whole by a last recomputation.
        assert 0.49 < found["held"] < 0.56 if "sharding" in part.CASES[case] else found["held"] == 1


def test_what_cannot_be_sharded_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"train.sharding: there is one process, so nothing to share out"):
        shard_denoisers(None, torch.device("cpu"), 1)
    with pytest.raises(RecipeError, match=r"train.sharding: FSDP2 is not made for mps; use cpu or cuda"):
        shard_denoisers(None, torch.device("mps"), 2)
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, *, mesh: None)
    with pytest.raises(RecipeError, match=r"cannot leave out the LoRA; install torch 2.8 or newer"):
        shard_denoisers(None, torch.device("cpu"), 2)


def test_processes_that_drew_other_weights_begin_with_those_of_the_main_one(folder: Path) -> None:
    main, other = (torch.load(folder / f"drawn-{place}.pt", weights_only=True) for place in (0, 1))
    drawn = ["0.weight", "1.running_mean", *(name for name in main["before"] if "lora_A" in name)]
    assert len(drawn) > 2
    assert not any(torch.equal(main["before"][name], other["before"][name]) for name in drawn)
    assert main["before"].keys() == main["after"].keys() == other["after"].keys()
    for name, tensor in main["before"].items():
        assert torch.equal(main["after"][name], tensor)
        assert torch.equal(other["after"][name], tensor)


# A whole run


def test_a_run_of_two_processes_is_written_once_and_sees_what_one_sees(folder: Path, tmp_path: Path) -> None:
    catalog = tiny_catalog(folder / "catalog")
    one = part.recipe_of(tmp_path, catalog, "train.batch_size=4")
    run_recipe(one, catalog)
    alone, together = read_run(tmp_path / "run"), read_run(folder / "first")
    assert [report.update for report in together.reports] == [1, 2, 3, 4]
    assert [evaluation.update for evaluation in together.evaluations] == [0, 2, 4]
    assert [path.name for path in checkpoints(folder / "first" / "checkpoints")] == ["000002", "000004"]
    names = [
        sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (tmp_path / "run", folder / "first")
    ]
    assert names[0] == names[1]
    assert (folder / "lines-0").read_text().splitlines()[-1] == "scale 0.75 2 images"
    assert (folder / "lines-1").read_text() == "", "the other process says nothing"
    assert together.facts.images_per_update == alone.facts.images_per_update == 4
    for here, there in zip(together.evaluations, alone.evaluations, strict=True):
        for name in ("diversity", "drift", "colour", "detail"):
            torch.testing.assert_close(getattr(here, name), getattr(there, name), rtol=0, atol=1e-3)
        for name in ("redness", "brightness"):
            torch.testing.assert_close(here.scores[name], there.scores[name], rtol=0, atol=1e-5)
        assert here.gradients == there.gradients == {}
        images = [
            load_images(record.folder, evaluation.update) for record, evaluation in ((together, here), (alone, there))
        ]
        torch.testing.assert_close(*images, rtol=0, atol=1.5 / 255)
    for here, there in zip(together.reports, alone.reports, strict=True):
        torch.testing.assert_close([here.loss, here.grad_norm], [there.loss, there.grad_norm], rtol=1e-4, atol=1e-6)


def test_one_program_of_two_processes_makes_several_runs(folder: Path) -> None:
    for place in (0, 1):
        assert "the folder holds a finished run already; continue it" in (folder / f"refused-{place}").read_text()
    assert read_run(folder / "other").last.update == 1
    longer, first = read_run(folder / "run"), read_run(folder / "first")
    assert [report.update for report in longer.reports] == [1, 2, 3, 4, 5]
    assert [report.reward for report in longer.reports[:4]] == [report.reward for report in first.reports]
    assert longer.facts.images_per_update == 4


# How it is started


@pytest.fixture
def command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """`draft train` of a run that would take hours, and the surroundings with the tiny plugin."""
    site = tmp_path / "site"
    tiny_catalog(site / "catalog")
    (site / "tiny_plugin.py").write_text(PLUGIN)
    info = site / "tiny_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[draft_core.plugins]\ntiny-plugin = tiny_plugin\n")
    recipe = part.recipe_of(tmp_path, tiny_catalog(site / "catalog"))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml({**recipe.model_dump(mode="json", exclude_unset=True), "metrics": []}))
    words = ["-m", "draft_core", "train", str(path)]
    words += ["--set", "train.steps=99999", "--set", "evaluation.every=99999", "--set", "evaluation.scales=[]"]
    surroundings = {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "DRAFT_PLUGINS": "tiny-plugin"}
    return words, {**surroundings, "HF_HOME": str(tmp_path)}  # where accelerate searches settings of the user


def assert_same(one: Path, other: Path) -> None:
    """That two files of weights hold the same, to the last bit."""
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@in_full
def test_accelerate_launch_trains_the_same_lora(
    command: tuple[list[str], dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    words, surroundings = command
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    with started([*launch, *words, "--set", "train.steps=4"], **surroundings) as launcher:
        said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, said
    assert said.count("report: ") == 1, said
    lora = "lora/pytorch_lora_weights.safetensors"
    assert_same(tmp_path / "run" / lora, folder / "first" / lora)


@in_full
def test_torchrun_trains_the_same_lora_and_a_killed_process_ends_all(
    command: tuple[list[str], dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    words, surroundings = command
    run, site = tmp_path / "run", tmp_path / "site"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(_free_port())]
    with started([*launch, *words], **surroundings) as launcher:
        wait_until(lambda: updates(run) > 4, launcher)
        os.kill(int((site / "pid-1").read_text()), signal.SIGKILL)
        said, _ = launcher.communicate(timeout=SOON)
    assert_same(*(there / "checkpoints" / "000004" / "adapter.safetensors" for there in (run, folder / "first")))
    assert launcher.returncode == 1, "torchrun's own"
    assert "process 0: another process of the run is gone; see what ended it; what was saved is whole, and" in said
    assert "Signal 9 (SIGKILL)" in said
    assert "draft_core/run.py" not in said, "a traceback"
    with pytest.raises(ProcessLookupError):
        os.kill(int((site / "pid-0").read_text()), 0)


# How it ends


def test_sigterm_saves_and_one_process_goes_on(command: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    words, surroundings = command
    is_saved_by_sigterm([*words, "--processes", "2"], surroundings, tmp_path / "run")
    goes_on_alone(tmp_path)


@in_full
def test_a_killed_process_of_a_run_that_is_spread_out_ends_all_and_one_process_goes_on(
    command: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    words, surroundings = command
    words = [*words, "--processes", "2"]
    run, site = tmp_path / "run", tmp_path / "site"
    saved = is_saved_by_sigterm(words, surroundings, run)
    with started([*words, "--set", "train.sharding=full"], **surroundings) as launcher:
        wait_until(lambda: updates(run) > saved + 2, launcher)
        os.kill(int((site / "pid-1").read_text()), signal.SIGKILL)
        said, _ = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 2, said
    assert f"going on after update {saved}" in said
    assert "process 1: it was killed (SIGKILL, by the system for want of memory perhaps), and the others were" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int((site / "pid-0").read_text()), 0)
    goes_on_alone(tmp_path)


def is_saved_by_sigterm(words: list[str], surroundings: dict[str, str], run: Path) -> int:
    """The update after which a run in two processes is interrupted, and that it is said and saved."""
    with started(words, **surroundings) as launcher:
        wait_until(lambda: updates(run) > 1, launcher)
        launcher.send_signal(signal.SIGTERM)
        said, _ = launcher.communicate(timeout=SOON)
    saved = updates(run)
    assert launcher.returncode == 143, said
    assert said.count("error:") == said.count(f"interrupted after update {saved}") == 1, said
    assert "Traceback" not in said
    assert checkpoints(run / "checkpoints")[-1].name == f"{saved:06d}"
    return saved


def goes_on_alone(tmp_path: Path) -> None:
    """That this process goes on with the run."""
    run = tmp_path / "run"
    catalog = tiny_catalog(tmp_path / "site" / "catalog")
    last = int(checkpoints(run / "checkpoints")[-1].name)
    notes = []
    changed = ["train.batch_size=4", f"train.steps={last + 2}", "evaluation.every=99999", "metrics=[]"]
    alone = part.recipe_of(tmp_path, catalog, *changed)
    run_recipe(alone, catalog, progress=lambda stage, done, total, note: notes.append(note))
    assert any(f"going on after update {last}, with 1 process(es) instead of 2" in note for note in notes)
    assert [report.update for report in read_run(run).reports] == list(range(1, last + 3))


DIES = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); time.sleep(99)"
ENDS = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1]) / os.environ["RANK"]
def end(*_):
    here.write_text("saved")
    sys.exit()
signal.signal(signal.SIGTERM, end)
here.write_text("ready")
time.sleep(99)
"""


def test_a_killed_process_ends_the_others_and_is_named() -> None:
    begin = time.monotonic()
    with pytest.raises(DraftError, match=r"process 1: it was killed \(SIGKILL, by the system .*, and the others were"):
        launch(2, ["-c", DIES])
    assert time.monotonic() - begin < SOON


def test_sigterm_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    def both(word: str) -> bool:
        return all((tmp_path / str(rank)).is_file() and (tmp_path / str(rank)).read_text() == word for rank in (0, 1))

    def stop_when_ready() -> None:
        wait_until(lambda: both("ready"))
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    assert launch(2, ["-c", ENDS, str(tmp_path)]) == 128 + signal.SIGTERM
    stopper.join()
    assert both("saved")


# Two machines


@in_full
def test_two_machines_under_accelerate_are_one_run_and_a_killed_process_ends_both(
    command: tuple[list[str], dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    """One launcher for each, by loopback; `--multi_gpu` is how accelerate starts several, and the recipe says `cpu`."""
    words, surroundings = command
    run, site = tmp_path / "run", tmp_path / "site"
    network = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(_free_port())]
    together = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", *network]
    quiet = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launch = ["-m", "accelerate.commands.launch", *together, *quiet]
    with (
        started([*launch, "--machine_rank", "0", *words], **surroundings) as first,
        started([*launch, "--machine_rank", "1", *words], **surroundings) as second,
    ):
        wait_until(lambda: updates(run) > 4, first, second)
        os.kill(int((site / "pid-1").read_text()), signal.SIGKILL)
        here, there = (launcher.communicate(timeout=SOON)[0] for launcher in (first, second))
    assert (first.returncode, second.returncode) == (1, 1), "accelerate's own"
    assert "process 0: another process of the run is gone; see what ended it; what was saved is whole, and" in here
    assert "Signal 9 (SIGKILL)" in there
    with pytest.raises(ProcessLookupError):
        os.kill(int((site / "pid-0").read_text()), 0)

    assert_same(*(place / "checkpoints" / "000004" / "adapter.safetensors" for place in (run, folder / "first")))


@in_full
def test_several_processes_meet_on_the_cpu_of_a_machine_without_a_gpu(
    command: tuple[list[str], dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    """The recipe names no device."""
    words, surroundings = command
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("device: cpu\n", ""))
    assert "device" not in path.read_text()
    with started([*words, "--set", "train.steps=4", "--processes", "2"], **surroundings) as launcher:
        said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, said
    assert said.count("report: ") == 1, said
    lora = "lora/pytorch_lora_weights.safetensors"
    assert_same(tmp_path / "run" / lora, folder / "first" / lora)


def test_a_process_that_cannot_meet_the_others_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DraftError, match=r"2 processes were asked for, and this one cannot meet.*set `device: cpu`"):
        Processes(cpu=False)


def test_a_launcher_that_starts_one_process_for_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        Processes(cpu=True)
        monkeypatch.setenv(name, value)
    with pytest.raises(DraftError, match=r"--cpu: several processes were asked for and one was started.*use `draft"):
        Processes(cpu=True)
