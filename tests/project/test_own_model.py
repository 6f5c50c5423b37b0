"""The way from the README to one's own model: its recipe and numbers, the recipes for students, and their program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

from draft_core import load_catalog, load_recipe
from draft_core.adapters.files import write_lora
from draft_core.adapters.lora import add_lora, trainable
from draft_core.cost.card import GIB, predict, usable
from draft_core.proposals.card import update_of
from draft_core.proposals.starts import SD15
from tests.support.pages import ROOT, code_blocks, require_installed, text_of
from tests.support.thorough import some
from tests.support.tiny import byte_tokenizer, tiny_pipe

LINES = 10
STUDENTS = ("sd-turbo", "sdxl-turbo", "flux-schnell", "sd15-lcm")
ROW = re.compile(r"^\| [^|]+ \| `([^`]+)` \| (\d+) \| ([\d.]+) \| (\d+) GiB \| [^|]+ \|$", flags=re.MULTILINE)


def ten_lines() -> str:
    return code_blocks(text_of("README.md").partition("<!-- ten lines -->")[2], "yaml")[0]


def rows() -> list[tuple[str, str, str, str]]:
    return ROW.findall(text_of("README.md"))


ROWS = {row[0]: row for row in rows()}


def readme_recipe(folder: Path, *overrides: str) -> Any:
    """The recipe of the README, in the repository's folder."""
    require_installed("draft-reward-hpsv2", "draft-reward-pickscore")
    path = folder / "recipe.yaml"
    path.write_text(ten_lines().replace("recipes/prompts", str(ROOT / "recipes" / "prompts")))
    return load_recipe(path, overrides, catalog=load_catalog())


def test_a_recipe_is_ten_lines_and_the_table_has_four_models() -> None:
    assert len(ten_lines().splitlines()) == LINES
    assert len(ROWS) == 4


@pytest.mark.parametrize(
    "row", some(ROWS, SD15, "stabilityai/stable-diffusion-3.5-medium").values(), ids=lambda row: row[0]
)
def test_the_memory_in_the_table_is_what_draft_cost_predicts(tmp_path: Path, row: tuple[str, str, str, str]) -> None:
    name, steps, guidance, said = row
    fields = {"pretrained": name, "num_inference_steps": steps, "guidance_scale": guidance}
    recipe = readme_recipe(tmp_path, *(f"model.{field}={value}" for field, value in fields.items()))
    assert predict(update_of(recipe)).total / GIB == pytest.approx(int(said), abs=0.6)


@pytest.mark.parametrize("name", some(dict.fromkeys(("sd15", *STUDENTS)), "sd15-lcm", "sd-turbo"))
def test_a_recipe_loads_and_fits_on_the_card_that_it_names(name: str) -> None:
    require_installed("draft-reward-hpsv2", "draft-reward-pickscore")
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    header = " ".join(text.partition("\nmodel:")[0].replace("#", " ").split())
    ((said, card),) = re.findall(
        r"Not run at full size: (\d+) GiB are predicted \(`draft cost \S+ --card (\d+)GB", header
    )
    overrides = re.findall(r"--set (\S+?)`", header)
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides, catalog=load_catalog())
    assert overrides == ([f"model.pretrained={SD15}"] if name == "sd15-lcm" else [])
    total = predict(update_of(recipe)).total
    assert total / GIB == pytest.approx(int(said), abs=0.6)
    assert total <= usable(float(card))


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_sampled_in_four_steps_without_guidance(name: str) -> None:
    require_installed("draft-reward-hpsv2", "draft-reward-pickscore")
    model = load_recipe(ROOT / "recipes" / f"{name}.yaml", catalog=load_catalog()).model
    assert model.num_inference_steps == 4
    assert model.guidance_scale is not None
    assert model.guidance_scale <= 1


def test_the_program_makes_a_student_that_draws_as_base_and_lora_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "tokenizer")).save_pretrained(base)
    teacher = StableDiffusionPipeline.from_pretrained(base)
    add_lora(teacher, rank=2)
    with torch.no_grad():
        for number, weight in enumerate(trainable(teacher)):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    write_lora(teacher, tmp_path / "lora")
    teacher.scheduler = LCMScheduler.from_config(teacher.scheduler.config)

    page = text_of("docs/how-to/train-your-model.md").partition("<!-- student -->")[2]
    program = code_blocks(page, "python")[0].replace(SD15, str(base))
    program = program.replace("latent-consistency/lcm-lora-sdv1-5", str(tmp_path / "lora"))
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "page", "exec", dont_inherit=True), {})

    student = StableDiffusionPipeline.from_pretrained(tmp_path / "models" / "sd15-lcm")
    plain = StableDiffusionPipeline.from_pretrained(base)
    plain.scheduler = LCMScheduler.from_config(plain.scheduler.config)
    assert isinstance(student.scheduler, LCMScheduler)
    drawn = []
    for pipe in (student, teacher, plain):
        pipe.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
        drawn.append(pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)
    assert (drawn[0] - drawn[2]).abs().max() > 1e-3
