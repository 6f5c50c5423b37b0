"""What goes wrong in long runs: each fault ends in one sentence, loses nothing that was saved, and is got over.

The faults are real where they can be: a full disk, a file system that turns read-only, pickles that would execute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import sample as cli_sample
from draft_core.errors import CheckpointError, DraftError, RecipeError, RewardError
from draft_core.recipe.load import load_recipe
from draft_core.recipe.yaml_text import dump_yaml
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.registry.methods import DraftK
from draft_core.registry.specs import MethodSpec
from draft_core.reporting.run_record import METRICS, read_rows, read_run
from draft_core.runs.run import RunResult, run_recipe
from draft_core.training.checkpoints import Checkpoint, checkpoints, read_checkpoint, write_checkpoint
from draft_core.training.step_report import StepReport
from tests.support import tiny
from tests.support.runs import saved_lora, without_pages
from tests.support.tiny import BRIGHTNESS, GOOD, REDNESS, Redness

LORA = "pytorch_lora_weights.safetensors"
RECIPE = {
    **GOOD,
    "model": {"pretrained": "tiny", "num_inference_steps": 2, "lora": {"rank": 2}},
    "method": {"kind": "draft-k"},
    "train": {"steps": 4, "batch_size": 1, "learning_rate": 3e-2},
    "evaluation": {"prompts": "tiny-heldout", "count": 1, "images_per_prompt": 1, "tolerance": 99, "scales": []},
    "checkpoint": {"every": 1, "keep": 9},
    "device": "cpu",
}

Progress = Callable[[str, int, int, str], None]


def run(output: Path, catalog: Catalog, *overrides: str, progress: Progress | None = None, **how: bool) -> RunResult:
    """A run of four updates, each of which is saved."""
    recipe = load_recipe({**RECIPE, "output": str(output)}, overrides, catalog=catalog)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.runs.run.write_report", without_pages)
        return run_recipe(recipe, catalog, progress=progress or (lambda stage, done, total, note: None), **how)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "lora" / LORA)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a fault."""
    return run(tmp_path_factory.mktemp("whole") / "run", catalog).folder


def at(update: int, fault: Callable[[], Any], stage: str = "train") -> Progress:
    """A fault that comes after an update was made and before it is saved."""

    def progress(now: str, done: int, total: int, note: str) -> None:
        if now == stage and done == update:
            fault()

    return progress


# The disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount(place, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of its own cannot be mounted here")
    try:
        yield place
    finally:
        while os.path.ismount(place):
            subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def mount(place: Path, *words: str) -> None:
    subprocess.run(["mount", *words, str(place)], check=True, capture_output=True)


def turn_read_only(disk: Path) -> None:
    """Lays a read-only view over the disk: the disk itself cannot turn, because the run's lock is open in it."""
    mount(disk, "--bind", str(disk))
    mount(disk, "-o", "remount,bind,ro")


