"""What a recipe says of its model reaches the pipeline, or is refused before weights are loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from draft_core.adapters.lora import add_lora, is_adapted, lora_state
from draft_core.adapters.mixing import read_lora
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.plan import StepPlan
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.schema import ModelConfig
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog, Entry
from draft_core.reporting.card import usage
from draft_core.reporting.run_record import load_images, read_run
from draft_core.rewards.images import to_pil
from draft_core.runs.build import build, build_sampler
from draft_core.runs.pipeline_loading import check_model, load_pipeline, with_tuples
from draft_core.runs.run import run_recipe
from tests.support.families import FAMILIES, wan_vae
from tests.support.runs import saved_lora, without_pages
from tests.support.tiny import GOOD, byte_tokenizer, tiny_catalog, tiny_pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved."""
    place = tmp_path_factory.mktemp("saved")
    tiny_pipe(tokenizer=byte_tokenizer(place / "bytes")).save_pretrained(place / "model")
    return place / "model"


def model_of(catalog: Catalog, pretrained: Any, **fields: Any) -> Any:
    model = {"pretrained": str(pretrained), "num_inference_steps": 3, **fields}
    return load_recipe({**GOOD, "model": model}, catalog=catalog).model


def drawn(sampler: Any) -> torch.Tensor:
    plan = StepPlan(sampler.steps, frozenset())
    with torch.no_grad():
        images: torch.Tensor = sampler(["a cat"], plan=plan, generator=[torch.Generator().manual_seed(1)]).images
    return images


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    levels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    to_pil(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("draft_core.runs.build.load_pipeline", load)


# The scheduler


def test_a_recipe_sets_the_scheduler(catalog: Catalog, folder: Path) -> None:
    scheduler = {"name": "EulerDiscreteScheduler", "settings": {"timestep_spacing": "trailing"}}
    found = drawn(build_sampler(model_of(catalog, folder, scheduler=scheduler), catalog=catalog))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    plain = pipe("a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert not torch.equal(found, plain)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    plain = pipe("a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert torch.equal(found, plain)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"scheduler": {"name": "EulerDiscretScheduler"}},
            "has no EulerDiscretScheduler that can be used here; did you mean EulerDiscreteScheduler?",
        ),
        ({"scheduler": {"name": "AutoencoderKL"}}, "model.scheduler.name: diffusers"),
        (
            {"scheduler": {"name": "DDIMScheduler", "settings": {"timestep_spacings": "trailing"}}},
            "settings: DDIMScheduler has no setting 'timestep_spacings'; did you mean 'timestep_spacing'?",
        ),
        ({"pipeline": "StableDifusionPipeline"}, "model.pipeline: diffusers"),
        ({"config": "org/model"}, "says itself how it is built; leave it out."),
    ],
)
def test_what_diffusers_does_not_have_is_refused_before_weights_load(
    catalog: Catalog, nothing_loads: None, model: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        build(load_recipe({**GOOD, "model": {**GOOD["model"], **model}}, catalog=catalog), catalog=catalog)
    assert sentence in str(caught.value)


def test_a_scheduler_for_other_predictions_is_refused(catalog: Catalog, folder: Path) -> None:
    model = model_of(catalog, folder, scheduler={"name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(RecipeError, match="takes predictions of a flow, and StableDiffusionPipeline makes those of"):
        build_sampler(model, catalog=catalog)


# Where the weights come from


def test_a_variant_is_loaded(catalog: Catalog, folder: Path, tmp_path: Path) -> None:
    tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes")).save_pretrained(tmp_path / "model", variant="small")
    assert not list((tmp_path / "model" / "unet").glob("diffusion_pytorch_model.safetensors"))
    found = drawn(build_sampler(model_of(catalog, tmp_path / "model", variant="small"), catalog=catalog))
    assert torch.equal(found, drawn(build_sampler(model_of(catalog, folder), catalog=catalog)))
    with pytest.raises(DraftError, match="cannot be loaded"):
        build_sampler(model_of(catalog, tmp_path / "model", variant="large"), catalog=catalog)


def test_a_single_file_is_loaded_by_the_class_that_the_recipe_names(
    catalog: Catalog, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    given: list[Any] = []

    def from_single_file(path: str, **more: Any) -> Any:
        given.append((path, more))
        return diffusers.StableDiffusionPipeline.from_pretrained(folder)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_single_file", from_single_file)
    model = model_of(catalog, file, pipeline="StableDiffusionPipeline", config=str(folder))
    assert drawn(build_sampler(model, catalog=catalog)).shape == (1, 3, 16, 16)
    (path, more), *_ = given
    assert (path, more.pop("config"), [*more.values()]) == (str(file), str(folder), [torch.float32])


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("weights.safetensors", {}, "a single file, which does not say what pipeline it is of; name its class"),
        ("weights.safetensors", {"pipeline": "StableDiffusionPipeline", "variant": "fp16"}, "has no variants"),
        ("weights.ckpt", {"pipeline": "StableDiffusionPipeline"}, "is no .safetensors file; convert it"),
    ],
)
def test_a_single_file_that_cannot_be_loaded_is_refused_before(
    catalog: Catalog, nothing_loads: None, tmp_path: Path, name: str, fields: dict[str, Any], sentence: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    model = {**GOOD["model"], "pretrained": str(tmp_path / name), **fields}
    with pytest.raises(RecipeError) as caught:
        build(load_recipe({**GOOD, "model": model}, catalog=catalog), catalog=catalog)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "other weights"])
def test_a_single_file_of_something_else_ends_in_one_sentence(
    catalog: Catalog, folder: Path, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    if damage == "other weights":
        save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(DraftError, match=r"model\.pretrained: .*weights\.safetensors cannot be loaded \(.+\); che"):
        load_pipeline(str(file), pipeline="StableDiffusionPipeline", config=str(folder), catalog=catalog)


# The call


def test_an_image_is_given_by_its_path(catalog: Catalog, folder: Path, photo: Path) -> None:
    recipe = photo.with_name("recipe.yaml")
    recipe.write_text(
        f"model:\n  pretrained: {folder}\n  pipeline: StableDiffusionImg2ImgPipeline\n  num_inference_steps: 4\n"
        "  call: {image: {file: photo.png}, strength: 0.5}\nprompts: [a cat]\nrewards: [{kind: redness}]\n"
    )
    loaded = load_recipe(recipe, catalog=catalog)
    assert parse_yaml(dump_recipe(loaded))["model"]["call"]["image"] == {"file": str(photo)}
    found = drawn(build_sampler(loaded.model, catalog=catalog))
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    plain = pipe(
        "a cat",
        image=Image.open(photo),
        strength=0.5,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    assert torch.equal(found, plain)


def test_an_image_that_is_none_is_refused_before_weights_load(
    catalog: Catalog, nothing_loads: None, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_text("no image")
    for name, sentence in (("photo.png", "photo.png: cannot be read as an image"), ("none.png", "there is no ")):
        model = {**GOOD["model"], "call": {"image": [{"file": str(tmp_path / name)}]}}
        with pytest.raises(DraftError, match=sentence):
            build(load_recipe({**GOOD, "model": model}, catalog=catalog), catalog=catalog)


def test_lists_become_tuples_where_the_call_asks_for_those() -> None:
    family = next(family for family in FAMILIES if family.name == "Stable Diffusion XL")
    given = {"original_size": [32, 32], "negative_prompt": ["ugly"], "timesteps": [900, 500], "eta": 0.0}
    found = with_tuples(family.pipe(), given)
    assert found == {**given, "original_size": (32, 32)}
    images = [
        family.pipe()(
            "a cat", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt", **more
        )
        for more in ({"original_size": found["original_size"]}, {"original_size": (32, 32)})
    ]
    assert torch.equal(images[0].images, images[1].images)


def test_an_alias_brings_its_own_call(catalog: Catalog) -> None:
    def model(**fields: Any) -> Any:
        return load_recipe({**GOOD, "model": {"pretrained": "tiny", **fields}}, catalog=catalog)

    said = model(num_inference_steps=5, guidance_scale=1.5)
    left_out = model(call={"negative_prompt": "ugly"})
    assert (said.model.num_inference_steps, said.model.guidance_scale) == (5, 1.5)
    assert (left_out.model.num_inference_steps, left_out.model.guidance_scale) == (3, 3.0), "as its plugin says"
    assert left_out.model.call == {"negative_prompt": "ugly"}
    again = load_recipe(parse_yaml(dump_recipe(left_out)), catalog=catalog)
    assert again.model == left_out.model


# A LoRA to go on from


def test_a_run_goes_on_from_a_lora(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    init = saved_lora(tmp_path / "init", rank=2)
    data = {
        **GOOD,
        "model": {**GOOD["model"], "lora": {"rank": 2, "init": str(init)}},
        "method": {"kind": "draft-k"},
        "train": {"steps": 1, "batch_size": 2, "learning_rate": 1e-9, "weight_decay": 0.0},
        "output": str(tmp_path / "run"),
    }
    recipe = load_recipe(data, catalog=catalog)
    run_recipe(recipe, catalog)
    record = read_run(tmp_path / "run")
    plain = record.facts.prompts[0]
    pipe = load_pipeline("tiny", catalog=catalog)
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt"}

    def first() -> torch.Tensor:
        images: torch.Tensor = pipe(plain, generator=torch.Generator().manual_seed(0), **call).images
        return images

    torch.testing.assert_close(load_images(record.folder, 0)[:1], first(), atol=1 / 255, rtol=0)
    pipe.load_lora_weights(init)
    torch.testing.assert_close(load_images(record.folder, 1)[:1], first(), atol=1 / 255, rtol=0)
    assert max(record.last.drift) > 0.01, "the images that it begins with are not the base model's"


def test_a_lora_to_go_on_from_that_is_none_is_refused_before_weights_load(
    catalog: Catalog, nothing_loads: None, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name, error in (("empty", CheckpointError), ("gone", RecipeError)):
        model = {**GOOD["model"], "lora": {"init": str(tmp_path / name)}}
        with pytest.raises(error):
            build(load_recipe({**GOOD, "model": model}, catalog=catalog), catalog=catalog)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"call": {"": 1}}, "model.call: Short: its call takes no ''; see the pipeline's documentation."),
        ({"call": {"hight": 16}}, "model.call: Short: its call takes no 'hight'; did you mean 'height'?"),
        ({"call": {"height": True}}, "model.call: Short: 'height' is True; give a number."),
        ({"call": {"prompt": "a"}}, "model.call: Short call: 'prompt' is set by the sampler itself; leave it out."),
        ({"call": {"base_model": "a"}}, "model.call: Short: its call takes no 'base_model'; see the"),
        ({"call": {"decode": "whole"}}, "model.call: Short: its call takes no 'decode'; see the"),
        (
            {"call": {"num_inference_steps": 2}},
            "model.call: 'num_inference_steps' is said by model.num_inference_steps",
        ),
        ({"call": {"guidance_scale": 2}, "guidance_scale": 1}, "model.call: 'guidance_scale' is said by model.guid"),
        ({"guidance_scale": 2.0}, "model.guidance_scale: Short: its call takes no 'guidance_scale'; see the"),
    ],
)
def test_a_field_that_the_call_does_not_take_is_named(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], sentence: str
) -> None:
    class Short(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, prompt: Any, height: int = 16, num_inference_steps: int = 2) -> None:
            """Takes no guidance."""

    def load(*args: Any, **kwargs: Any) -> Any:
        pipe = tiny_pipe()
        pipe.__class__ = Short
        return pipe

    monkeypatch.setattr("draft_core.runs.build.load_pipeline", load)
    with pytest.raises(RecipeError) as caught:
        build_sampler(ModelConfig(pretrained="tiny", **fields), catalog=catalog)
    assert str(caught.value).startswith(sentence)


# What a report says of it


@pytest.mark.filterwarnings("ignore:.*Initial images are now duplicating:FutureWarning")
def test_the_lines_of_the_report_draw_the_image_again(
    catalog: Catalog, folder: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    data = {
        **GOOD,
        "model": {
            "pretrained": str(folder),
            "pipeline": "StableDiffusionImg2ImgPipeline",
            "scheduler": {"name": "EulerDiscreteScheduler", "settings": {"timestep_spacing": "trailing"}},
            "num_inference_steps": 4,
            "call": {"image": {"file": str(photo)}, "strength": 0.5, "num_images_per_prompt": 2},
        },
        "method": {"kind": "draft-k"},
        "train": {"steps": 1, "batch_size": 2},
        "output": str(tmp_path / "run"),
    }
    run_recipe(load_recipe(data, catalog=catalog), catalog)
    record = read_run(tmp_path / "run")
    names: dict[str, Any] = {}
    exec(usage(record, record.folder / "lora", base=record.facts.location), names)
    drawn_again = torch.tensor(list(names["image"].tobytes())).view(16, 16, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(drawn_again, load_images(record.folder, 1)[0], atol=1.5 / 255, rtol=0)


def test_an_alias_may_add_a_lora_to_the_weights_of_its_folder(tmp_path: Path) -> None:
    """The weights are the sum by hand, no adapter is left, and training puts a LoRA of its own on top."""
    catalog = tiny_catalog(tmp_path / "tiny")
    lora = saved_lora(tmp_path / "lora")
    entry = catalog.pretrained["tiny"]
    tuned = Entry(replace(entry.spec, alias="tuned", lora=lora, prompts={}), entry.distribution)
    catalog = replace(catalog, pretrained={**catalog.pretrained, "tuned": tuned})
    base, pipe = (load_pipeline(name, catalog=catalog) for name in ("tiny", "tuned"))
    factors = read_lora(lora / "pytorch_lora_weights.safetensors").factors
    weights = dict(base.unet.named_parameters())
    changed = 0
    for name, weight in pipe.unet.named_parameters():
        added = factors.get(f"unet.{name.removesuffix('.weight')}")
        expected = weights[name] if added is None else weights[name] + added[1] @ added[0]
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)
        changed += added is not None
    assert changed == len(factors)
    assert not is_adapted(pipe)
    add_lora(pipe, rank=2)
    assert is_adapted(pipe)


def test_a_run_decodes_by_tiles_one_after_another(tmp_path: Path) -> None:
    catalog = tiny_catalog(tmp_path)
    model = {**GOOD["model"], "tiled_decode": True, "decode": "tiles"}

    def trained(name: str, **fields: Any) -> dict[str, torch.Tensor]:
        changed = {"model": {**model, **fields}, "train": {"steps": 1, "batch_size": 2}, "output": str(tmp_path / name)}
        recipe = load_recipe({**GOOD, **changed}, catalog=catalog)
        trainer = build(recipe, catalog=catalog)
        trainer.train_step()
        return lora_state(trainer.sampler.pipe)

    by_tiles, whole = trained("tiles"), trained("whole", decode="whole")
    for name, weight in whole.items():
        torch.testing.assert_close(by_tiles[name], weight, rtol=1e-3, atol=1e-6)


def test_tiles_that_the_decoder_cannot_have_are_refused_by_its_files(tmp_path: Path) -> None:
    """Of the folder nothing but its configs is there."""
    folder = tmp_path / "wan"
    wan_vae().save_config(folder / "vae")
    index = {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")

    def refused(sizes: Any) -> str:
        with pytest.raises(DraftError) as error:
            check_model(ModelConfig(pretrained=str(folder), tiled_decode=sizes), Catalog())
        return str(error.value)

    assert "takes no tile_height; it takes tile_sample_min_height" in refused({"tile_height": 32})
    assert "give 128" in refused({"tile_sample_min_height": 130})
    assert "every 192 leave gaps" in refused({"tile_sample_min_height": 128})
    check_model(ModelConfig(pretrained=str(folder), tiled_decode=True), Catalog())
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}', encoding="utf-8")
    check_model(ModelConfig(pretrained=str(folder), tiled_decode={"tile_height": 32}), Catalog())  # known when loaded
