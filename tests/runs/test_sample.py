"""The library's `sample`, against plain diffusers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import draft_core
from draft_core.errors import DraftError, RecipeError
from draft_core.runs.sample import drawing
from tests.support.runs import saved_lora


def plain(catalog: Any, seed: int, lora: Path | None = None) -> torch.Tensor:
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    if lora:
        pipe.load_lora_weights(lora)
    call = catalog.pretrained["tiny"].spec.call
    image = pipe("a cat", generator=torch.Generator("cpu").manual_seed(seed), output_type="pt", **call).images[0]
    assert isinstance(image, torch.Tensor)
    return image


def test_samples_are_plain_diffusers_images_in_the_order_of_scales_prompts_and_seeds(
    catalog: Any, tmp_path: Path
) -> None:
    lora = saved_lora(tmp_path / "lora")
    images = draft_core.sample(
        "tiny", ["a red dog", "a cat"], lora=lora, scales=[0, 1], images_per_prompt=2, seed=7, catalog=catalog
    )
    assert images.shape == (2, 2, 2, 3, 16, 16)
    torch.testing.assert_close(images[0, 1, 1], plain(catalog, 8), atol=1e-5, rtol=0)
    # Random factors of size 1 magnify the rounding in which two images of a call differ from one.
    torch.testing.assert_close(images[1, 1, 0], plain(catalog, 7, lora), atol=1e-3, rtol=0)
    assert (images[1] - images[0]).abs().max() > 1e-2


def test_a_pipeline_may_be_given_and_its_own_lora_scaled(catalog: Any) -> None:
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    call = catalog.pretrained["tiny"].spec.call
    how = {"images_per_prompt": 1, "steps": call["num_inference_steps"], "seed": 7, "catalog": catalog}
    how |= {"guidance": call["guidance_scale"]} if "guidance_scale" in call else {}
    expected = plain(catalog, 7)
    with pytest.raises(DraftError, match="there is no LoRA to scale; give one as `lora`"):
        draft_core.sample(pipe, ["a cat"], scales=[0.5], **how)
    torch.testing.assert_close(draft_core.sample(pipe, ["a cat"], **how)[0, 0, 0], expected, atol=1e-5, rtol=0)
    draft_core.add_lora(pipe, rank=2)
    torch.testing.assert_close(
        draft_core.sample(pipe, ["a cat"], scales=[0], **how)[0, 0, 0], expected, atol=1e-5, rtol=0
    )


def test_what_cannot_be_sampled_is_refused_in_one_sentence(catalog: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown model 'tinny'; did you mean 'tiny'"):
        draft_core.sample("tinny", ["a"], catalog=catalog)
    with pytest.raises(DraftError, match=r"sample: steps: 2.5 is not a whole number from 1 on"):
        draft_core.sample("tiny", ["a"], steps=2.5, catalog=catalog)  # type: ignore[arg-type]
    with pytest.raises(DraftError, match="there are no prompts; give at least one"):
        draft_core.sample("tiny", [], catalog=catalog)
    with pytest.raises(DraftError, match="there is no pytorch_lora_weights"):
        draft_core.sample("tiny", ["a"], lora=tmp_path, catalog=catalog)


# As the run of a LoRA was evaluated

MODEL = """
model:
  pretrained: tiny
  num_inference_steps: 2
  guidance_scale: 1.5
  call: {height: 24, width: 16, negative_prompt: grey}
  dtype: bfloat16
  gradient_checkpointing: true
  lora: {rank: 2}
