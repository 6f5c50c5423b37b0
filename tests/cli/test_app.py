"""The command line: what it prints, what it refuses, and that naming things needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from draft_core.recipe.yaml_text import dump_yaml, parse_yaml
from draft_core.rewards.images import to_pil
from tests.support import tiny
from tests.support.runs import without_pages
from tests.support.tiny import GOOD


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    extra = {"train": {"steps": 4, "batch_size": 2}, "checkpoint": {"every": 2}, "output": str(tmp_path / "run")}
    evaluation = {
        "evaluation": {"prompts": "tiny-heldout", "images_per_prompt": 1},
        "metrics": [{"kind": "brightness"}],
    }
    path.write_text(dump_yaml({**GOOD, **extra, **evaluation}))
    return str(path)


def test_every_command_has_help_and_the_bare_command_shows_them(draft: Any) -> None:
    _, overview = draft("--help")
    for words in (
        [],
        ["train"],
        ["demo"],
        ["rewards"],
        ["rewards", "show"],
        ["rewards", "check"],
        ["plugins"],
        ["score"],
        ["sample"],
        ["report"],
        ["mix"],
        ["export"],
        ["push"],
        ["schema"],
    ):
        code, text = draft(*words, "--help")
        assert code == 0
        assert "Usage" in text
        assert not words or words[0] in overview


def test_rewards_are_listed_with_origin_and_licences(draft: Any) -> None:
    code, text = draft("rewards")
    assert code == 0
    lines = iter(text.splitlines())
    assert next(lines).split() == ["brightness", "the", "brightness", "of", "an", "image"]
    assert next(lines).strip() == "tiny-plugin 1.2, code Apache-2.0, no weights, no gradient"
    assert next(lines).split() == ["redness", "the", "redness", "of", "an", "image"]
    assert next(lines).strip() == "tiny-plugin 1.2, code Apache-2.0, no weights"


def test_a_reward_is_shown_with_its_fields(draft: Any) -> None:
    code, text = draft("rewards", "show", "redness")
    assert code == 0
    row = next(line for line in text.splitlines() if "contrast" in line)
    assert "number > 0" in row
    assert "1.0" in row
    assert "Factor of the score." in row


def test_the_schema_is_json(draft: Any) -> None:
    _, text = draft("schema")
    assert "RednessConfig" in json.loads(text)["$defs"]


def test_images_are_scored(draft: Any, tmp_path: Path) -> None:
    for name, colour in (("red.png", (255, 0, 0)), ("grey.png", (9, 9, 9))):
        Image.new("RGB", (8, 6), colour).save(tmp_path / name)
    _, text = draft("score", "red.png", "grey.png", "--reward", "redness", "--set", "contrast=2", "--json")
    assert json.loads(text)["scores"] == [{"image": "red.png", "score": 2.0}, {"image": "grey.png", "score": 0.0}]
    _, text = draft("score", "red.png", "--reward", "redness")
    assert "red.png" in text
    assert "level" in text


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda scores: scores[99], "reward 'redness': it raised IndexError: "),
        (lambda scores: scores.mean(), "reward 'redness': it returned torch.float32 of shape () for 1 images"),
        (lambda scores: scores[:, None], "reward 'redness': it returned torch.float32 of shape (1, 1) for 1 images"),
        (lambda scores: float(scores), "reward 'redness': it returned float for 1 images"),
    ],
)
def test_a_reward_that_breaks_its_contract_scores_no_file(
    score: Any, sentence: str, draft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(tiny.Redness):
        def forward(self, images: Any, prompts: Any) -> Any:
            return score(super().forward(images, prompts))

    monkeypatch.setattr(tiny, "Redness", Breaking)
    Image.new("RGB", (8, 6)).save(tmp_path / "grey.png")
    code, text = draft("score", "grey.png", "--reward", "redness")
    assert code == 2
    assert text.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train none.yaml", "none.yaml: no such file"),
        ("train RECIPE --set train.stpes=1", "unknown field 'stpes'; did you mean 'steps'?"),
        ("train RECIPE --resume --overwrite", "contradict each other"),
        ("train RECIPE --resume", "there is no run to resume"),
        ("train RECIPE --set rewards.0.kind=brightness", "has no gradient, which method 'draft-lv' needs"),
        ("rewards check redness --set kind=brightness", "reward 'redness': kind: the kind is said already; leave it"),
        ("rewards show rednes", "unknown reward 'rednes'; did you mean 'redness'?"),
        ("score none.png --reward redness", "none.png: no such file"),
        ("score none.png --reward redness --set contrst=1", "unknown field 'contrst'; did you mean 'contrast'?"),
        ("score a b c --reward redness --prompt x --prompt y", "2 prompts for 3 images"),
        ("sample tinny --prompts x", "unknown model 'tinny'; did you mean 'tiny'?"),
        ("sample tiny --prompts x --lora nowhere", "nowhere: there is no pytorch_lora_weights.safetensors"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(draft: Any, recipe: str, words: str, sentence: str) -> None:
    code, text = draft(*words.replace("RECIPE", recipe).split())
    assert code == 2
    assert "Traceback" not in text
    assert sentence in text
    assert text.count("error:") == 1


def test_a_run_fills_its_folder_and_can_be_resumed_but_not_overwritten_by_accident(
    draft: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = draft("train", recipe)
    assert code == 0, text
    run = tmp_path / "run"
    assert f"report: {run / 'report.html'}" in text
    assert "train 4/4" in text
    assert f"page: {(run / 'report.html').as_uri()} (from the first evaluation on)" in text
    assert text.index("verdict: ") < text.index("report: ")
    assert "  The best evaluation is" in text or "  No evaluation beats" in text
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names >= {
        *("recipe.yaml", "metrics.jsonl", "curve.png", "before_after.png", "report.html"),
        *("lora/README.md", "lora/pytorch_lora_weights.safetensors", "checkpoints/000004/state.json"),
    }
    resolved = parse_yaml((run / "recipe.yaml").read_text())
    assert resolved["versions"]["tiny-plugin"] == "1.2"
    assert resolved["versions"]["torch"] == torch.__version__.split("+")[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3, 4]
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 2 + 5, "two prompts before and after, five scales of the LoRA"
    assert "http" not in page.replace("http-equiv", ""), "self-contained"
    assert "redness" in (run / "lora" / "README.md").read_text()

    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    code, text = draft("train", recipe)
    assert code == 2
    assert "continue it with --resume, replace it with --overwrite" in text

    code, text = draft("train", recipe, "--resume", "--set", "train.steps=6")
    assert code == 0, text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5, 6]

    code, text = draft("train", str(run / "recipe.yaml"), "--set", f"output={tmp_path / 'again'}")
    assert code == 0, f"a resolved recipe is a recipe: {text}"

    code, text = draft("sample", "tiny", "--prompts", "tiny-heldout", "--lora", str(run / "lora"), "--scale", "0.5")
    assert code == 0, text
    assert "wrote samples.png" in text
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.height > 256


def test_a_finished_run_goes_on_from_any_folder(draft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe lies in a folder of its own, beside its prompts; its output is relative to it."""
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project, elsewhere):
        folder.mkdir()
    (project / "mine.csv").write_text("prompt,n\na boat,1\na car,2\n")
    small = {"train": {"steps": 1, "batch_size": 1}, "output": "runs/mine", "prompts": "mine.csv"}
    evaluation = {"evaluation": {"prompts": "tiny-heldout", "count": 1, "images_per_prompt": 1, "scales": []}}
    (project / "recipe.yaml").write_text(dump_yaml({**GOOD, **small, **evaluation}))
    code, text = draft("train", "project/recipe.yaml")
    assert code == 0, text
    run = project / "runs" / "mine"
    assert f"report: {run / 'report.html'}" in text

    for steps, folder, words in (
        (2, elsewhere, ["../project/recipe.yaml"]),
        (3, project, ["runs/mine"]),
        (4, run, ["."]),
        (5, elsewhere, [str(run / "recipe.yaml")]),
    ):
        monkeypatch.chdir(folder)
        code, text = draft("train", *words, "--resume", "--set", f"train.steps={steps}")
        assert code == 0, text
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["update"] for line in lines] == list(range(1, steps + 1))
    assert not list(elsewhere.iterdir())


