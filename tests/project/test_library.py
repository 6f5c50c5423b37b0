"""The package as a library: lazy names, the builder, evaluation and report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import draft_core
from draft_core import build, load_pipeline, load_recipe
from draft_core.errors import DraftError, RecipeError
from draft_core.evaluation.evaluate import evaluate
from draft_core.reporting.image_grid import draw_grid
from draft_core.rewards.objective import Objective
from draft_core.rewards.placement import OnDevice
from draft_core.runs.build import build_objective
from tests.support.pages import ROOT, SMALL, code_blocks, require_installed, run_code, text_of
from tests.support.runs import with_small_images
from tests.support.tiny import GOOD, byte_tokenizer, tiny_pipe


def test_importing_the_package_pulls_in_no_torch() -> None:
    program = (
        "import sys, draft_core; from draft_core import Draft, DraftK, DraftLV, StepPlan, load_recipe, load_catalog;"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in draft_core.__all__:
        assert getattr(draft_core, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        draft_core.nothing  # noqa: B018


def test_build_gives_a_trainer_whose_lora_is_fixed_by_the_seed(catalog: Any) -> None:
    def factors(seed: int) -> torch.Tensor:
        trainer = build(load_recipe(GOOD, [f"train.seed={seed}", "device=cpu"], catalog=catalog), catalog=catalog)
        return torch.cat([parameter.detach().flatten() for parameter in trainer.parameters])

    state = torch.get_rng_state()
    assert torch.equal(factors(0), factors(0))
    assert not torch.equal(factors(0), factors(1))
    assert torch.equal(torch.get_rng_state(), state), "torch's global random state is left alone"


def test_what_stands_beside_a_prompt_reaches_the_batch(catalog: Any, tmp_path: Path) -> None:
    rows = [(f"a thing {number}", str(number)) for number in range(7)]
    (tmp_path / "things.csv").write_text("n,prompt\n" + "".join(f"{number},{prompt}\n" for prompt, number in rows))
    recipe = load_recipe(
        GOOD, ["device=cpu", "train.batch_size=3", f"prompts={tmp_path / 'things.csv'}"], catalog=catalog
    )
    trainer = build(recipe, catalog=catalog)
    batches = [batch for update in range(4) for batch in trainer.batches.draw(update)]
    drawn = [row for batch in batches for row in zip(batch.prompts, batch.columns["n"], strict=True)]
    assert set(drawn) == set(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused_not_replaced(catalog: Any) -> None:
    recipe = load_recipe(GOOD, ["device=cuda"], catalog=catalog)
    with pytest.raises(RecipeError, match="device: 'cuda' is not available here; use cpu"):
        build(recipe, catalog=catalog)


def test_a_reward_on_a_device_of_its_own_gives_the_same_gradient(catalog: Any) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for overrides in ([], ["rewards.0.device=cpu"]):
        recipe = load_recipe(GOOD, ["device=cpu", *overrides], catalog=catalog)
        objective = build(recipe, catalog=catalog).objective
        leaf = images.clone().requires_grad_()
        objective(leaf, ["a", "b"]).total.sum().backward()
        gradients.append(leaf.grad)
        weighed = objective.to(torch.float64).rewards["redness"]
    assert torch.equal(*gradients)
    assert isinstance(weighed, OnDevice), "it is what the second recipe made"


@pytest.mark.parametrize("field", ["rewards.0", "metrics.0"])
def test_a_reward_on_a_card_that_is_not_there_is_refused_before_anything_loads(
    field: str, catalog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("draft_core.runs.pipeline_loading.load_pipeline", lambda *given, **named: loaded.append(given))
    data = {**GOOD, "metrics": [{"kind": "brightness"}]}
    recipe = load_recipe(data, ["device=cpu", f"{field}.device=cuda:7"], catalog=catalog)
    with pytest.raises(RecipeError) as caught:
        build(recipe, catalog=catalog)
    assert str(caught.value).startswith(f"{field}.device: 'cuda:7' is not available here; use cpu")
    assert not loaded


def test_a_hub_model_without_network_is_one_sentence(catalog: Any) -> None:
    with pytest.raises(DraftError) as caught:
        load_pipeline("nobody/nothing", catalog=catalog)
    sentence = str(caught.value)
    assert sentence.startswith("model.pretrained: nobody/nothing cannot be loaded (")
    assert "check the name and the network, or give a local folder" in sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_of_a_pipeline_has_the_precision_that_was_asked_for(dtype: str, catalog: Any) -> None:
    pipe = load_pipeline("tiny", dtype=dtype, catalog=catalog)
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 3
    assert {parameter.dtype for part in modules for parameter in part.parameters()} == {getattr(torch, dtype)}


def test_one_kind_twice_keeps_both(catalog: Any) -> None:
    recipe = load_recipe(GOOD, ["rewards=[{kind: redness, weight: 2}, {kind: redness, contrast: 3}]"], catalog=catalog)
    objective = build_objective(recipe.rewards, catalog)
    assert objective.weights == {"redness": 2.0, "redness#2": 1.0}
    assert list(objective(torch.rand(1, 3, 4, 4), [""]).per_reward) == ["redness", "redness#2"]
    judges = build_objective(recipe.rewards[:1], catalog, beside=objective)
    assert list(judges.rewards) == ["redness", "redness#2", "redness#3"]
    assert judges.rewards["redness#2"] is objective.rewards["redness#2"], "what is built is not built again"


def test_an_evaluated_image_depends_on_prompt_and_seed_alone(catalog: Any) -> None:
    recipe = load_recipe(GOOD, ["device=cpu"], catalog=catalog)
    trainer = build(recipe, catalog=catalog)
    done: list[tuple[int, int]] = []
    whole = evaluate(
        trainer.sampler,
        trainer.objective,
        ["a bird", "a fish"],
        [3, 4],
        batch_size=3,
        progress=lambda *at: done.append(at),
    )
    assert whole.images.shape == (4, 3, 16, 16)
    assert done == [(3, 4), (4, 4)]
    assert not whole.images.requires_grad
    alone = evaluate(trainer.sampler, Objective({}), ["a fish"], [4], batch_size=1)
    torch.testing.assert_close(alone.images[0], whole.images[3])
    assert whole.means() == {"redness": pytest.approx(float(whole.scores["redness"].mean()))}


def test_a_grid_enlarges_small_images_and_reduces_large_ones(tmp_path: Path) -> None:
    rows = [("small and large", [torch.zeros(3, 16, 16), torch.ones(3, 300, 200)])]
    image = draw_grid(rows, headings=["one", "two"])
    assert image.height == 8 + 15 + 8 + 136
    assert image.getpixel((image.width - 2 * 136 + 60, 90)) == (0, 0, 0)


def test_the_code_of_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block in one program, on a small pipeline, with its recipe in few updates."""
    require_installed("draft-emoji", "draft-reward-jpeg")
    model = tmp_path / "path" / "to" / "model"
    tiny_pipe(tokenizer=byte_tokenizer(tmp_path)).save_pretrained(model)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("draft_core.runs.run.write_report", with_small_images)
    blocks = code_blocks(text_of("docs/library.md"), "python")
    small = ", ".join(f'"{setting}"' for setting in SMALL)
    names: dict[str, Any] = {}
    for block in blocks:
        run_code(block.replace('["train.steps=20"]', f"[{small}]"), names)
    assert len(names["rollout"].trajectory) == names["sampler"].steps
    assert names["scores"].shape == (1,)
    assert names["report"].update == 2, "the recipe's last"
    assert [path.name for path in names["of_files"]] == ["apple.png"]
    assert (names["longer"].train.steps, names["before"].images.shape) == (2, (1, 3, 16, 16))
    assert names["run"].images["after"].shape == (1, 3, 16, 16)
    assert names["weights"]
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    assert next(iter(names["trainer"])).grad_norm > 0, "the trainer of parts trains"
