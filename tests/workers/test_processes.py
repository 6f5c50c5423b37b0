"""What a worker's process can do wrong, each one sentence, and what an environment is asked before anything loads.

The processes here load no torch: a few are no Python environment at all, but small programs that speak as one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from draft_core import load_reward, score
from draft_core.cli.app import app
from draft_core.errors import DraftError, PluginError, RecipeError, RewardError
from draft_core.proposals.card import update_of
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog
from draft_core.registry.environments import RewardInEnvironment, spec_of
from draft_core.rewards.image_files import read_image
from draft_core.workers import made_environments, process
from draft_core.workers.needs import core_requirements
from draft_core.workers.process import WorkerDiedError, WorkerProcess
from tests.support.environments import empty_environment, in_one_process, make_environment, python_of
from tests.support.tiny import GOOD


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the plugin "new"."""
    return make_environment(tmp_path_factory.mktemp("environments") / "new", "new")


def program(folder: Path, text: str) -> Path:
    """An interpreter that runs this text, whatever it is given."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


HELLO = "print('{}', flush=True); sys.stdin.readline()"


DEATHS = {
    "print('cannot go on', file=sys.stderr); sys.exit(7)": "it ended with exit code 7; its last words: cannot go on",
    "os.kill(os.getpid(), signal.SIGKILL)": "it was ended by SIGKILL, as the system does when memory runs out",
}


@pytest.mark.parametrize("text", DEATHS)
def test_how_a_process_died_is_said(tmp_path: Path, text: str) -> None:
    worker = WorkerProcess(program(tmp_path, f"{HELLO}; {text}"), where="reward 'x'")
    with pytest.raises(WorkerDiedError) as caught:
        worker.ask({"do": "score"}, timeout=60)
    assert str(caught.value) == DEATHS[text]
    assert worker.process.poll() is not None


def test_a_process_that_hangs_is_killed_with_its_children_and_its_last_words_are_said(tmp_path: Path) -> None:
    text = f"{HELLO}\nimport subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
    text += "print('waiting\\nfor a licence', child.pid, file=sys.stderr, flush=True)\ntime.sleep(60)"
    worker = WorkerProcess(program(tmp_path, text), where="reward 'x'")
    with pytest.raises(RewardError) as caught:
        worker.ask({"do": "score"}, timeout=3)
    said = str(caught.value)
    assert said.startswith("reward 'x': it has not answered within 3 s; its last words: waiting | for a licence ")
    assert "raise environment.timeout" in said
    assert is_gone(int(said.split(" for a licence ")[1].split(";")[0]))


def test_an_answer_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    worker = WorkerProcess(program(tmp_path, f"{HELLO}; print('garbage'); time.sleep(60)"), where="reward 'x'")
    with pytest.raises(RewardError, match=r"it answered 'garbage.*, which is no answer"):
        worker.ask({"do": "score"}, timeout=60)


def is_gone(number: int) -> bool:
    """Whether that process ends within seconds; one that nobody waits for counts as gone."""
    for _ in range(100):
        try:
            if Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def test_no_process_stays_when_the_parent_is_killed(tmp_path: Path, new: Path) -> None:
    """Also while it computes: here it waits for a file that nobody writes."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom draft_core.workers.process import WorkerProcess\n"
        f"worker = WorkerProcess(Path({str(new)!r}), where='x')\nprint(worker.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9
    assert is_gone(int(done.stdout))


@pytest.mark.parametrize("what", ["no file", "no program", "no Python", "bare"])
def test_what_is_no_environment_for_rewards_is_refused(what: str, tmp_path: Path, catalog: Catalog) -> None:
    path = tmp_path / "python"
    if what != "no file":
        path.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n", encoding="utf-8")
    if what == "no Python":
        path.chmod(0o755)
    if what == "bare":
        empty_environment(tmp_path / "bare", shares=False)
        path = python_of(tmp_path / "bare")
    said = refused(catalog, path)
    assert said.startswith(
        {
            "no file": f"recipe: rewards.0.environment.python: there is no file {path}; check the path",
            "no program": f"recipe: rewards.0: {path} cannot be started (Permission denied); name the Python of an",
            "no Python": f"recipe: rewards.0: {path} is no Python that rewards run in (it ended with exit code 3; its "
            "last words: no such module); name the Python",
            "bare": f"recipe: rewards.0: {path}: a package is missing that every reward needs (No module named",
        }[what]
    )
    if what == "bare":
        assert f"run {path} -m pip install 'annotated-types>=0.6'" in said
        assert "'pydantic>=2.9'" in said
        assert "diffusers" not in said