def fill(disk: Path, left: int) -> None:
    """Takes all of the disk but this number of bytes."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            file.truncate(file.tell() - left)


@pytest.mark.parametrize("left", [0, 64 * 1024], ids=["nothing", "room for half a checkpoint"])
def test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room(
    disk: Path, catalog: Catalog, whole: Path, left: int
) -> None:
    output = disk / "run"
    size = sum(file.stat().st_size for file in (whole / "checkpoints" / "000003").iterdir())
    assert (whole / "checkpoints" / "000003" / "adapter.safetensors").stat().st_size < 64 * 1024 < size
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\); make room or mend the"):
        run(output, catalog, progress=at(3, lambda: fill(disk, left)))
    assert [path.name for path in checkpoints(output / "checkpoints")] == ["000001", "000002"]
    read_checkpoint(output / "checkpoints" / "000002")
    (disk / "filler").unlink()
    notes: list[str] = []
    run(output, catalog, progress=lambda stage, done, total, note: notes.append(note))
    assert "going on after update 2" in notes
    assert same(weights(output), weights(whole))
    assert not list((output / "checkpoints").glob("*.partial"))


def test_a_folder_whose_name_is_too_long_is_refused_before_a_model_is_loaded(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.build", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(
        CheckpointError, match=r"a{300}: it cannot be written \(File name too long\); make room or mend"
    ):
        run(tmp_path / ("a" * 300), catalog)


def test_a_file_system_that_turns_read_only_ends_the_run_and_is_noticed_before_a_model_is_loaded(
    disk: Path, catalog: Catalog, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = disk / "run"
    with pytest.raises(CheckpointError, match=r"cannot be written \(Read-only file system\); make room or mend the"):
        run(output, catalog, progress=at(3, lambda: turn_read_only(disk)))
    with monkeypatch.context() as patch:
        patch.setattr("draft_core.runs.run.build", lambda *args, **kwargs: pytest.fail("a model was loaded"))
        with pytest.raises(RecipeError, match=r"run is not writable \(.+\); mend its permissions, or choose another"):
            run(output, catalog)
        with pytest.raises(RecipeError, match=f"output {disk / 'new' / 'one'}: {disk} is not writable"):
            run(disk / "new" / "one", catalog)
        with pytest.raises(RecipeError, match=r"recipe\.yaml is a file; name a folder"):
            run(output / "recipe.yaml" / "x", catalog)
    subprocess.run(["umount", str(disk)], check=True, capture_output=True)
    run(output, catalog)
    assert same(weights(output), weights(whole))


@pytest.mark.parametrize("stage", ["train", "evaluate 4"])
def test_a_folder_that_is_deleted_in_the_midst_ends_the_run_and_is_not_made_again(
    catalog: Catalog, whole: Path, tmp_path: Path, stage: str
) -> None:
    output = tmp_path / "run"
    update = {"train": 3, "evaluate 4": 1}[stage]
    with pytest.raises(CheckpointError, match="run: the folder of the run was deleted, moved or emptied while it ran"):
        run(output, catalog, progress=at(update, lambda: shutil.rmtree(output), stage))
    assert not output.exists()
    run(output, catalog)
    assert same(weights(output), weights(whole))


def test_a_folder_that_is_moved_and_a_file_or_another_run_in_its_place_end_the_run(
    catalog: Catalog, whole: Path, tmp_path: Path
) -> None:
    output, aside, other = tmp_path / "run", tmp_path / "aside", tmp_path / "other"

    def replace_by_file() -> None:
        output.rename(aside)
        output.write_text("thesis")

    def replace_by_run() -> None:
        output.rename(aside)
        shutil.copytree(whole, output)

    lost = "put it back to go on, or delete what is left of it, and give the same"
    with pytest.raises(CheckpointError, match=lost):
        run(output, catalog, progress=at(2, replace_by_file))
    assert output.read_text() == "thesis"
    output.unlink()
    aside.rename(output)
    with pytest.raises(CheckpointError, match=lost):
        run(output, catalog, progress=at(3, replace_by_run))
    output.rename(other)
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in other.iterdir() if path.is_file()
    }
    aside.rename(output)
    notes: list[str] = []
    run(output, catalog, progress=lambda stage, done, total, note: notes.append(note))
    assert "going on after update 2" in notes
    assert same(weights(output), weights(whole))


def test_images_and_evaluations_that_are_lost_are_made_again(catalog: Catalog, whole: Path, tmp_path: Path) -> None:
    """After a power failure files can be empty that were there before."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    (output / "run.json").unlink()
    before = (output / "images" / "000000" / "000.png").read_bytes()
    (output / "images" / "000000" / "000.png").write_bytes(b"")
    run(output, catalog)
    assert (output / "images" / "000000" / "000.png").read_bytes() == before
    (output / "run.json").unlink()
    (output / "evaluations.jsonl").write_text("")
    run(output, catalog)
    record, expected = read_run(output), read_run(whole)
    assert record.evaluations == expected.evaluations
    assert same(weights(output), weights(whole))


