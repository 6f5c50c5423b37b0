"""Whole runs on lists with columns: an image and a wish for every prompt, from training to page, resume and samples."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file

from draft_core import sample
from draft_core.errors import DraftError, Interrupted, RecipeError
from draft_core.learners.learner import Alone
from draft_core.prompt_rows import PromptRow
from draft_core.recipe.load import load_recipe
from draft_core.recipe.resolve import given_prompts
from draft_core.registry.catalog import Catalog, Entry
from draft_core.reporting.run_record import load_images, read_run
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.image_files import read_image
from draft_core.runs.run import run_recipe
from draft_core.training.batches import Batches
from tests.support.families import FAMILIES
from tests.support.image_classes import IMAGE_CLASSES
from tests.support.runs import without_pages
from tests.support.thorough import some
from tests.support.tiny import RednessConfig, byte_tokenizer, spec, tiny_catalog, tiny_pipe
from tests.support.video_classes import VIDEO_CLASSES


class Likeness(FrozenModule):
    """Minus the mean squared distance between the mean colours of an image and of its prompt's reference."""

    def __init__(self, config: RednessConfig) -> None:
        super().__init__()

    def forward(self, images: torch.Tensor, prompts: list[str], columns: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        images = checked_images(images, prompts, where="reward 'redness'")
        wanted = torch.stack([reference.mean(dim=(1, 2)) for reference in columns["reference"]])
        return -(images.mean(dim=(2, 3)) - wanted).square().mean(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of prompts with images beside them, and a pipeline of image to image."""
    made = tmp_path_factory.mktemp("columns")
    generator = np.random.default_rng(0)
    for number in range(6):
        levels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(levels).save(made / f"{number}.png")
    (made / "edits.csv").write_text("prompt,source,target\na cat,0.png,1.png\na cat,2.png,3.png\na dog,4.png,5.png\n")
    held_out = [{"prompt": "a cat", "source": "1.png", "target": "0.png"}]
    held_out.append({"prompt": "a bird", "source": "3.png", "target": "2.png"})
    (made / "held.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    pipe = tiny_pipe(tokenizer=byte_tokenizer(made / "bytes"))
    StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False).save_pretrained(made / "i2i")
    return made


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    tiny = tiny_catalog(folder / "tiny")
    likeness = spec("redness", RednessConfig, "tests.runs.test_columns:Likeness", columns={"reference": "image"})
    return replace(tiny, rewards={**tiny.rewards, "redness": Entry(likeness, tiny.rewards["redness"].distribution)})


def recipe_of(folder: Path, catalog: Catalog, output: Path, **changes: Any) -> Any:
    model = {
        "pretrained": str(folder / "i2i"),
        "num_inference_steps": 4,
        "call": {"strength": 0.6},
        "columns": {"image": "source"},
        **changes.pop("model", {}),
    }
    data = {
        "model": model,
        "prompts": str(folder / "edits.csv"),
        "rewards": [{"kind": "redness", "columns": {"reference": "target"}}],
        "metrics": [{"kind": "brightness"}],
        "method": {"kind": "draft-lv", "resamples": 1},
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 1e-2},
        "evaluation": {
            "prompts": str(folder / "held.jsonl"),
            "images_per_prompt": 1,
            "every": 2,
            "on_collapse": "warn",
            "scales": [],
        },
        "checkpoint": {"every": 2, "keep": 9},
        "output": str(output),
        "device": "cpu",
        **changes,
    }
    return load_recipe(data, catalog=catalog)


@pytest.mark.usefixtures("blank_curves")
def test_a_run_from_its_list_to_its_page(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    """What it draws first is what diffusers draws with the image of each prompt; the page shows these images."""
    notes: list[str] = []
    recipe = recipe_of(folder, catalog, tmp_path / "run")
    done = run_recipe(recipe, catalog, progress=lambda *said: notes.append(said[3]))
    record = read_run(done.folder)
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder / "i2i")
    for place, name in enumerate(("1.png", "3.png")):
        generator = torch.Generator().manual_seed(0)
        (image,) = pipe(
            record.facts.prompts[place],
            image=Image.open(folder / name),
            strength=0.6,
            num_inference_steps=4,
            generator=[generator],
            output_type="pt",
        ).images
        kept = load_images(done.folder, 0)[place]
        torch.testing.assert_close(kept, image.clamp(0, 1), atol=0.51 / 255, rtol=0)
    page = done.report.read_text(encoding="utf-8")
    assert page.count("<figcaption>input: image</figcaption>") == 2
    assert torch.equal(read_image(done.folder / "images/input-image/001.png"), read_image(folder / "3.png"))
    card = (done.folder / "lora" / "README.md").read_text(encoding="utf-8")
    assert f"image=load_image({str(folder / '1.png')!r})" in card
    assert not [note for note in notes if "nothing reads" in note]
    expected = -(load_images(done.folder, 0)[0].mean((1, 2)) - read_image(folder / "0.png")[0].mean((1, 2))).square()
    assert record.before.scores["redness"][0] == pytest.approx(float(expected.mean()), rel=0.02)

    prompts = given_prompts(str(folder / "held.jsonl"), catalog, where="--prompts")
    again = sample(str(folder / "i2i"), prompts, lora=done.folder, images_per_prompt=1, catalog=catalog)
    last = load_images(done.folder, 4)
    torch.testing.assert_close(again[0, :, 0], last, atol=0.51 / 255, rtol=0)
    with pytest.raises(DraftError, match=r"model.columns.image of the run: prompt 'a cat' has no column 'source'"):
        sample(str(folder / "i2i"), ["a cat"], lora=done.folder, catalog=catalog)


METHODS: dict[str, dict[str, Any]] = {
    "draft-lv": {"method": {"kind": "draft-lv", "resamples": 1}},
    "ddpo": {
        "method": {"kind": "ddpo", "minibatches": 2, "least": 2},
        "model": {"noise": 0.7},
    },
    "importance": {
        "method": {"kind": "importance", "buffer": 6, "fits": 2, "levels": 1},
        "model": {"noise": 0.7},
    },
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)


def stopped_after(update: int) -> Callable[..., None]:
    def progress(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train" and done == update:
            signal.raise_signal(signal.SIGTERM)

    return progress


@pytest.mark.parametrize("name", some(METHODS, "draft-lv", "importance"))
@pytest.mark.usefixtures("quick")
def test_a_run_that_is_stopped_goes_on_in_every_bit(name: str, folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    whole = run_recipe(recipe_of(folder, catalog, tmp_path / "whole", **METHODS[name]), catalog)
    parts = recipe_of(folder, catalog, tmp_path / "parts", **METHODS[name])
    with pytest.raises(Interrupted):
        run_recipe(parts, catalog, progress=stopped_after(2))
    run_recipe(parts, catalog)
    one, other = (load_file(next((path / "lora").glob("*.safetensors"))) for path in (whole.folder, parts.output))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_run(whole.folder).last.scores == read_run(parts.output).last.scores


@pytest.mark.usefixtures("quick")
def test_an_image_that_has_changed_is_noticed(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    copied = tmp_path / "lists"
    shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("i2i", "tiny", "bytes"))
    shutil.copytree(folder / "i2i", copied / "i2i")
    recipe = recipe_of(copied, catalog, tmp_path / "run", train={"steps": 1, "batch_size": 2})
    run_recipe(recipe, catalog)
    Image.new("RGB", (16, 16), "red").save(copied / "2.png")
    longer = recipe_of(copied, catalog, tmp_path / "run", train={"steps": 2, "batch_size": 2})
    with pytest.raises(RecipeError, match=r"prompts.source \(files\): 3 -> 3 texts, number 2 was '\w{16}' and is "):
        run_recipe(longer, catalog, resume=True)
    run_recipe(longer, catalog, resume=True, force=True)


@pytest.mark.usefixtures("quick")
def test_what_cannot_share_a_call_is_refused_before_a_weight_is_loaded(
    folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("draft_core.runs.build.load_pipeline", load)
    rows = [
        {"prompt": "a cat", "source": str(folder / "0.png"), "target": str(folder / "0.png")},
        {"prompt": "a dog", "source": str(tmp_path / "wide.png"), "target": str(folder / "0.png")},
    ]
    Image.new("RGB", (32, 16)).save(tmp_path / "wide.png")
    with pytest.raises(DraftError, match=r"0.png is 16 x 16 pixels, wide.png is 32 x 16, and a call of several"):
        run_recipe(recipe_of(folder, catalog, tmp_path / "run", prompts=rows), catalog)
    (tmp_path / "wide.png").write_bytes(b"no image")
    with pytest.raises(DraftError, match=r"wide.png: cannot be read as an image"):
        run_recipe(recipe_of(folder, catalog, tmp_path / "run", prompts=rows), catalog)
    model = {"columns": {"image": "source", "control_image": "target"}}
    with pytest.raises(RecipeError, match=r"model.columns.control_image: the call of StableDiffusionImg2ImgPipeline"):
        run_recipe(recipe_of(folder, catalog, tmp_path / "run", model=model), catalog)


# Family, prompts in a batch, and whether the run is also stopped and taken up again.
FURTHER = {
    "ControlNet": ("SD with ControlNet", 2, True),
    "editing by an instruction": ("StableDiffusionInstructPix2PixPipeline", 2, False),
    "image to video": ("LTXImageToVideoPipeline", 2, True),
    "image to video, one at a time": ("WanImageToVideoPipeline", 1, False),
}


def spoken(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call as fields of a recipe's model."""
    own = {"guidance_scale"} & call.keys()
    return {"call": {name: call[name] for name in call.keys() - own}, **{name: call[name] for name in own}}


@pytest.mark.parametrize("case", FURTHER)
@pytest.mark.usefixtures("quick")
def test_other_families_are_trained_watched_and_taken_up_again_in_every_bit(
    case: str, folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built here and handed to the run: their small tokenizers are not what a folder of diffusers holds."""
    name, batch, resumes = FURTHER[case]
    family = next(family for family in (*FAMILIES, *IMAGE_CLASSES, *VIDEO_CLASSES) if family.name == name)
    call = family.call(torch.float32)
    size = call.pop("image").shape[-1]
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *args, **kwargs: family.pipe())
    monkeypatch.setattr("draft_core.runs.build.check_model", lambda *args, **kwargs: None)
    rows = []
    for number in range(4):
        Image.open(folder / f"{number}.png").resize((size, size)).save(tmp_path / f"{number}.png")
        rows.append({"prompt": "a cat", "source": str(tmp_path / f"{number}.png"), "target": str(folder / "5.png")})
    changes: dict[str, Any] = {
        "model": {**spoken(call), "num_inference_steps": 2},
        "prompts": rows[:3],
        "method": {"kind": "draft-k", "k": 1},
        "train": {"steps": 2, "batch_size": batch, "learning_rate": 1e-2},
        "checkpoint": {"every": 1},
        "evaluation": {"prompts": rows[3:], "images_per_prompt": 1, "every": 2, "on_collapse": "warn", "scales": []},
    }
    whole = run_recipe(recipe_of(folder, catalog, tmp_path / "whole", **changes), catalog)
    weights = load_file(next((whole.folder / "lora").glob("*.safetensors")))
    assert any(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name or "lora.up" in name)
    if not resumes:
        return
    parts = recipe_of(folder, catalog, tmp_path / "parts", **changes)
    with pytest.raises(Interrupted):
        run_recipe(parts, catalog, progress=stopped_after(1))
    run_recipe(parts, catalog)
    one, other = (load_file(next((path / "lora").glob("*.safetensors"))) for path in (whole.folder, parts.output))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_run(whole.folder).last.scores == read_run(parts.output).last.scores


@pytest.mark.usefixtures("quick")
def test_a_call_that_takes_one_image_is_told_of_before_it_is_drawn(
    folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = next(family for family in VIDEO_CLASSES if family.name == "WanImageToVideoPipeline")
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *args, **kwargs: family.pipe())
    monkeypatch.setattr("draft_core.runs.build.check_model", lambda *args, **kwargs: None)
    call = family.call(torch.float32)
    del call["image"]
    with pytest.raises(
        DraftError, match=r"train.batch_size: a call of WanImageToVideoPipeline takes one image for all it"
    ):
        run_recipe(recipe_of(folder, catalog, tmp_path / "run", model=spoken(call)), catalog)


def test_rows_are_told_apart_where_their_texts_are_not() -> None:
    """Two processes draw the rows that one draws, and each row comes with its own columns."""

    class Two(Alone):
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank  # type: ignore[misc]

    rows = [PromptRow("a cat", {"image": f"{number}.png"}) for number in range(5)]
    one = Batches(rows, 0, 4, 1, 1, Alone())
    two = [Batches(rows, 0, 2, 1, 1, Two(rank)) for rank in (0, 1)]
    for update in range(4):
        (whole,) = one.draw(update)
        halves = [next(part.draw(update)) for part in two]
        drawn = [row.columns for half in halves for row in half.prompts]  # type: ignore[attr-defined]
        assert drawn == [row.columns for row in whole.prompts]  # type: ignore[attr-defined]