def test_prompts_are_drawn_and_what_is_nearly_a_file_or_list_is_not(draft: Any, tmp_path: Path) -> None:
    for prompt in ("a cat, " * 60, "a red apple"):
        code, text = draft("sample", "tiny", "--prompts", prompt, "--steps", "1", "--images", "1", "-o", "one.png")
        assert code == 0, text
        assert (tmp_path / "one.png").is_file()
        (tmp_path / "one.png").unlink()
    for word, sentence in (("prompts_typo.txt", "there is no file"), ("tiny-trian", "did you mean 'tiny-train'?")):
        code, text = draft("sample", "tiny", "-p", word, "-o", "one.png")
        assert code == 2
        assert f"error: --prompts {word}: " in text
        assert sentence in text
        assert not (tmp_path / "one.png").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_an_output_that_cannot_be_made_is_refused_before_a_model_is_loaded(
    draft: Any, recipe: str, tmp_path: Path
) -> None:
    code, text = draft("train", recipe, "--set", "output=/proc/x/y")
    assert code == 2
    assert "output /proc/x/y: /proc is not writable (No such file or directory); mend its permissions, or" in text
    assert "load" not in text
    code, text = draft("train", recipe, "--set", "model.call={nothing: 1}")
    assert code == 2
    assert not (tmp_path / "run").exists(), "what was made to find out is removed"


