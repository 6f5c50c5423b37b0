"""`draft init` writes recipes that validate, fit their card, and never replace a file unasked."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draft_core import load_catalog
from draft_core.cli import app as cli
from draft_core.cost.card import GIB, Prediction, Update
from draft_core.cost.forecast import Memory
from draft_core.errors import RecipeError
from draft_core.proposals import fitting, starts
from draft_core.proposals.starts import EMOJI, OF_PHOTOGRAPHS, STARTS, judges, missing_rewards, trainable_rewards
from draft_core.recipe.load import load_recipe
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog
from tests.support.thorough import in_full

CATALOG = load_catalog()
NEEDED = {"draft-emoji", "draft-reward-hpsv2", "draft-reward-pickscore", "draft-reward-jpeg"}
pytestmark = pytest.mark.skipif(
    bool(NEEDED - CATALOG.versions().keys()),
    reason=f"{' and '.join(sorted(NEEDED - CATALOG.versions().keys()))} not installed",
)
# GiB of an update of one image beside 6 of weights, by what is recomputed.
ACTIVATIONS = {False: 30.0, "selective": 14.0, "blocks": 6.0}


def predicted(update: Update) -> Prediction:
    """Instead of a prediction, which takes half a minute."""
    activations = round(ACTIVATIONS[update.checkpointing] * update.grad_steps * GIB)
    return Prediction(Memory({"unet": 6 * GIB}, 0, 0, 0, activations), start=8 * GIB)


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs `draft init` in an empty folder, with answers; gives the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "predict", predicted)
    monkeypatch.setattr("draft_core.cli.init.cost", lambda recipe: None)
    monkeypatch.setattr(cli.out, "width", 200)

    def run(*words: str, answers: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["init", *words], input=answers)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, " ".join(result.output.split())

    return run


def shell_words(command: str) -> list[str]:
    return subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True).stdout.split("\0")[
        :-1
    ]


@pytest.mark.parametrize("model", STARTS)
def test_every_model_gets_a_recipe_that_validates_with_a_comment_on_its_lines(init: Any, model: str) -> None:
    code, text = init("--model", model, "--card", "80GB", "--yes", "--output", "r.yaml")
    assert code == 0, text
    recipe = load_recipe(Path("r.yaml"), catalog=CATALOG)
    start = STARTS[model]
    assert recipe.model.pretrained == start.pretrained
    assert (recipe.model.num_inference_steps, recipe.model.guidance_scale) == (start.steps, start.guidance)
    assert dict(recipe.model.call) == dict(start.call)
    assert recipe.train.batch_size * recipe.train.gradient_accumulation_steps == start.images_per_update
    assert recipe.evaluation is not None
    assert recipe.output == Path.cwd() / "runs" / "r"
    assert not {reward.kind for reward in recipe.rewards} & {metric.kind for metric in recipe.metrics}
    scalars = [line for line in Path("r.yaml").read_text().splitlines() if re.match(r"^\s*[a-z_]+: \S", line)]
    bare = ("pretrained", "prompts", "count", "images_per_prompt")
    assert [line for line in scalars if "  # " not in line and line.split(":")[0].strip() not in bare] == []


@pytest.mark.parametrize("reward", [kind for kind in OF_PHOTOGRAPHS if kind in CATALOG.rewards])
def test_every_reward_of_photographs_gets_a_recipe_that_validates(init: Any, reward: str) -> None:
    code, text = init("--model", "sdxl", "--reward", reward, "--card", "24", "--yes")
    assert code == 0, text
    recipe = load_recipe(Path("recipe.yaml"), catalog=CATALOG)
    assert [config.kind for config in recipe.rewards] == [reward]
    assert [metric.device for metric in recipe.metrics] == ["cpu"]


# Questions


def test_what_is_not_given_is_asked_for(init: Any) -> None:
    code, text = init(answers="sdxl\npickscore\n80GB\n")
    assert code == 0, text
    assert "FLUX.1-dev" in text
    assert "for a card of 80 GB" in text
    recipe = load_recipe(Path("recipe.yaml"), catalog=CATALOG)
    assert (recipe.model.pretrained, recipe.rewards[0].kind) == (STARTS["sdxl"].pretrained, "pickscore")


def test_a_wrong_answer_is_asked_again_and_enter_takes_what_is_proposed(init: Any) -> None:
    code, text = init(answers="sdlx\n\n\n")
    assert code == 0, text
    assert "select one of the available options" in text
    assert load_recipe(Path("recipe.yaml"), catalog=CATALOG).model.pretrained == EMOJI


def test_without_a_person_it_says_what_to_give(init: Any) -> None:
    code, text = init(answers="")
    assert code == 2
    assert "there is nobody to ask; give the options that it asks for, or --yes." in text


def test_rewards_that_are_not_installed_are_shown_with_their_command() -> None:
    without = {kind: entry for kind, entry in CATALOG.rewards.items() if kind not in ("hpsv2", "aesthetic")}
    found = missing_rewards("sdxl", replace(CATALOG, rewards=without))
    assert found["hpsv2"] == "pip install draft-reward-hpsv2"
    assert "pickscore" not in found


def test_rewards_are_those_that_read_such_images() -> None:
    assert "hpsv2" not in trainable_rewards(EMOJI, CATALOG)
    assert "emoji-clip" not in trainable_rewards("sdxl", CATALOG)
    assert "jpeg-size" not in trainable_rewards("sdxl", CATALOG), "it has no gradient"
    assert "adversarial" not in trainable_rewards("sdxl", CATALOG), "it needs a class"
    assert trainable_rewards("sdxl", CATALOG)[0] == "hpsv2"
    assert judges("sdxl", "hpsv2", CATALOG) == ["pickscore"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("emoji-scene-contrast", "does not ask for two of its 65 things"),
        ("ocr-per-prompt", "has no text in double quotes"),
        ("asked-colour", "they have no column 'colour', which it reads"),
    ],
)
def test_a_reward_that_cannot_score_the_prompts_is_not_offered_and_says_why(init: Any, kind: str, why: str) -> None:
    assert kind not in trainable_rewards(EMOJI, CATALOG)
    code, text = init("--model", EMOJI, "--reward", kind, "--yes")
    assert code == 2
    assert f"--reward: '{kind}' cannot be trained on here: it cannot score the prompts of such a recipe: " in text
    assert why in text
    assert not Path("recipe.yaml").exists()


def test_prompts_that_are_given_decide_which_rewards_are_offered(tmp_path: Path) -> None:
    (tmp_path / "signs.txt").write_text('a sign that says "OPEN"\n', encoding="utf-8")
    held_out = [f'a sign that says "{word}"' for word in ("SHUT", "STOP")]
    start = replace(STARTS["sdxl"], prompts="signs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "_lines", lambda name: held_out)
        patch.setitem(STARTS, "sdxl", start)
        assert "ocr-per-prompt" in trainable_rewards("sdxl", CATALOG, str(tmp_path / "signs.txt"))
        assert "ocr-per-prompt" not in trainable_rewards("sdxl", CATALOG, "emoji-hard")


# Files


def test_a_file_is_never_replaced_unasked(init: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    code, text = init("--model", EMOJI, "--yes")
    assert (code, (tmp_path / "recipe.yaml").read_text()) == (2, "mine")
    assert "it is there already; name another file, or give --overwrite." in text
    code, _ = init("--model", EMOJI, answers="n\n")
    assert (code, (tmp_path / "recipe.yaml").read_text()) == (2, "mine")
    code, _ = init("--model", EMOJI, answers="y\n\n")
    assert code == 0
    assert (tmp_path / "recipe.yaml").read_text() != "mine"
    (tmp_path / "recipe.yaml").write_text("mine")
    assert init("--model", EMOJI, "--yes", "--overwrite")[0] == 0
    assert (tmp_path / "recipe.yaml").read_text() != "mine"


def test_what_fails_leaves_the_file_as_it_was(init: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    held_out = starts._lines("images-heldout.txt")[0]
    (tmp_path / "prompts.txt").write_text(f"a cat\n{held_out}\n")
    code, text = init("--model", "sdxl", "--card", "80", "--prompts", "prompts.txt", "--yes", "--overwrite")
    assert code == 2
    assert "of its prompts are also trained on" in text
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_a_file_of_prompts_is_named_as_the_recipe_sees_it(init: Any, tmp_path: Path) -> None:
    (tmp_path / "my prompts.txt").write_text("a cat\na dog\n")
    words = ("--model", "sdxl", "--card", "80", "--prompts", "my prompts.txt", "--yes", "-o", "recipes/new/r.yaml")
    assert init(*words)[0] == 0
    assert parse_yaml(Path("recipes/new/r.yaml").read_text())["prompts"] == "../../my prompts.txt"
    assert load_recipe(Path("recipes/new/r.yaml"), catalog=CATALOG).prompts == str(tmp_path / "my prompts.txt")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "sd4"], "--model: 'sd4' is no model that a recipe can be written for; give one of emoji, sd15"),
        (["--model", "sdxl", "--card", "big"], "--card: 'big' is not the memory of a card"),
        (["--model", "sdxl", "--reward", "hpsv9"], "--reward: unknown reward 'hpsv9'"),
        (["--model", "sdxl", "--reward", "emoji-clip"], "'emoji-clip' cannot be trained on here"),
        (["--model", "sdxl", "--card", "8GB"], "--card: one image of Stable Diffusion XL takes 13.3 GiB at the least"),
        (["--prompts", "none.txt"], "--prompts none.txt: no such file"),
        (["--model", "emoji", "--card", "banana"], "--card: 'banana' is not the memory of a card"),
        (["-o", "."], "--output .: it is a folder; name a file, such as recipe.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(init: Any, words: list[str], sentence: str) -> None:
    code, text = init("--yes", *words)
    assert code == 2
    assert sentence in text
    assert list(Path().iterdir()) == []


def test_a_card_that_decides_nothing_is_named(init: Any) -> None:
    assert "--card 24GB decides nothing" in init("--model", EMOJI, "--card", "24GB", "--yes")[1]
    assert "--card" not in init("--model", EMOJI, "--yes", "--overwrite")[1]


def test_commands_that_it_prints_can_be_pasted(init: Any) -> None:
    """The shell itself splits them."""
    text = init("--model", "sdxl", "--card", "80", "--yes", "-o", "my runs/it's $HOME.yaml")[1]
    header = Path("my runs/it's $HOME.yaml").read_text()
    shown = re.findall("next: (.*)", text) + re.findall("# (?:Everything once|Then): (.*)", header)
    split = [shell_words(command) for command in shown]
    assert [words[:2] for words in split] == [["draft", "train"]] * 3
    assert [words[2] for words in split] == ["my runs/it's $HOME.yaml", *["it's $HOME.yaml"] * 2]


def test_without_its_plugin_the_embedded_model_is_refused(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.cli.init.load_catalog", lambda: replace(CATALOG, pretrained={}, plugins=()))
    code, text = init("--model", EMOJI, "--yes")
    assert code == 2
    assert "pip install draft-emoji" in text


# What fits


def fit(card: float, model: str = "sdxl") -> fitting.Fit:
    from pydantic import TypeAdapter

    from draft_core.recipe.schema import method_type

    start = STARTS[model]
    methods = [TypeAdapter(method_type(Catalog())).validate_python(dict(method)) for method in start.methods]
    return fitting.fit_to_card(start, "hpsv2", methods, card)


@pytest.mark.parametrize(
    ("model", "card", "expected"),
    [
        # 6 GiB of weights, 1.05 times the activations, 1 for CUDA; nine tenths of 0.93 of the card
        ("sdxl", 17, ("draft-lv", 1, 8, "blocks", "blocks")),
        ("sdxl", 24, ("draft-lv", 2, 4, "blocks", "blocks")),
        ("sdxl", 32, ("draft-lv", 1, 8, "selective", "selective")),
        ("sdxl", 48, ("draft-lv", 1, 8, "false", "whole")),
        ("sdxl", 400, ("draft-lv", 8, 1, "false", "whole")),
        ("sdxl-turbo", 17, ("draft-k", 1, 8, "blocks", "blocks")),
        ("sdxl-turbo", 24, ("draft-k", 1, 8, "blocks", "blocks")),
        ("wan-1.3b", 32, ("draft-k", 1, 4, "selective", "sliced")),
    ],
)
def test_the_fastest_settings_that_fit_are_taken(
    monkeypatch: pytest.MonkeyPatch, model: str, card: float, expected: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(fitting, "predict", predicted)
    found = fit(card, model)
    assert (found.method["kind"], found.batch, found.accumulation, found.checkpointing, found.decode) == expected
    assert found.prediction is not None
    assert found.prediction.total <= fitting.SURE * fitting.USABLE * card * GIB


def test_a_card_that_is_named_as_large_enough_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "predict", predicted)
    with pytest.raises(RecipeError) as refused:
        fit(8)
    (size,) = re.findall(r"take a card of (\d+) GB or more", str(refused.value))
    assert fit(float(size)).batch == 1
    with pytest.raises(RecipeError):
        fit(float(size) - 2)


# The whole way


@in_full
def test_the_recipe_says_what_draft_cost_says(tmp_path: Path) -> None:
    path = tmp_path / "sd15.yaml"
    words = ["init", "--model", "sd15", "--reward", "hpsv2", "--card", "24GB", "--output", str(path), "--yes"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    (said,) = re.findall(r"Predicted, not measured: ([\d.]+) GiB on a card of 24 GB", path.read_text())
    result = CliRunner().invoke(cli.app, ["cost", str(path), "--card", "24GB"])
    assert result.exit_code == 0
    (total,) = re.findall(r"total\W+([\d.]+)", result.output)
    assert total == said
    assert "It fits." in result.output


@pytest.mark.usefixtures("blank_curves")
@in_full
def test_from_init_to_a_finished_run_on_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = CliRunner().invoke(cli.app, ["init"], input=f"{EMOJI}\n\n")
    assert written.exit_code == 0, written.output
    assert "Memory at its peak" in written.output
    (command,) = re.findall(r"next: draft (.*)", written.output)
    less = ["--set", "train.steps=2", "--set", "train.batch_size=2", "--set", "evaluation.count=2"]
    trained = CliRunner().invoke(cli.app, [*command.split(), *less, "--set", "evaluation.scales=[]"])
    assert trained.exit_code == 0, trained.output
    assert (tmp_path / "runs" / "recipe" / "report.html").is_file()