def refused(catalog: Catalog, python: Path, **fields: Any) -> str:
    with pytest.raises(DraftError) as caught:
        load(catalog, python, **fields)
    return str(caught.value)


def load(
    catalog: Catalog, python: Path, prompts: Any = None, overrides: Any = (), model: Any = None, **fields: Any
) -> Any:
    entry = {"kind": "new-tint", "environment": {"python": str(python)}, **fields}
    data = {
        **GOOD,
        "rewards": [entry],
        "prompts": prompts or GOOD["prompts"],
        "evaluation": {"prompts": "tiny-heldout"},
    }
    return load_recipe({**data, "model": model or GOOD["model"]}, overrides, catalog=catalog)


def test_a_recipe_is_checked_by_the_environment_of_its_reward(
    new: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This environment does not know the kind at all."""
    here = Catalog(pretrained=catalog.pretrained)  # nor any other
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.bin").touch()
    recipe = load(here, new, overrides=["rewards.0.file=here.bin"], weight=2)
    config = recipe.rewards[0]
    assert isinstance(config, RewardInEnvironment)
    assert (config.weight, config.strength, config.file) == (2, 1, str(tmp_path / "here.bin"))
    assert spec_of(config, here).differentiable
    assert config.environment.versions["draft-reward-new"] == "1.5"
    assert config.environment.versions["pinned"] == "2.0"
    written = parse_yaml(dump_recipe(recipe))
    again = load_recipe(written, catalog=here)
    assert again.rewards == recipe.rewards
    assert dump_recipe(again) == dump_recipe(recipe)


def test_errors_of_the_environment_are_those_of_this_one(new: Path, catalog: Catalog) -> None:
    """One process for each sentence, which loads no torch."""
    assert refused(catalog, new, strenght=2) == (
        "recipe: rewards.0.strenght: unknown field 'strenght'; did you mean 'strength'?"
    )
    assert refused(catalog, new, file="nowhere.bin").startswith("recipe: rewards.0.file: there is no file ")
    said = refused(catalog, new, prompts=["a", "forbidden"])
    assert said == "recipe: prompts, for rewards.0 (reward 'new-tint'): it cannot score 'forbidden'; leave it out."
    with pytest.raises(PluginError) as caught:
        load(catalog, new, kind="imagereward-2")
    said = str(caught.value)
    assert said.startswith(f"recipe: rewards.0: {new}: unknown reward 'imagereward-2'; did you mean 'imagereward'?")


def test_what_looks_into_a_reward_or_its_memory_refuses_an_environment(new: Path, catalog: Catalog) -> None:
    recipe = load(catalog, new, model={"pretrained": "stable-diffusion-v1-5/stable-diffusion-v1-5"})
    with pytest.raises(RecipeError, match="reward 'new-tint': environment: the memory of its process is not predicted"):
        update_of(recipe)
    for command in ("check", "compare"):
        words = ["rewards", command, "new-tint", "--set", f"environment.python={new}"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert f"`draft rewards {command}` looks into the reward" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "rewards.0.environment: python and requirements are both left out; give one of them"),
        ({"python": sys.executable, "requirements": ["a"]}, "python and requirements are both given; give one of them"),
        ({"requirements": ["-r list.txt"]}, "'-r list.txt' is no package as pip takes it"),
        ({"pyhton": sys.executable}, "rewards.0.environment.pyhton: unknown field 'pyhton'; did you mean 'python'?"),
        ({"python": sys.executable, "timeout": 0}, "rewards.0.environment.timeout: input should be greater than 0"),
        (None, "rewards.0.environment: input should be fields, not None"),
    ],
)
def test_what_a_recipe_says_of_an_environment_is_checked(environment: Any, said: str, catalog: Catalog) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({**GOOD, "rewards": [{"kind": "redness", "environment": environment}]}, catalog=catalog)
    assert said in str(caught.value)


def test_an_environment_of_requirements_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs things replaced; docs/decisions say which real ones were made."""
    ran: list[list[str]] = []

    def run(words: list[str], folder: Path) -> str:
        ran.append([*words])
        if "venv" in words:
            (folder / "site").mkdir(parents=True)
        return f"{folder / 'site'}\n" if "-c" in words else ""

    monkeypatch.setattr(made_environments, "_run", run)
    monkeypatch.setenv(made_environments.CACHE, str(tmp_path))
    monkeypatch.setattr(made_environments.shutil, "which", lambda word: "/bin/uv")
    first = made_environments.made_python(("tiny==1", "pillow<11"))
    assert made_environments.made_python(("pillow<11", "tiny==1")) == first
    assert [words[1] for words in ran] == ["venv", "-c", "pip"]
    installed = ran[2]
    assert {"tiny==1", "pillow<11"} <= set(installed)
    assert not any(word.startswith(("pillow>", "diffusers", "transformers")) for word in installed)
    assert any(word.startswith("torch==") for word in installed)
    (metadata,) = first.parents[1].glob("site/draft_core-*.dist-info/METADATA")
    assert "Requires-Dist" not in metadata.read_text(encoding="utf-8")
    assert made_environments.made_python(("tiny==2",)) != first
    (first.parents[1] / made_environments.MADE).unlink()  # one that was interrupted is made again
    made_environments.made_python(("pillow<11", "tiny==1"))
    assert len(ran) == 9


def test_an_environment_that_cannot_be_made_says_what_the_installer_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = program(
        tmp_path, "print('Resolving', file=sys.stderr); print('no such package', file=sys.stderr); sys.exit(1)"
    )
    monkeypatch.setenv(made_environments.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(made_environments.shutil, "which", lambda word: str(uv))
    with pytest.raises(DraftError, match=r"could not make it: Resolving \| no such package; correct environment.requ"):
        made_environments.made_python(("tiny",))


def test_what_a_worker_needs_is_a_part_of_what_the_core_needs() -> None:
    needed = " ".join(core_requirements())
    assert "torch" in needed
    assert "pydantic" in needed
    assert "peft" not in needed
    assert os.path.isfile(process.BOOTSTRAP)


def test_a_reward_that_is_there_alone_is_loaded_and_scores_files(new: Path, catalog: Catalog, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    environment = {"python": str(new)}
    assert "new-tint" not in catalog.rewards
    expected = dict(score(tmp_path, "new-tint", catalog=in_one_process(catalog)))
    assert dict(score(tmp_path, "new-tint", catalog=catalog, environment=environment)) == expected
    loaded = load_reward("new-tint", catalog=catalog, environment=environment)
    assert [float(loaded(read_image(tmp_path / "red.png")))] == list(expected.values())
    with pytest.raises(RecipeError, match=r"reward 'new-tint': small: what is small is said by a plugin here"):
        load_reward("new-tint", small=True, catalog=catalog, environment=environment)


def test_a_misspelt_environment_is_named(new: Path, catalog: Catalog) -> None:
    with pytest.raises(RecipeError, match=r"unknown field 'environmnet'; did you mean 'environment'"):
        load_recipe({**GOOD, "rewards": [{"kind": "redness", "environmnet": {"python": str(new)}}]}, catalog=catalog)
    elsewhere = {**GOOD, "metrics": [{"kind": "new-tint", "enviroment": {"python": str(new)}}]}
    with pytest.raises(RecipeError, match=r"recipe: metrics.0.enviroment: unknown field 'enviroment'; did you mean"):
        load_recipe(elsewhere, catalog=catalog)
