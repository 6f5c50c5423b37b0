"""Modular pipelines, FLUX.3 among them: from a folder, from a recipe, and what they cannot do."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.configuration_utils import register_to_config
from huggingface_hub import constants

from draft_core import DifferentiableSampler, DraftK, DraftLV
from draft_core.errors import DraftError, RecipeError, SamplerError
from draft_core.plan import Renoising
from draft_core.recipe.schema import ModelConfig
from draft_core.registry.catalog import Catalog
from draft_core.rewards import hub
from draft_core.runs import pipeline_loading
from draft_core.runs.build import build_sampler
from draft_core.runs.pipeline_loading import load_pipeline
from tests.support.drive import call_of, plain, replayed, sampler_of, seeded
from tests.support.families import FAMILIES, MODULAR, Family

pytestmark = pytest.mark.skipif(not all(hasattr(diffusers, name) for name in MODULAR), reason="no modular pipelines")


def family(name: str) -> Family:
    found = next(one for one in FAMILIES if one.name == name)
    if found.missing:
        pytest.skip(f"no {found.missing}")
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved, then moved: the index still names the old place."""
    folders = {}
    for name in ("FLUX.1, modular", "Wan 2.1, video, modular"):
        before, after = (tmp_path_factory.mktemp("saved") / part for part in ("before", "after"))
        family(name).pipe().save_pretrained(str(before), overwrite_modular_index=True)
        folders[name] = before.rename(after)
    return folders


@pytest.mark.parametrize("name", ["FLUX.1, modular", "Wan 2.1, video, modular"])
def test_a_saved_one_is_loaded_from_where_it_lies_now(
    saved: dict[str, Path], name: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("all of it is here"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    expected = plain(family(name).pipe(), call_of(family(name)))
    pipe = load_pipeline(str(saved[name]), catalog=catalog)
    torch.testing.assert_close(plain(pipe, call_of(family(name))), expected)


def test_a_component_that_cannot_be_read_is_named(saved: dict[str, Path], tmp_path: Path, catalog: Catalog) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved["FLUX.1, modular"], broken)
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00")
    with pytest.raises(DraftError, match=r"cannot be loaded \(its transformer cannot be read\); check the files"):
        load_pipeline(str(broken), catalog=catalog)


def test_the_hub_is_asked_for_what_the_index_names_there(
    saved: dict[str, Path], tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(["no network"])
    monkeypatch.setattr(hub, "unreachable", lambda: next(asked))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "elsewhere"
    shutil.copytree(saved["FLUX.1, modular"], folder)
    shutil.rmtree(folder / "transformer")
    load_pipeline(str(folder), catalog=catalog)
    assert next(asked, "asked") == "asked"


def test_the_guidance_of_a_recipe_reaches_the_guider(saved: dict[str, Path], catalog: Catalog) -> None:
    name = "Wan 2.1, video, modular"
    call = {"max_sequence_length": 16, "height": 16, "width": 16, "num_frames": 5}
    common = {"pretrained": str(saved[name]), "num_inference_steps": 2, "call": call, "lora": {"rank": 2}}
    samples = []
    for scale in (None, 5.0, 1.5):
        model = ModelConfig(**common, **({} if scale is None else {"guidance_scale": scale}))
        sampler = build_sampler(model, catalog=catalog)
        assert "guidance_scale" not in sampler.call_kwargs
        assert sampler.pipe.guider.guidance_scale == (5.0 if scale is None else scale)
        plan = DraftK(k=1).plan(sampler.steps, Random(0))
        samples.append(sampler(["a cat"], plan=plan, generator=seeded()).samples.detach())
    torch.testing.assert_close(samples[0], samples[1])
    assert not torch.allclose(samples[0], samples[2])


class Unscaled(ClassifierFreeGuidance):
    """A guider that is not configured by a scale."""

    @register_to_config
    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()


def test_a_guider_without_a_scale_is_refused_by_name() -> None:
    pipe = family("Wan 2.1, video, modular").pipe()
    pipe.update_components(guider=Unscaled())
    with pytest.raises(RecipeError, match="the Unscaled of WanModularPipeline has no guidance_scale; leave the field"):
        pipeline_loading.guided(pipe, 3.0)


def test_a_pipeline_that_takes_one_prompt_a_call_says_so() -> None:
    flux3 = family("FLUX.3")
    sampler = sampler_of(flux3, flux3.pipe())
    plan = DraftK(k=1).plan(sampler.steps, Random(0))
    with pytest.raises(SamplerError, match=re.escape("batched prompts are not supported, got list")):
        sampler(["a cat", "a dog"], plan=plan, generator=seeded())
    assert len(sampler(["a cat"], plan=plan, generator=seeded()).images) == 1


def test_a_single_step_that_cannot_be_started_from_given_latents_is_refused() -> None:
    """FLUX.3 takes latents before they are packed: given packed ones it would start from other noise."""
    flux3 = family("FLUX.3")
    sampler = DifferentiableSampler(flux3.pipe(), num_inference_steps=1, **flux3.call(torch.float32))
    with pytest.raises(SamplerError, match="Flux3ModularPipeline: its first step cannot be started from given"):
        sampler(
            ["a cat"], plan=DraftLV(resamples=1).plan(1, Random(0)), renoising=Renoising(copies=1), generator=seeded()
        )
    assert len(sampler(["a cat"], plan=DraftK(k=1).plan(1, Random(0)), generator=seeded()).images) == 1


@pytest.mark.parametrize("name", ["FLUX.1, modular", "SDXL, modular"])
def test_a_single_step_is_replayed_from_the_same_latents(name: str) -> None:
    one_step = replace(family(name), steps=1)
    samples, again = replayed(sampler_of(one_step, one_step.pipe()), one_step.prompts, batched=False)
    torch.testing.assert_close(again, torch.cat([samples, samples]), rtol=0, atol=1e-6)
