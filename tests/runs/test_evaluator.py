"""Evaluations with steps and guidance of their own: drawn so everywhere, and refused before anything loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import draft_core
from draft_core.errors import DraftError, RecipeError, SamplerError
from draft_core.evaluation.evaluate import evaluation_sampler
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.load import load_recipe
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.reporting.page import page_of
from draft_core.reporting.run_record import load_images, read_run
from draft_core.reporting.summary import summarize
from draft_core.runs.build import build
from draft_core.runs.run import RunResult, run_recipe
from draft_core.sampling.sampler import DifferentiableSampler
from tests.support.runs import without_pages
from tests.support.tiny import GOOD

OWN = ("evaluation.num_inference_steps=4", "evaluation.guidance_scale=6.5")


def run(catalog: Any, output: Path, *overrides: str, notes: list[str] | None = None) -> RunResult:
    data = {
        **GOOD,
        "model": {"pretrained": "tiny", "num_inference_steps": 2, "guidance_scale": 1.0},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 3e-2},
        "evaluation": {"prompts": "tiny-heldout", "images_per_prompt": 2, "tolerance": 99, "scales": [0.5]},
        "device": "cpu",
        "output": str(output),
    }

    def progress(stage: str, done: int, total: int, note: str) -> None:
        if notes is not None and stage == "note":
            notes.append(note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.runs.run.write_report", without_pages)
        return run_recipe(load_recipe(data, overrides, catalog=catalog), catalog, progress=progress)


def plain(catalog: Any, lora: Path | None = None, scale: float = 1.0) -> torch.Tensor:
    """The first prompt's first image by diffusers' own call, as `OWN` says."""
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    if lora is not None:
        pipe.load_lora_weights(lora)
        pipe.set_adapters(pipe.get_active_adapters(), scale)
    noise = torch.Generator("cpu").manual_seed(0)
    how: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 6.5, "output_type": "pt"}
    image = pipe("a bird", generator=noise, **how).images[0]
    assert isinstance(image, torch.Tensor)
    return image


def test_every_image_of_an_evaluation_is_drawn_so_and_training_is_not(catalog: Any, tmp_path: Path) -> None:
    own, alike, notes = tmp_path / "own", tmp_path / "alike", list[str]()
    run(catalog, own, *OWN, notes=notes)
    run(catalog, alike)
    level = 0.51 / 255
    torch.testing.assert_close(load_images(own, 0)[0], plain(catalog), atol=level, rtol=0)
    torch.testing.assert_close(load_images(own, 2)[0], plain(catalog, own / "lora"), atol=level, rtol=0)
    torch.testing.assert_close(load_images(own, "scale-0.5")[0], plain(catalog, own / "lora", 0.5), atol=level, rtol=0)
    assert (load_images(own, 0)[0] - load_images(alike, 0)[0]).abs().max() > level, "settings that are seen"
    one, other = (load_file(folder / "lora" / "pytorch_lora_weights.safetensors") for folder in (own, alike))
    assert all(torch.equal(one[name], other[name]) for name in one), "training is the same in every bit"
    said = "evaluations are drawn with num_inference_steps 4 (2 in training), guidance_scale 6.5 (1.0 in training)"
    assert said in notes
    facts = read_run(own).facts
    assert facts.call == {"num_inference_steps": 4, "guidance_scale": 6.5}
    assert facts.drawn_otherwise == said
    assert said[1:] in page_of(summarize(read_run(own)))
    assert read_run(alike).facts.drawn_otherwise == ""
    assert parse_yaml((own / "recipe.yaml").read_text())["evaluation"]["guidance_scale"] == 6.5

    images = draft_core.sample("tiny", ["a bird"], lora=own, images_per_prompt=1, catalog=catalog)
    torch.testing.assert_close(images[0, 0, 0], plain(catalog, own / "lora"), atol=1e-5, rtol=0)
    given = draft_core.sample("tiny", ["a bird"], lora=own, images_per_prompt=1, steps=2, guidance=1.0, catalog=catalog)
    assert (given - images).abs().max() > 1e-3, "what the caller says comes first"


def test_without_settings_of_its_own_it_is_the_samplers_very_self(catalog: Any) -> None:
    trainer = build(load_recipe(GOOD, catalog=catalog), catalog=catalog)
    assert evaluation_sampler(trainer.sampler, EvaluationSettings(prompts=("a",))) is trainer.sampler


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("evaluation.num_inference_steps=0", "evaluation.num_inference_steps: input should be greater than or equal"),
        ("evaluation.num_inference_steps=10001", "evaluation.num_inference_steps: input should be less than or equal"),
        ("evaluation.guidance_scale=-1", "evaluation.guidance_scale: input should be greater than or equal to 0"),
        ("evaluation.guidance_scale=.nan", "evaluation.guidance_scale: input should be a finite number"),
        ("evaluation.guidance=3", "did you mean 'guidance_scale'?"),
        ("model.call={timesteps: [9, 5]}", "evaluation.num_inference_steps: model.call.timesteps says which steps"),
        ("model.call={guidance_scale: 3}", "model.call: 'guidance_scale' cannot be given there; write model.guidance"),
        ("model.call={negative_prompt: [ugly, pale]}", "model.call.negative_prompt: it has 2 texts, and which image"),
        ("model.call={prompt_3: []}", "model.call.prompt_3: it has 0 texts, and which image would get which is left"),
        ("model.call={base_model: 3}", "model.call: 'base_model' cannot be given there; leave it out"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_the_recipe(catalog: Any, override: str, sentence: str) -> None:
    data = {**GOOD, "evaluation": {"prompts": "tiny-heldout", "num_inference_steps": 4}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(data, [override], catalog=catalog)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("section", ["model", "evaluation"])
def test_guidance_where_the_call_takes_none_is_refused_before_weights_load(
    catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDIMPipeline"}))
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *args, **more: pytest.fail("weights are loaded"))
    data = {**GOOD, "model": {"pretrained": str(tmp_path)}, "evaluation": {"prompts": "tiny-heldout"}, "device": "cpu"}
    recipe = load_recipe(data, [f"{section}.guidance_scale=3"], catalog=catalog)
    with pytest.raises(RecipeError, match=rf"{section}\.guidance_scale: the call of DDIMPipeline takes no guidance"):
        build(recipe, catalog=catalog)


def test_guidance_that_only_a_loaded_pipeline_refuses_is_refused_by_its_field(catalog: Any) -> None:
    sampler = build(load_recipe(GOOD, catalog=catalog), catalog=catalog).sampler

    class Unguided(type(sampler.pipe)):  # type: ignore[misc]
        def __call__(self, prompt: Any, num_inference_steps: int, generator: Any) -> None: ...

    sampler.pipe.__class__, sampler.call_kwargs = Unguided, {}
    with pytest.raises(SamplerError, match=r"evaluation\.guidance_scale: the call of Unguided takes no guidance_scale"):
        evaluation_sampler(sampler, EvaluationSettings(prompts=("a",), guidance_scale=2.0))
    assert isinstance(
        evaluation_sampler(sampler, EvaluationSettings(prompts=("a",), num_inference_steps=3)), DifferentiableSampler
    ), "steps alone are taken"


def test_steps_that_the_scheduler_does_not_have_are_refused_before_anything_is_drawn(
    catalog: Any, tmp_path: Path
) -> None:
    with pytest.raises(DraftError, match=r"evaluation: its call raised ValueError .*2000 cannot be larger"):
        run(catalog, tmp_path / "run", "evaluation.num_inference_steps=2000")
    assert not (tmp_path / "run").exists()