# The machine


def broken_reward(monkeypatch: pytest.MonkeyPatch, catalog: Catalog, fault: Callable[[torch.Tensor], Any]) -> Catalog:
    """The catalog with a redness whose seventh score with a gradient is `fault` of the sound one."""
    recorded = iter(range(1, 99))

    class Broken(Redness):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            scores = super().forward(images, prompts)
            return fault(scores) if images.requires_grad and next(recorded) == 7 else scores

    monkeypatch.setattr(tiny, "Broken", Broken, raising=False)
    entry = Entry(
        dataclasses.replace(REDNESS, factory="tests.support.tiny:Broken"), catalog.rewards["redness"].distribution
    )
    return dataclasses.replace(catalog, rewards={**catalog.rewards, "redness": entry})


def test_a_nan_at_update_7_is_skipped_and_named_everywhere_and_the_run_ends_well(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = broken_reward(monkeypatch, catalog, lambda scores: scores * float("nan"))
    notes: list[str] = []
    recipe = load_recipe({**RECIPE, "output": str(tmp_path / "run")}, ["train.steps=8"], catalog=broken)
    result = run_recipe(recipe, broken, progress=lambda stage, done, total, note: notes.append(note))
    assert result.after.update == 8
    reports = read_rows(result.folder / METRICS, StepReport)
    assert [report.update for report in reports if report.skipped] == [7]
    (reason,) = reports[6].skipped
    assert reason.startswith("reward 'redness' of the prompt 'a ")
    assert reason.endswith(" became nan")
    assert f"update 7: skipped, {reason}" in notes
    assert reason.replace("'", "&#39;") in (result.folder / "report.html").read_text()
    sixth, seventh, eighth = (
        read_checkpoint(result.folder / "checkpoints" / f"{update:06d}").adapter for update in (6, 7, 8)
    )
    assert same(sixth, seventh)
    assert not same(seventh, eighth)


def out_of_memory(scores: torch.Tensor) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nof a long table")


def bug(scores: torch.Tensor) -> Any:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (bug, RewardError, "reward 'redness': it raised ZeroDivisionError: division by zero \\("),
        (out_of_memory, DraftError, r"does not fit into memory \(CUDA out of memory.*; halve train.batch_size and"),
    ],
)
def test_a_reward_that_fails_ends_the_run_and_the_mended_one_goes_on(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, kind: Any, sentence: str
) -> None:
    output = tmp_path / "run"
    broken = broken_reward(monkeypatch, catalog, fault)
    with pytest.raises(kind, match=sentence) as caught:
        run(output, broken, "train.steps=8")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert checkpoints(output / "checkpoints")[-1].name == "000006"
    run(output, catalog, "train.steps=8")
    run(tmp_path / "other", catalog, "train.steps=8")
    assert same(weights(output), weights(tmp_path / "other"))