"""


def made_folder(tmp_path: Path, recipe: str) -> Path:
    run = tmp_path / "run"
    saved_lora(run / "lora")
    (run / "recipe.yaml").write_text(recipe)
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.mark.parametrize("place", ["", "lora", "lora/pytorch_lora_weights.safetensors"])
def test_a_runs_lora_is_drawn_as_the_run_was_evaluated(catalog: Any, tmp_path: Path, place: str) -> None:
    run = made_folder(tmp_path, MODEL)
    pipe = draft_core.load_pipeline("tiny", dtype="bfloat16", catalog=catalog)
    pipe.load_lora_weights(run / "lora")

    def expected(**call: Any) -> torch.Tensor:
        how = {
            "num_inference_steps": 2,
            "guidance_scale": 1.5,
            "height": 24,
            "width": 16,
            "negative_prompt": "grey",
            **call,
        }
        image = pipe("a cat", generator=torch.Generator("cpu").manual_seed(7), output_type="pt", **how).images[0]
        assert isinstance(image, torch.Tensor)
        return image.float()

    notes: list[str] = []
    how: dict[str, Any] = {"lora": run / place, "images_per_prompt": 1, "seed": 7, "catalog": catalog}
    images = draft_core.sample("tiny", ["a cat"], progress=lambda *words: notes.append(words[-1]), **how)
    torch.testing.assert_close(images[0, 0, 0], expected(), atol=1e-5, rtol=0)
    assert images.shape[-2:] == (24, 16)
    assert notes[0] == (
        f"as the run in {run} was evaluated: num_inference_steps 2, guidance_scale 1.5, dtype bfloat16, height 24, "
        "width 16, negative_prompt grey"
    )
    images = draft_core.sample("tiny", ["a cat"], steps=3, guidance=4.0, **how)
    torch.testing.assert_close(images[0, 0, 0], expected(num_inference_steps=3, guidance_scale=4.0), atol=1e-5, rtol=0)


def test_a_run_under_autocast_is_drawn_so(catalog: Any, tmp_path: Path) -> None:
    run = made_folder(tmp_path, "model: {pretrained: tiny, num_inference_steps: 2}\ntrain: {mixed_precision: bf16}\n")
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    pipe.load_lora_weights(run / "lora")
    with torch.autocast("cpu", torch.bfloat16):
        generator = torch.Generator("cpu").manual_seed(0)
        expected = pipe("a cat", generator=generator, num_inference_steps=2, output_type="pt").images[0]
    images = draft_core.sample("tiny", ["a cat"], lora=run, images_per_prompt=1, catalog=catalog)
    torch.testing.assert_close(images[0, 0, 0], expected.float(), atol=1e-5, rtol=0)


def test_a_model_that_is_loaded_by_its_name_is_drawn_with_on_the_gpu(
    catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # a device that is known everywhere
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    given = draft_core.load_pipeline("tiny", catalog=catalog)
    run = made_folder(tmp_path, MODEL)
    on_cpu = made_folder(tmp_path / "second", f"{MODEL}\ndevice: cpu\n")
    for pipeline, lora, device in (
        ("tiny", None, "meta"),
        ("tiny", run, "meta"),
        ("tiny", on_cpu, "cpu"),
        (given, None, "cpu"),
    ):
        with drawing(pipeline, ["a cat"], lora=lora, catalog=catalog) as drawn:
            assert drawn.sampler.pipe.device.type == device
            assert {weight.device.type for weight in drawn.sampler.pipe.unet.parameters()} == {device}


def test_a_runs_recipe_that_names_no_model_is_drawn_with_the_one_given(catalog: Any, tmp_path: Path) -> None:
    lora = made_folder(tmp_path, "model: {num_inference_steps: 2, pipeline: StableDiffusionXLPipeline}")
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    pipe.load_lora_weights(lora / "lora")
    generator = torch.Generator("cpu").manual_seed(0)
    expected = pipe("a cat", generator=generator, num_inference_steps=2, output_type="pt").images[0]
    images = draft_core.sample("tiny", ["a cat"], lora=lora, images_per_prompt=1, catalog=catalog)
    torch.testing.assert_close(images[0, 0, 0], expected, atol=1e-5, rtol=0)


def test_a_recipe_beside_a_lora_that_is_no_runs_is_left_alone(catalog: Any, tmp_path: Path) -> None:
    saved_lora(tmp_path / "lora")
    (tmp_path / "recipe.yaml").write_text("model: {pretrained: tiny, num_inference_steps: 1}")
    images = draft_core.sample("tiny", ["a cat"], lora=tmp_path / "lora", images_per_prompt=1, seed=7, catalog=catalog)
    torch.testing.assert_close(images[0, 0, 0], plain(catalog, 7, tmp_path / "lora"), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("prompts: x", "recipe.yaml: it says nothing of the model; give a copy of the LoRA"),
        ("model: {pretrained: tiny, num_inference_steps: 0}", "recipe.yaml: num_inference_steps: input should be"),
        ("[", "recipe.yaml: it is not plain YAML"),
        (
            "model: {pretrained: tiny}\ntrain: {mixed_precision: [bf16]}",
            r"recipe.yaml: train.mixed_precision: \['bf16'\] is no precision; give no, fp16 or bf16",
        ),
    ],
)
def test_a_runs_recipe_that_cannot_be_read_is_named(catalog: Any, tmp_path: Path, recipe: str, sentence: str) -> None:
    with pytest.raises(DraftError, match=sentence):
        draft_core.sample("tiny", ["a"], lora=made_folder(tmp_path, recipe), catalog=catalog)


@pytest.mark.parametrize("how", [{"steps": 0}, {"guidance": -1.0}, {"scales": [float("nan")]}])
def test_settings_that_mean_nothing_are_refused(catalog: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(DraftError, match=r"input should be greater than|is not a (finite|whole) number"):
        draft_core.sample("tiny", ["a"], catalog=catalog, **how)


def test_wrong_arguments_and_a_second_lora_are_refused_in_one_sentence(catalog: Any, tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="sample: the prompts are one text, 'cat'; give a list of them"):
        draft_core.sample("tiny", "cat", catalog=catalog)
    with pytest.raises(DraftError, match="sample: there are no scales"):
        draft_core.sample("tiny", ["a"], scales=(), catalog=catalog)
    with pytest.raises(DraftError, match="sample: steps: 0 is not a whole number from 1 on"):
        draft_core.sample("tiny", ["a"], steps=0, catalog=catalog)
    pipe, lora = draft_core.load_pipeline("tiny", catalog=catalog), str(saved_lora(tmp_path / "lora"))
    how: dict[str, Any] = {"images_per_prompt": 1, "steps": 2, "catalog": catalog}
    first = draft_core.sample(pipe, ["a"], lora=lora, **how)
    with pytest.raises(DraftError, match="the pipeline carries a LoRA already; leave out `lora`"):
        draft_core.sample(pipe, ["a"], lora=lora, **how)
    assert torch.equal(draft_core.sample(pipe, ["a"], **how), first)


def test_a_model_may_be_given_as_a_path(catalog: Any) -> None:
    folder = catalog.pretrained["tiny"].spec.folder
    how = {"images_per_prompt": 1, "steps": 2, "catalog": catalog}
    assert torch.equal(
        draft_core.sample(Path(folder), ["a cat"], **how), draft_core.sample(str(folder), ["a cat"], **how)
    )


@pytest.mark.parametrize("dtype", ["float33", "nn", torch.float32])
def test_a_dtype_that_torch_lacks_is_refused(catalog: Any, dtype: Any) -> None:
    with pytest.raises(RecipeError, match=r"model\.dtype: .* names no dtype of torch; give 'float32'"):
        draft_core.load_pipeline("tiny", dtype=dtype, catalog=catalog)


@pytest.mark.parametrize("recipe", [{"model": {}}, "recipe.yaml"])
def test_what_is_no_loaded_recipe_is_refused(catalog: Any, recipe: Any) -> None:
    for function in (draft_core.build, draft_core.run_recipe):
        with pytest.raises(RecipeError, match=r"the recipe is a (dict|str); give what `load_recipe\(...\)` returns"):
            function(recipe, catalog=catalog)


def test_two_threads_load_whole_pipelines(catalog: Any) -> None:
    pipes: list[Any] = []

    def load() -> None:
        pipes.extend(draft_core.load_pipeline("tiny", catalog=catalog) for _ in range(4))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pipes) == 8
    weights = [dict(pipe.text_encoder.named_parameters()) for pipe in pipes]
    assert not any(weight.is_meta for named in weights for weight in named.values())
    assert all(torch.equal(weight, weights[0][name]) for named in weights for name, weight in named.items())