def test_ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one(
    draft: Any, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    fewer = ("--set", "evaluation.scales=[]")
    code, _ = draft("train", recipe, *fewer, "--set", f"output={tmp_path / 'whole'}")
    assert code == 0
    monkeypatch.setattr(tiny, "Redness", tiny.Impatient)
    code, text = draft("train", recipe, *fewer, "--set", "checkpoint.every=50")
    assert code == 130, text
    assert "checkpoints/000003: interrupted after update 3; continue with the same command" in text
    code, text = draft("train", recipe, *fewer, "--set", "checkpoint.every=50")
    assert code == 0, text
    assert "going on after update 3" in text
    one, other = (load_file(tmp_path / run / "lora/pytorch_lora_weights.safetensors") for run in ("run", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    rewards = [
        [json.loads(line)["reward"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "whole")
    ]
    assert rewards[0] == rewards[1]


def test_a_folder_with_other_things_is_never_overwritten(draft: Any, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    code, text = draft("train", recipe, "--overwrite")
    assert code == 2
    assert "is not empty and holds no run" in text
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_sampling_is_the_plain_pipelines(draft: Any, catalog: Any, tmp_path: Path) -> None:
    """The first cell of the grid, reduced to pixels, is what diffusers makes from the same seed."""
    from draft_core.runs.pipeline_loading import load_pipeline

    code, text = draft("sample", "tiny", "--prompts", "a cat", "--images", "1", "--seed", "7", "--output", "grid.png")
    assert code == 0, text
    pipe = load_pipeline("tiny", catalog=catalog)
    plain = pipe(
        "a cat",
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="pt",
        **catalog.pretrained["tiny"].spec.call,
    ).images[0]
    expected = to_pil(plain).resize((128, 128), Image.Resampling.NEAREST)
    with Image.open(tmp_path / "grid.png") as grid:
        left = grid.width - 136
        assert grid.crop((left, 8, left + 128, 136)).tobytes() == expected.tobytes()


# In a fresh interpreter, with plugins found through real entry points


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed distributions: one that works and one whose import raises."""
    modules = {
        "good_plugin": """
            from typing import Literal
            from draft_core.plugin import RewardConfig, RewardSpec, hookimpl
            DRAFT_API_VERSION = 2
            class GoodConfig(RewardConfig):
                kind: Literal["good"] = "good"
            class ViewConfig(RewardConfig):
                kind: Literal["view"] = "view"
            @hookimpl
            def draft_register_rewards():
                common = dict(summary="s", unit="u", code_license="MIT", factory="good_plugin:none")
                yield RewardSpec(kind="good", config=GoodConfig, **common)
                yield RewardSpec(kind="view", config=ViewConfig, differentiable=False, **common)
        """,
        "bad_plugin": "raise RuntimeError('no licence key')",
    }
    site = tmp_path / "site"
    for name, source in modules.items():
        info = site / f"{name}-3.1.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 3.1\n")
        (info / "entry_points.txt").write_text(f"[draft_core.plugins]\n{name} = {name}\n")
    return site


def fresh(words: list[str], site: Path, **environment: str) -> tuple[int, str, bool]:
    """Exit code, output, and whether torch was imported."""
    program = textwrap.dedent(
        """
        import sys
        from draft_core.cli.app import app
        try:
            app(sys.argv[1:])
        finally:
            print("TORCH" if "torch" in sys.modules else "NO TORCH")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={"PYTHONPATH": str(site), "PATH": "", "COLUMNS": "200", "HOME": str(site), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = done.stdout + done.stderr
    return done.returncode, text, "NO TORCH" not in text


def test_listing_rewards_imports_no_torch_and_names_what_is_broken(site: Path) -> None:
    code, text, torch_was_imported = fresh(["rewards"], site)
    assert code == 0, text
    assert not torch_was_imported
    assert "good-plugin 3.1" in text
    assert "broken: bad-plugin 3.1 (bad_plugin = bad_plugin): RuntimeError: no licence key" in text


def test_plugins_are_listed_with_their_file_and_can_be_restricted(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, torch_was_imported = fresh(["plugins"], site)
    assert code == 0, text
    assert not torch_was_imported
    assert "reward good, reward view" in text
    assert "good_plugin.py" in text.replace("\n", "")
    assert "broken: bad-plugin 3.1" in text
    code, text, _ = fresh(["plugins"], site, DRAFT_PLUGINS="good-plugin")
    assert "reward good" in text
    assert "bad-plugin" not in text
    code, text, _ = fresh(["rewards"], site, DRAFT_PLUGINS="")
    assert code == 0
    assert "No reward is installed" in text
    code, text, _ = fresh(["rewards"], site, DRAFT_PLUGINS="god-plugin")
    assert code == 2
    assert "DRAFT_PLUGINS: 'god-plugin' is no installed plugin; installed: bad-plugin" in text


@pytest.mark.parametrize("words", [["schema"], ["rewards", "show", "good"], ["--help"], ["--version"]])
def test_naming_things_imports_no_torch(words: list[str], site: Path) -> None:
    code, text, torch_was_imported = fresh(words, site)
    assert code == 0, text
    assert not torch_was_imported


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rewards=[{kind: god}]", "unknown reward 'god'; did you mean 'good'?"),
        ("rewards=[{kind: worse}]", "broken plugins: bad-plugin 3.1 (RuntimeError: no licence key ("),
        ("rewards=[{kind: good, wieght: 1}]", "unknown field 'wieght'; did you mean 'weight'?"),
        ("rewards=[{kind: good, weight: heavy}]", "rewards.0.weight: input should be a valid number"),
        ("rewards=[{kind: view}]", "reward 'view' has no gradient"),
        ("prompts=[]", "there are no prompts"),
        ("prompts=nowhere.txt", "unknown prompt list or file 'nowhere.txt'"),
        ("method={kind: draft-k, k: 99}", "k = 99 is larger than the number of sampler steps, 20"),
        ("model.pretrained=nothing", "unknown model 'nothing'"),
    ],
)
def test_bad_input_is_refused_before_any_torch(change: str, sentence: str, site: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {pretrained: org/model}\nprompts: [x]\nrewards: [{kind: good}]\n")
    code, text, torch_was_imported = fresh(["train", str(recipe), "--set", change], site)
    assert code == 2, text
    assert sentence in text
    assert "Traceback" not in text
    assert not torch_was_imported