def test_a_large_batch_that_ran_out_of_memory_goes_on_in_halves(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DraftError, match=r"halve train\.batch_size and double train\.grad"):
        run(tmp_path / "run", broken_reward(monkeypatch, catalog, out_of_memory), "train.batch_size=2", "train.steps=7")
    half = ["train.batch_size=1", "train.gradient_accumulation_steps=2", "train.steps=7"]
    assert run(tmp_path / "run", catalog, *half).after.update == 7


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.call={negative_prompt: 3}", "StableDiffusionPipeline: its call raised TypeError ("),
        ("model.call={clip_skip: 9}", "model.call: StableDiffusionPipeline cannot be called so (IndexError: "),
        ("train.mixed_precision=fp16", "train.mixed_precision: fp16 needs a GPU; use bf16, or no."),
    ],
)
def test_what_only_the_model_can_refuse_is_refused_before_an_earlier_run_is_replaced(
    catalog: Catalog, whole: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    there = contents(tmp_path / "run")
    with pytest.raises(DraftError) as caught:
        run(tmp_path / "run", catalog, override, overwrite=True)
    assert sentence in str(caught.value)
    assert contents(tmp_path / "run") == there


def test_runs_of_one_program_may_differ_in_precision(catalog: Catalog, tmp_path: Path) -> None:
    for precision in ("no", "bf16", "no"):
        result = run(
            tmp_path / precision, catalog, f"train.mixed_precision={precision}", "train.steps=1", overwrite=True
        )
        assert result.after.update == 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "rewards.0.cap=-1e+308",
            "recipe: rewards.0.cap: -1e+308 is larger than a run can compute with; give a smaller",
        ),
        ("model.call={eta: 1.0e+39}", "recipe: model.call.eta: 1e+39 is larger than a run can compute with"),
        (
            "train.steps=9223372036854775808",
            "recipe: train.steps: 9223372036854775808 is larger than a run can compute",
        ),
        ("train.batch_size=100001", "train.batch_size: input should be less than or equal to 100000"),
        ("model.lora.rank=1000000000000", "model.lora.rank: input should be less than or equal to 100000"),
        ('output="a\\0b"', "recipe: output: a folder's name cannot hold a zero byte; name another."),
    ],
)
def test_what_would_fail_in_the_midst_of_a_run_is_refused_before(
    catalog: Catalog, override: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, [override], catalog=catalog)
    assert sentence in str(caught.value)


# What was installed


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder, with its bytes and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


class Mine(DraftK):
    """A method of another distribution."""

    kind: Literal["mine"] = "mine"  # type: ignore[assignment]


@pytest.fixture
def shop(catalog: Catalog) -> Callable[..., Catalog]:
    """A catalog from three distributions, some of which are gone."""
    spec = MethodSpec(kind="mine", config=Mine, summary="mine")

    def offers(*gone: str) -> Catalog:
        rewards = {"brightness": Entry(BRIGHTNESS, Distribution("draft-measures", "1.0"))}
        if "draft-reward-red" not in gone:
            rewards["redness"] = Entry(REDNESS, Distribution("draft-reward-red", "2.1"))
        methods = dict(catalog.methods)
        if "draft-mine" not in gone:
            methods["mine"] = Entry(spec, Distribution("draft-mine", "3.0"))
        return Catalog(
            rewards=rewards,
            pretrained={} if "tiny-plugin" in gone else catalog.pretrained,
            methods=methods,
        )

    return offers


def test_a_plugin_that_is_gone_is_named_with_what_to_install_and_the_run_is_left_alone(
    shop: Callable[..., Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.out, "width", 400)
    run(tmp_path / "run", shop(), "method={kind: mine}", "train.steps=1")
    there = contents(tmp_path / "run")
    for gone, unknown, missing in (
        ("draft-reward-red", "unknown reward 'redness'", "draft-reward-red==2.1"),
        ("draft-mine", "unknown method 'mine'", "draft-mine==3.0"),
        ("tiny-plugin", "unknown prompt list or file 'tiny-train'", "tiny-plugin==1.2"),
    ):
        monkeypatch.setattr(cli, "load_catalog", lambda gone=gone: shop(gone))
        result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "run"), "--resume"])
        assert result.exit_code == 2, result.output
        assert f"{unknown}; install what the run was made with: pip install {missing}.\n" in result.output
        assert contents(tmp_path / "run") == there


# Files that are not what they seem


class Touch:
    """A pickle of it makes a folder when it is read without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def with_digests(folder: Path) -> None:
    """Writes the digests of the checkpoint's files as they are."""
    state = json.loads((folder / "state.json").read_text())
    state["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in state["files"]}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tensor = torch.arange(6.0).reshape(2, 3)
    parameter = torch.nn.Parameter(tensor.clone())
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = tensor
    optimizer.step()
    adapter = {"unet.a.lora_A.weight": tensor, "unet.a.lora_B.weight": tensor.T.contiguous()}
    return write_checkpoint(
        tmp_path / "000001",
        Checkpoint(adapter, {"adapter": optimizer.state_dict()}, {"state": {}, "modules": {}}, {"update": 1}),
    )


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "learner.pt", "state.json"])
def test_a_checkpoint_cut_anywhere_is_known_as_such(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    for tenth in range(10):
        (checkpoint / name).write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(CheckpointError, match=r"000001: cannot be read \(") as caught:
            read_checkpoint(checkpoint)
        assert "\n" not in str(caught.value)
        if name != "state.json":  # also where the digest would not tell
            with_digests(checkpoint)
            with pytest.raises(CheckpointError, match=r"000001: cannot be read \("):
                read_checkpoint(checkpoint)
    (checkpoint / name).write_bytes(content)
    with_digests(checkpoint)
    assert read_checkpoint(checkpoint).state["update"] == 1


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "learner.pt"])
def test_a_checkpoint_with_one_changed_bit_is_known_as_such(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    for tenth in range(10):
        changed = bytearray(content)
        changed[len(content) * tenth // 10] ^= 1
        (checkpoint / name).write_bytes(changed)
        with pytest.raises(CheckpointError, match=rf"000001: cannot be read \({name} is not the file that was written"):
            read_checkpoint(checkpoint)
    (checkpoint / name).write_bytes(content)
    read_checkpoint(checkpoint)


def test_torn_checkpoints_are_set_aside_by_name_and_the_run_ends_the_same(
    catalog: Catalog, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    (output / "run.json").unlink()
    folder = output / "checkpoints"
    for update, name in ((4, "adapter.safetensors"), (3, "optimizer.pt"), (2, "state.json")):
        torn = folder / f"{update:06d}" / name
        torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    (folder / "000005.partial").mkdir()
    notes: list[str] = []
    run(output, catalog, progress=lambda stage, done, total, note: notes.append(note))
    for update in (4, 3, 2):
        assert any(f"{update:06d}: cannot be read (" in note and "It is left aside" in note for note in notes)
    assert "going on after update 1" in notes
    assert same(weights(output), weights(whole))
    left = sorted(path.name for path in folder.iterdir())
    assert left == [name for u in (1, 2, 3, 4) for name in (f"{u:06d}", f"{u:06d}.unusable")[: 1 if u == 1 else 2]]


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_an_optimizer_that_would_execute_is_refused_and_does_not(checkpoint: Path, tmp_path: Path, form: str) -> None:
    trap, place = tmp_path / "trap", checkpoint / "optimizer.pt"
    if form == "torch":
        torch.save({"state": Touch(trap)}, place)
        torch.load(place, weights_only=False)
    else:
        place.write_bytes(pickle.dumps(Touch(trap), protocol=2))
        pickle.loads(place.read_bytes())
    trap.rmdir()  # so it does execute where nobody takes care
    with_digests(checkpoint)
    with pytest.raises(CheckpointError, match=r"000001: cannot be read \(.*resume from an earlier checkpoint"):
        read_checkpoint(checkpoint)
    assert not trap.exists()


@pytest.mark.parametrize("where", ["file", "field", "run"])
def test_a_recipe_that_would_execute_is_refused_and_does_not(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(cli, "load_catalog", lambda: catalog)
    trap = tmp_path / "trap"
    words = f"!!python/object/apply:os.mkdir [{str(trap)!r}]"
    pytest.importorskip("yaml").unsafe_load(words)
    trap.rmdir()  # so it does execute where nobody takes care
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml({**RECIPE, "output": str(tmp_path / "run")}))
    command = ["train", str(recipe)]
    if where == "file":
        recipe.write_text(f"{recipe.read_text()}\ntrackers: {words}\n")
    elif where == "field":
        command += ["--set", f"trackers={words}"]
    else:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.yaml").write_text(f"train: {words}")
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2, result.output
    assert "it has the tag" in result.output
    assert isinstance(result.exception, SystemExit)
    assert not trap.exists()


# Headers of safetensors files


def packed(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def wrong_headers(content: bytes) -> dict[str, bytes]:
    """What can be wrong in the header of a LoRA's file -> such a file."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    rows, columns = header[first]["shape"]

    def with_first(**fields: Any) -> bytes:
        return packed({**header, first: {**header[first], **fields}}, body)

    def with_settings(text: str) -> bytes:
        return packed({**header, "__metadata__": {"lora_adapter_metadata": text}}, body)

    return {
        "nothing": b"",
        "a length too large": struct.pack("<Q", 2**40) + content[8:],
        "a length beyond the end": struct.pack("<Q", len(content)) + content[8:],
        "no JSON": packed(b"{no json", body),
        "no text": packed(b"\xff\xfe{}", body),
        "a list": packed([], body),
        "offsets outside": with_first(data_offsets=[0, 10**12]),
        "offsets backwards": with_first(data_offsets=[8, 4]),
        "offsets of another": with_first(data_offsets=header[second]["data_offsets"]),
        "one name twice": packed(
            json.dumps(header)[:-1].encode() + f', "{first}": {json.dumps(header[second])}}}'.encode(), body
        ),
        "an unknown type": with_first(dtype="Q7"),
        "another type": with_first(dtype="I32"),
        "another shape": with_first(shape=[columns, rows]),
        "no matrix": with_first(shape=[rows * columns]),
        "a pickle": pickle.dumps(Touch(Path("trap"))),
        "settings that are no JSON": with_settings("{no json"),
        "settings that are a list": with_settings("[1]"),
        "settings that are no numbers": with_settings('{"unet.r": 2, "unet.lora_alpha": "x"}'),
    }


LENIENT = ("settings", "another shape", "no matrix")  # what a checkpoint's adapter is not asked about by itself


def test_a_checkpoint_with_a_wrong_header_is_refused_although_its_digests_are_right(checkpoint: Path) -> None:
    adapter = checkpoint / "adapter.safetensors"
    content = adapter.read_bytes()
    for name, wrong in wrong_headers(content).items():
        if not name.startswith(LENIENT):
            adapter.write_bytes(wrong)
            with_digests(checkpoint)
            with pytest.raises(CheckpointError, match=r"000001: cannot be read \(") as caught:
                read_checkpoint(checkpoint)
            assert "\n" not in str(caught.value), name
    adapter.write_bytes(content)
    with_digests(checkpoint)
    read_checkpoint(checkpoint)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")  # one pipeline is used for all of them
def test_a_lora_with_a_wrong_header_is_refused_in_one_sentence(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_sample, "load_catalog", lambda: catalog)
    monkeypatch.setattr(cli.err, "width", 1000)
    good = saved_lora(tmp_path / "good")
    output = tmp_path / "out.safetensors"
    found = {}
    files = {
        **wrong_headers((good / LORA).read_bytes()),
        "of another model": save({"a.lora_A.weight": torch.ones(2, 2)}),
    }
    for name, content in files.items():
        folder = tmp_path / "wrong"
        folder.mkdir(exist_ok=True)
        (folder / LORA).write_bytes(content)
        image = str(tmp_path / "out.png")
        sample = ["sample", "tiny", "--prompts", "a", "--images", "1", "--lora", str(folder), "-o", image]
        mix = ["mix", f"{folder}:1", f"{good}:1", "-o", str(tmp_path / "mixed")]
        export = ["export", str(folder), "-f", "comfyui", "-o", str(output)]
        for words in (sample, mix, export):
            result = CliRunner().invoke(cli.app, words)
            found[name, words[0]] = (result.exit_code, type(result.exception), str(folder) in result.output)
            assert not output.exists() or found[name, words[0]][0] == 0, (name, words)
            output.unlink(missing_ok=True)
    wrong = {case: verdict for case, verdict in found.items() if verdict != (2, SystemExit, True)}
    assert not wrong
